"""`vikhr-fast plan`: what a run would need and cost, and what to change where it doesn't fit."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from rich.console import Console
from rich.table import Table

from vikhr_fast.config import TrainConfig, config_with_gaps, read_toml
from vikhr_fast.errors import InputError
from vikhr_fast.model_config import ModelConfig, read_config
from vikhr_fast.plan.memory import GIB, Parameters, memory
from vikhr_fast.plan.speed import HARDWARE, LINK_SHARE, NETWORK, RESERVED, Hardware, flops_per_token, speed

_PAPER_TOKENS, _INSTRUCTION_TOKENS = 11e9, 3 * 680_000 * 430.0
MISTRAL_7B_40K = ModelConfig(
    vocab_size=40000,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=32768,
    sliding_window=4096,
)


@dataclass(frozen=True)
class Plan:
    """Memory, speed and cost of a training run on paper, before it is started (paper, section 3.4)."""

    config: Path = Path("vikhr-7b-pretrain")
    """TOML file, or the name of a preset."""
    model: Path | None = None
    """Hugging Face directory whose config.json gives the shape; none is Mistral-7B with 40,000 pieces."""
    gpu: Literal["a100-80", "h100", "h200"] = "a100-80"
    """The GPU."""
    gpus: int = 8
    """How many."""
    tokens: float | None = None
    """Tokens to train on, all epochs together. None is the paper's 11 billion; with the preset vikhr-7b-instruct it is
    3 epochs of 680,000 instances of 430 tokens, a length that the paper doesn't give."""
    efficiency: float = 0.57
    """Share of the peak that matrix products reach, the reference's forward counted."""
    measured: Path | None = None
    """results.json of bench/gpu.py: its measured rates of products and copies replace the data sheet's."""
    price: float = 2.0
    """Money a GPU-hour."""
    json: bool = False
    """Print JSON instead of tables."""


def plan(options: Plan) -> dict[str, Any]:
    """The numbers of a plan; prints them.

    Raises:
        InputError: an option is impossible, or a file is missing or damaged.
    """
    config = config_with_gaps(read_toml(options.config), str(options.config), None)
    result = estimate(options, config, read_config(options.model) if options.model else MISTRAL_7B_40K)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        _print(options, config, _hardware(options), result)
    return result


def estimate(options: Plan, config: TrainConfig, model: ModelConfig) -> dict[str, Any]:
    """The numbers alone, of a configuration and a model that stand for those which the options name.

    Raises:
        InputError: as `plan`.
    """
    tokens = options.tokens
    if tokens is None:
        tokens = _INSTRUCTION_TOKENS if options.config == Path("vikhr-7b-instruct") else _PAPER_TOKENS
    for name, value in (("gpus", options.gpus), ("tokens", tokens), ("efficiency", options.efficiency)):
        if not 0 < value < float("inf"):
            raise InputError(f"plan: {name}: {value}, must be more than 0")
    if not 0 <= options.price < float("inf"):
        raise InputError(f"plan: price: {options.price}, must not be negative")
    hardware = _hardware(options)
    if options.gpus % config.runtime.replicas:
        raise InputError(
            f"plan: gpus: {options.gpus}: runtime.replicas {config.runtime.replicas} of {options.config} "
            "doesn't divide it"
        )
    if config.batch.sequences_per_step % (config.batch.micro_batch * options.gpus):
        raise InputError(
            f"plan: gpus: {options.gpus}: batch.sequences_per_step {config.batch.sequences_per_step} of "
            f"{options.config} isn't a multiple of batch.micro_batch {config.batch.micro_batch} x {options.gpus}"
        )
    parts = memory(config, model, options.gpus)
    needed = sum(parts.values()) + RESERVED
    fits = needed <= hardware.memory
    rates = speed(config, model, hardware, options.gpus, options.efficiency)
    hours = tokens / rates.tokens_per_second / 3600
    return {
        "parameters": Parameters.of(model).total,
        "tokens": tokens,
        "flops_per_token": flops_per_token(model, config.data.sequence_length),
        "memory_bytes": parts | {"reserved": round(RESERVED)},
        "needed_bytes": round(needed),
        "available_bytes": round(hardware.memory),
        "fits": fits,
        "nearest_fit": None if fits else _nearest_fit(config, model, hardware, options.gpus),
        "speed": asdict(rates),
        "gpu_hours": hours,
        "days": hours / options.gpus / 24,
        "kilowatt_hours": hours * hardware.watts / 1000,
        "money": hours * options.price,
    }


def _hardware(options: Plan) -> Hardware:
    hardware = HARDWARE[options.gpu]
    if options.measured is None:
        return hardware
    try:
        ceilings = json.loads(options.measured.read_text(encoding="utf-8"))["ceilings"]
        positive = TypeAdapter(Annotated[float, Field(gt=0)])
        flops, bandwidth = (
            positive.validate_python(ceilings[name]) for name in ("gemm_flops_per_second", "copy_bytes_per_second")
        )
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{options.measured}: no results.json of bench/gpu.py, or a damaged one") from None
    return dataclasses.replace(hardware, flops=flops, bandwidth=bandwidth)


