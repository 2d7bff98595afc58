"""`vikhr-fast plan`: what a run would need and cost, and what to change where it doesn't fit."""

import dataclasses
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from rich.box import SIMPLE
from rich.table import Column, Table

from vikhr_fast.config import TrainConfig, config_with_gaps, read_record, read_toml, require_consistent
from vikhr_fast.errors import InputError
from vikhr_fast.io.console import PlainConsole
from vikhr_fast.io.files import json_text
from vikhr_fast.model.config import ModelConfig, read_config
from vikhr_fast.plan.choices import Choice, changed_settings, fastest_of_each, nearest_fit
from vikhr_fast.plan.collectives import StepCounts, collectives
from vikhr_fast.plan.memory import GIB, Parameters, memory
from vikhr_fast.plan.speed import HARDWARE, RESERVED, Hardware, Range, assumptions, flops_per_token, speed

_Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_EQUAL = 0.01  # of the time: what this can't tell apart
_PAPER_TOKENS, _INSTRUCTION_TOKENS = 11e9, 3 * 680_000 * 430.0
MISTRAL_7B_40K = ModelConfig(
    vocab_size=40000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, max_position_embeddings=32768, sliding_window=4096,
)  # fmt: skip


@dataclass(frozen=True)
class _Ceilings:
    gemm_flops_per_second: _Rate
    copy_bytes_per_second: _Rate


@dataclass(frozen=True)
class _Measured:
    """What is read of the results of bench/gpu.py."""

    ceilings: _Ceilings


_MEASURED = pydantic.TypeAdapter(_Measured)


@dataclass(frozen=True)
class Plan:
    """Memory, speed and cost of a training run on paper, before it is started (paper, section 3.4)."""

    config: Path = Path("vikhr-7b-pretrain")
    """TOML file, or the name of a preset; to price other settings, copy a preset and edit the copy."""
    model: Path | None = None
    """Hugging Face directory whose config.json gives the shape; none is Mistral-7B with 40,000 pieces."""
    gpu: Literal["a100-80", "h100", "h200"] = "a100-80"
    """The GPU."""
    gpus: int = 8
    """How many, over all nodes. More than 8 that share one copy of the weights (runtime.replicas) use the network."""
    tokens: float | None = None
    """Tokens to train on, all epochs together. None is the paper's 11 billion; with the preset vikhr-7b-instruct it is
    3 epochs of 680,000 instances of 430 tokens, a length that the paper doesn't give."""
    matrix_rate: float | None = None
    """TFLOP/s of a large bf16 matrix product on your GPUs; none is what was measured on others of their kind."""
    measured: Path | None = None
    """results.json of bench/gpu.py: its rates of products and copies."""
    price: float = 2.0
    """Money a GPU-hour."""
    collectives: bool = False
    """Print every collective of a step, too."""
    json: bool = False
    """Print JSON instead of tables."""


def plan(options: Plan) -> None:
    """Prints the numbers of a plan.

    Raises:
        InputError: an option is impossible, or a file is missing or damaged.
    """
    config = config_with_gaps(read_toml(options.config), str(options.config), None)
    model = read_config(options.model) if options.model else MISTRAL_7B_40K
    result, hardware = estimate(options, config, model), _hardware(options)
    combinations = fastest_of_each(config, model, hardware, options.gpus)
    result["combinations"] = [_described(config, choice, result["tokens"]) for choice in combinations]
    result["counts"] = asdict(StepCounts.of(config, options.gpus))
    calls = collectives(config, model, options.gpus)
    result["collectives"] = [asdict(call) | {"link_bytes": call.link_bytes} for call in calls]
    if options.json:
        print(json_text(result, ensure_ascii=True, indent=2))
    else:
        _print(options, config, hardware, result)


def estimate(options: Plan, config: TrainConfig, model: ModelConfig) -> dict[str, Any]:
    """The numbers alone, of a configuration and a model that stand for those which the options name.

    Raises:
        InputError: as `plan`.
    """
    tokens = options.tokens
    if tokens is None:
        tokens = _INSTRUCTION_TOKENS if options.config == Path("vikhr-7b-instruct") else _PAPER_TOKENS
    for name, value in (("gpus", options.gpus), ("tokens", tokens), ("matrix-rate", options.matrix_rate)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"plan: {name}: {value}, must be more than 0")
    if not 0 <= options.price < float("inf"):
        raise InputError(f"plan: price: {options.price}, must not be negative")
    hardware = _hardware(options)
    require_consistent(config)
    if config.runtime.dtype != "bfloat16":
        raise InputError(f"plan: runtime.dtype: {config.runtime.dtype} of {options.config}: it knows bfloat16 alone")
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
    speeds = [speed(config, model, hardware, options.gpus, case) for case in ("likely", "low", "high")]
    hours, slowest, fastest = (tokens / each.tokens_per_second / 3600 for each in speeds)
    return {
        "parameters": Parameters.of(model).total,
        "tokens": tokens,
        "flops_per_token": flops_per_token(model, config.data.sequence_length),
        "memory_bytes": parts | {"reserved": round(RESERVED)},
        "needed_bytes": round(needed),
        "available_bytes": round(hardware.memory),
        "fits": fits,
        "nearest_fit": None if fits else nearest_fit(config, model, hardware, options.gpus),
        "speed": asdict(speeds[0]),
        "gpu_hours": hours,
        "gpu_hours_range": (fastest, slowest),
        "days": hours / options.gpus / 24,
        "kilowatt_hours": hours * hardware.watts / 1000,
        "money": hours * options.price,
    }


def _described(config: TrainConfig, choice: Choice, tokens: float) -> dict[str, Any]:
    """A way to shard and to accumulate: what it takes, and the settings that make it of the configuration."""
    runtime, reached = choice.config.runtime, choice.speed
    reference = "whole" if runtime.whole_reference else f"{runtime.reference_micro_batches} at once"
    return {
        "model": "kept" if runtime.keep_gathered else "freed",
        "reference": reference if StepCounts.of(config, 1).compared else "none",
        "gradients": "each" if runtime.reduce_each_micro_batch else "once",
        "micro_batch": choice.config.batch.micro_batch,
        "needed_bytes": round(choice.needed_bytes),
        "link_bytes": reached.link_bytes,
        "copy_bytes": reached.copy_bytes,
        "tokens_per_second": reached.tokens_per_second,
        "gpu_hours": tokens / reached.tokens_per_second / 3600,
        "settings": changed_settings(config, choice.config),
    }


def _hardware(options: Plan) -> Hardware:
    hardware = HARDWARE[options.gpu]
    if options.matrix_rate is not None:
        if options.measured is not None:
            raise InputError("plan: give --measured or --matrix-rate, not both")
        rate = options.matrix_rate * 1e12
        measured = f"{hardware.measured}; --matrix-rate instead of these products"
        return dataclasses.replace(hardware, products=Range(rate, rate, rate), measured=measured)
    if options.measured is None:
        return hardware
    rates = read_record(options.measured, _MEASURED, "give a results.json of bench/gpu.py").ceilings
    products, copies = (Range(r, r, r) for r in (rates.gemm_flops_per_second, rates.copy_bytes_per_second))
    return dataclasses.replace(hardware, products=products, copies=copies, measured=str(options.measured))


def _print(options: Plan, config: TrainConfig, hardware: Hardware, result: dict[str, Any]) -> None:
    console, batch = PlainConsole(), config.batch
    accumulation = batch.sequences_per_step // (batch.micro_batch * options.gpus)
    title = f"{options.config} on {options.gpus} x {hardware.name}"
    table = Table("of one GPU's memory", Column("GiB", justify="right"), title=title)
    for name, size in result["memory_bytes"].items():
        table.add_row(name, f"{size / GIB:.2f}")
    table.add_section()
    for name in ("needed", "available"):
        table.add_row(name, f"{result[f'{name}_bytes'] / GIB:.2f}")
    console.print(table)
    nearest = result["nearest_fit"] or "nothing that this trainer can change"
    if result["fits"]:
        console.print("Fits.")
    else:
        console.print("Does not fit.", style="red", end=" ")
        console.print(f"Nearest that does: {nearest}")
    rates = result["speed"]
    fastest, slowest = result["gpu_hours_range"]
    console.print(
        f"{result['parameters'] / 1e9:.2f} billion parameters; {batch.micro_batch} sequences of "
        f"{config.data.sequence_length} a micro-batch, {accumulation} micro-batches a step, the reference in "
        f"{result['counts']['compared']} of them\n"
        f"{rates['tokens_per_second']:,.0f} tokens/s a GPU, a step in {rates['step_seconds']:.1f} s (of which copies "
        f"and sums of weights and gradients {rates['copy_seconds']:.1f} s; communication "
        f"{rates['communication_seconds']:.1f} s, overlapped)\n"
        f"MFU {rates['training_share']:.1%}, with the reference's forward {rates['whole_share']:.1%}\n"
        f"{result['tokens']:,.0f} tokens: {result['gpu_hours']:,.0f} GPU-hours ({fastest:,.0f} to {slowest:,.0f}), "
        f"{result['days']:.1f} days, {result['kilowatt_hours']:,.0f} kWh, {result['money']:,.0f} at {options.price:g} "
        "a GPU-hour"
    )
    if config.kl.reference is not None and result["counts"]["compared"]:
        console.print(
            f"{config.kl.reference} is counted as a model of the trained one's shape that reads as many tokens; the "
            "original reads more where its vocabulary knows less of the language"
        )
    if result["combinations"]:
        console.print(_combinations(result["combinations"], options.gpus))
        console.print(_advice(result))
    if options.collectives:
        console.print(_calls(result["collectives"]))
    console.print(assumptions(hardware))