def _nearest_fit(config: TrainConfig, model: ModelConfig, hardware: Hardware, gpus: int) -> str | None:
    """The first change that fits, of those that cost least first; None where nothing does."""
    for words, changed, count in _changes(config, gpus):
        if sum(memory(changed, model, count).values()) + RESERVED <= hardware.memory:
            return words
    return None


def _changes(config: TrainConfig, gpus: int) -> Iterator[tuple[str, TrainConfig, int]]:
    """What can be changed without changing what is learnt: less memory for more time, then more GPUs."""
    batch, optimizer, runtime = config.batch, config.optimizer, config.runtime
    choices = itertools.product(
        (1, 2, 4, 8, 16, 32, 64, 128),
        dict.fromkeys((optimizer.master, "split")) if runtime.dtype == "bfloat16" else [optimizer.master],
        sorted({runtime.reduce_each_micro_batch, True}),
        dict.fromkeys((runtime.checkpointing, "selective", "full")),
        range(batch.micro_batch, 0, -1),
    )
    for factor, master, reduce, checkpointing, micro_batch in choices:
        count = gpus * factor
        if batch.sequences_per_step % (micro_batch * count):
            continue
        changed = dataclasses.replace(
            config,
            batch=dataclasses.replace(batch, micro_batch=micro_batch),
            optimizer=dataclasses.replace(optimizer, master=master),
            runtime=dataclasses.replace(runtime, reduce_each_micro_batch=reduce, checkpointing=checkpointing),
        )
        words = {
            f"--gpus {count}": factor > 1,
            f'optimizer.master = "{master}"': master != optimizer.master,
            "runtime.reduce_each_micro_batch = true": reduce != runtime.reduce_each_micro_batch,
            f'runtime.checkpointing = "{checkpointing}"': checkpointing != runtime.checkpointing,
            f"batch.micro_batch = {micro_batch}": micro_batch != batch.micro_batch,
        }
        yield ", ".join(word for word, differs in words.items() if differs), changed, count


def _print(options: Plan, config: TrainConfig, hardware: Hardware, result: dict[str, Any]) -> None:
    console = Console()
    batch = config.batch
    accumulation = batch.sequences_per_step // (batch.micro_batch * options.gpus)
    table = Table("of one GPU's memory", "GiB", title=f"{options.config} on {options.gpus} x {hardware.name}")
    table.columns[1].justify = "right"
    for name, size in result["memory_bytes"].items():
        table.add_row(name, f"{size / GIB:.2f}")
    table.add_section()
    table.add_row("needed", f"{result['needed_bytes'] / GIB:.2f}")
    table.add_row("there", f"{result['available_bytes'] / GIB:.2f}")
    console.print(table)
    if result["fits"]:
        console.print("Fits.")
    else:
        nearest = result["nearest_fit"] or "nothing that this trainer can change"
        console.print(f"[red]Does not fit.[/] Nearest that does: {nearest}", highlight=False)
    rates = result["speed"]
    lines = [
        f"{result['parameters'] / 1e9:.2f} billion parameters; {batch.micro_batch} sequences of "
        f"{config.data.sequence_length} a micro-batch, {accumulation} micro-batches a step",
        f"{rates['tokens_per_second']:,.0f} tokens/s a GPU, a step in {rates['step_seconds']:.1f} s (products "
        f"{rates['compute_seconds']:.1f} s, communication {rates['communication_seconds']:.1f} s beside them)",
        f"MFU {rates['training_share']:.1%}, with the reference's forward {rates['whole_share']:.1%}",
        f"{result['tokens']:,.0f} tokens: {result['gpu_hours']:,.0f} GPU-hours, {result['days']:.1f} days, "
        f"{result['kilowatt_hours']:,.0f} kWh, {result['money']:,.0f} at {options.price:g} a GPU-hour",
        f"Assumed: products at {options.efficiency:.0%} of {hardware.flops / 1e12:.0f} TFLOP/s; FLOPs a token "
        f"6 N + 3.5 attention, the reference's 2 N + 1, N without the embedding, documents as long as the sequence; "
        f"collectives at {LINK_SHARE:.0%} of {hardware.link / 1e9:.0f} GB/s inside one node, {NETWORK / 1e9:.0f} GB/s "
        f"between replicas; memory copied at "
        f"{hardware.bandwidth / 1e12:.2f} TB/s; {RESERVED / GIB:.1f} GiB reserved; {hardware.watts:.0f} W a GPU, no "
        "cooling, no host",
        f"Measured: {hardware.measured}",
    ]
    for line in lines:
        console.print(line, highlight=False)