def _combinations(found: list[dict[str, Any]], gpus: int) -> Table:
    """The ways to shard and to accumulate that fit, the fastest first."""
    names = {"model": "model", "reference": "reference", "gradients": "reduced"} if gpus > 1 else {}
    table = _table(
        "What fits, the fastest first, each with its best micro-batch", names.values(),
        ("micro-\nbatch", "\nGiB", "GB sent\na step", "copied\na step", "tokens\n/s", "GPU-\nhours"),
    )  # fmt: skip
    for one in found:
        table.add_row(
            *(one[name] for name in names),
            str(one["micro_batch"]),
            f"{one['needed_bytes'] / GIB:.1f}",
            *(f"{one[name] / 1e9:,.0f}" for name in ("link_bytes", "copy_bytes")),
            *(f"{one[name]:,.0f}" for name in ("tokens_per_second", "gpu_hours")),
        )
    if gpus > 1:
        table.caption = (
            "model: its gathered weights kept for a step, or freed after each use; reference: sharded, one forward for "
            "so many micro-batches, or whole on each GPU; gradients reduced each micro-batch or once a step. Ways "
            f"within {_EQUAL:.0%} are equal as far as this can tell"
        )
    return table


def _calls(found: list[dict[str, Any]]) -> Table:
    """The collectives of a step as every rank calls them."""
    title = "The collectives of a step, as every rank calls them"
    table = _table(title, ("of", "collective"), ("ranks", "times", "MB each", "GB sent"))
    for one in found:
        sizes = (one["elements"] * one["item_bytes"] / 1e6, one["link_bytes"] / 1e9)
        counts = (one["ranks"], one["times"])
        table.add_row(one["of"], one["kind"], *map("{:,}".format, counts), *map("{:,.3f}".format, sizes))
    return table


def _table(title: str, words: Iterable[str], numbers: Iterable[str]) -> Table:
    """An empty table with columns of words, then of numbers."""
    columns = [Column(heading, no_wrap=True) for heading in words]
    columns += [Column(heading, justify="right", no_wrap=True) for heading in numbers]
    return Table(*columns, title=title, box=SIMPLE, padding=(0, 1, 0, 0))


def _advice(result: dict[str, Any]) -> str:
    """The fastest way and, beside a configuration that fits, what makes it that."""
    best, hours = result["combinations"][0], result["gpu_hours"]
    if not result["fits"]:
        return f"Fastest that fits: {', '.join(best['settings'])}: {best['gpu_hours']:,.0f} GPU-hours."
    if best["gpu_hours"] > (1 - _EQUAL) * hours:
        return f"This configuration is as fast as any, as far as this can tell: within {_EQUAL:.0%}."
    now = result["speed"]
    return (
        f"Fastest: {', '.join(best['settings'])}: {best['gpu_hours']:,.0f} GPU-hours instead of {hours:,.0f}, as a "
        f"step copies {best['copy_bytes'] / 1e9:,.0f} GB instead of {now['copy_bytes'] / 1e9:,.0f} and sends "
        f"{best['link_bytes'] / 1e9:,.0f} instead of {now['link_bytes'] / 1e9:,.0f}. What is learnt is the same."
    )
