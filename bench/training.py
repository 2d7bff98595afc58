"""bench/gpu.py --train: a training step, CE + KL against a frozen copy, beside transformers' model doing the same.

Random weights, documents of random tokens packed into sequences. Both begin with the same weights and batches, and
their losses are compared: a contestant that does other work shows.
"""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from schema import Skipped, Training
from torch import Tensor
from torch.distributed.tensor import DTensor

import vikhr_kernels
from vikhr_fast.config import (
    BatchConfig,
    DataConfig,
    KLConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
)
from vikhr_fast.corpus.packing import IGNORED, Batch
from vikhr_fast.model import Checkpointing, Mistral, ModelConfig
from vikhr_fast.model_config import write_config
from vikhr_fast.objective import Objective
from vikhr_fast.plan.command import MISTRAL_7B_40K
from vikhr_fast.plan.memory import Parameters, memory
from vikhr_fast.plan.speed import RESERVED, attention_flops
from vikhr_fast.ranks import Ranks, process_group
from vikhr_fast.train import loop
from vikhr_fast.train.inputs import Inputs
from vikhr_fast.train.interruption import Interruption
from vikhr_fast.train.sharding import load_sharded
from vikhr_fast.weights import write_weights

if TYPE_CHECKING:
    from gpu import Bench

MEAN_LENGTH = 400  # of a document
ACCUMULATION = 8
STEPS = 3  # of the optimiser that are timed, after one that isn't
# What leaves less in memory for more time, in the order of trying: dtype of the moments, what is computed again.
SETTINGS: tuple[tuple[str, Checkpointing], ...] = (
    ("float32", "none"), ("bfloat16", "none"), ("float32", "selective"), ("bfloat16", "selective"),
    ("bfloat16", "full"),
)  # fmt: skip


@dataclass(frozen=True)
class TrainSizes:
    """A model and the micro-batches that are measured."""

    model: ModelConfig = MISTRAL_7B_40K
    length: int = 1024
    sequences: tuple[int, ...] = (3, 16)

    @classmethod
    def tiny(cls) -> "TrainSizes":
        """For a machine without a GPU."""
        return cls(
            ModelConfig(
                vocab_size=211, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, head_dim=8, max_position_embeddings=64, initializer_range=0.3,
            ),
            32,
            (2,),
        )  # fmt: skip


def random_batch(sizes: TrainSizes, sequences: int, seed: int) -> Batch:
    """Sequences filled with documents of random tokens and lengths; no target crosses from one to the next."""
    generator = torch.Generator().manual_seed(seed)
    total, bounds = sequences * sizes.length, [0]
    mean = min(MEAN_LENGTH, sizes.length // 2)
    while bounds[-1] < total:
        drawn = int(torch.empty(()).exponential_(1 / mean, generator=generator)) + 2
        bounds.append(min(bounds[-1] + drawn, (bounds[-1] // sizes.length + 1) * sizes.length))
    tokens = torch.randint(sizes.model.vocab_size, (total,), generator=generator)
    targets = tokens.roll(-1)
    targets[torch.tensor(bounds[1:]) - 1] = IGNORED
    return Batch(tokens, targets, torch.tensor(bounds, dtype=torch.int32), torch.zeros_like(tokens))


def write_random_model(directory: Path, shape: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
    """A Hugging Face directory of normal weights, drawn on the device tensor by tensor."""
    generator = torch.Generator(device).manual_seed(0)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, parameter in Mistral(shape, device="meta").named_parameters():
            value = torch.ones(parameter.shape, device=device)
            if parameter.dim() > 1:
                value.normal_(0, shape.initializer_range, generator=generator)
            yield name, value.to("cpu", dtype)

    directory.mkdir()
    write_config(directory, shape, dtype)
    write_weights(directory, tensors())


def flops(shape: ModelConfig, batch: Batch) -> float:
    """Of training and of the reference's forward, as a run's metrics count them."""
    work, attention = (
        Parameters.of(shape).multiplied * len(batch.tokens),
        attention_flops(shape, batch.seen_pairs(shape.sliding_window)),
    )
    return 8 * work + 4.5 * attention


MicroBatch = Callable[[Batch], Tensor]  # makes gradients and returns the loss


def ours(model: Path, ranks: Ranks, dtype: torch.dtype, checkpointing: Checkpointing, **options: bool) -> MicroBatch:
    """This package's micro-batch, as the trainer runs it on one GPU, its gradients in the compute dtype."""
    compiled = options.get("compiled", False)
    ops = vikhr_kernels if compiled or ranks.device.type == "cuda" else vikhr_kernels.reference
    arguments: dict[str, Any] = {"ops": ops, "compute": dtype, "storage": dtype}
    student = load_sharded(model, ranks, **arguments)
    student.set_checkpointing(checkpointing)
    frozen = load_sharded(model, ranks, **arguments, float8=options.get("float8", False)).requires_grad_(False)
    if compiled:
        student.compile_layers()
        frozen.compile_layers()
    objective = Objective(KLConfig(), student, frozen, sources=["random"])

    def run(batch: Batch) -> Tensor:
        num_tokens = (batch.targets != IGNORED).sum()
        loss, _ = objective(
            batch.tokens, batch.targets, batch.cu_seqlens, batch.sources, num_tokens=num_tokens, weights=(1.0, 1.0)
        )
        loss.backward()
        return loss.detach()

    return run


def transformers(
    directory: Path, ranks: Ranks, dtype: torch.dtype, checkpointing: Checkpointing, *, length: int, liger: bool
) -> MicroBatch:
    """Hugging Face's Mistral with SDPA, compiled, Liger's kernels inside, the KL in plain PyTorch."""
    from transformers import AutoModelForCausalLM

    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_mistral

        apply_liger_kernel_to_mistral(
            rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False
        )
    student, frozen = (
        AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa").to(ranks.device)
        for _ in range(2)
    )
    frozen.requires_grad_(False)
    if checkpointing != "none":
        student.gradient_checkpointing_enable({"use_reentrant": False})
    backend = "inductor" if ranks.device.type == "cuda" else "aot_eager"
    compiled, frozen_compiled = (torch.compile(model, backend=backend) for model in (student.train(), frozen.eval()))

    def run(batch: Batch) -> Tensor:
        rows = batch.tokens.view(-1, length)
        starts = batch.cu_seqlens[:-1].repeat_interleave(batch.cu_seqlens.diff(), output_size=len(batch.tokens))
        positions = (torch.arange(len(batch.tokens), device=starts.device) - starts).view(-1, length)
        inputs = {"input_ids": rows, "position_ids": positions, "use_cache": False}
        with torch.no_grad():
            log_q = frozen_compiled(**inputs).logits.flatten(0, 1).float().log_softmax(-1)
        logits = compiled(**inputs).logits.flatten(0, 1).float()
        kept = batch.targets != IGNORED
        log_p = logits.log_softmax(-1)
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
        loss = F.cross_entropy(logits, batch.targets) + (divergence * kept).sum() / kept.sum()
        loss.backward()
        return loss.detach()

    return run


def train_config(model: Path, sizes: TrainSizes, sequences: int, moments: str, checkpointing: str) -> TrainConfig:
    """One optimiser step over 8 micro-batches, as vikhr-7b-1gpu makes it."""
    return TrainConfig(
        model=model,
        output=model.with_name("run"),
        data=DataConfig(train={"random": model}, sequence_length=sizes.length),
        batch=BatchConfig(micro_batch=sequences, sequences_per_step=ACCUMULATION * sequences),
        optimizer=OptimizerConfig(master="split", moments=moments, warmup_steps=0, learning_rate=1e-5),
        runtime=RuntimeConfig(dtype="bfloat16", reduce_each_micro_batch=True, checkpointing=checkpointing),
    )


def resident_bytes(training: loop.Training) -> dict[str, int]:
    """Bytes of what lives from step to step, under the names that the plan has for them."""

    def size(tensors: Iterator[Tensor]) -> int:
        return sum((x.to_local() if isinstance(x, DTensor) else x).nbytes for x in tensors)

    states = list(training.optimizer.state.values())
    return {
        "parameters": size(iter(training.model.parameters())),
        "remainders": size(state["remainder"] for state in states),
        "moments": size(state[name] for state in states for name in ("exp_avg", "exp_avg_sq")),
        "gradients": size(iter(training.optimizer._gradients.values())),
        "reference": size(iter(training.objective._reference.parameters())),
    }


class TrainBench:
    """The measurements of --train, into the lists of a `Bench`."""

    def __init__(self, bench: "Bench", sizes: TrainSizes, gemm: float, save: Callable[[], object]) -> None:
        self.bench, self.sizes, self.gemm, self.save = bench, sizes, gemm, save

    def run(self) -> None:
        """Every contestant at every size, then whole steps."""
        # without phases of training, nobody could tell a hang from a long measurement
        runtime = RuntimeConfig(device=self.bench.device.type, threads=1, timeout_seconds=10**6)
        with tempfile.TemporaryDirectory() as scratch, process_group(runtime) as ranks:
            model = Path(scratch) / "model"
            write_random_model(model, self.sizes.model, ranks.device, self.bench.dtype)
            for sequences in self.sizes.sequences:
                self._micro_batches(model, ranks, sequences)
            for sequences in self.sizes.sequences:
                self._whole_step(model, ranks, sequences)

    def _micro_batches(self, model: Path, ranks: Ranks, sequences: int) -> None:
        dtype, dry = self.bench.dtype, self.bench.dry_run
        float8 = not dry and torch.cuda.get_device_capability() >= (8, 9)
        contestants: dict[str, Callable[[Checkpointing], MicroBatch]] = {
            "ours": lambda again: ours(model, ranks, dtype, again),
            "ours, compiled layers": lambda again: ours(model, ranks, dtype, again, compiled=True),
            **(
                {"ours, float8 reference": lambda again: ours(model, ranks, dtype, again, float8=True)}
                if float8 or dry
                else {}
            ),
            "transformers" if dry else "transformers + Liger": lambda again: transformers(
                model, ranks, dtype, again, length=self.sizes.length, liger=not dry
            ),
        }
        batches = [random_batch(self.sizes, sequences, seed).to(ranks.device) for seed in range(2)]
        for name, make in contestants.items():

            def measure(again: Checkpointing, make: Callable[[Checkpointing], MicroBatch] = make) -> dict[str, Any]:
                return self._measure(make(again), batches)

            self._try(name, sequences, measure, ("none", "selective"))

    def _measure(self, run: MicroBatch, batches: list[Batch]) -> dict[str, Any]:
        loss = float(run(batches[0]))
        times = self.bench.time(run, batches, least=10)
        return {"loss": loss, "times": times, "flops": flops(self.sizes.model, batches[0]), "batches": 1}

    def _whole_step(self, model: Path, ranks: Ranks, sequences: int) -> None:
        available = torch.cuda.get_device_properties(0).total_memory if not self.bench.dry_run else float("inf")
        fitting = [
            (moments, again)
            for moments, again in SETTINGS
            if sum(memory(train_config(model, self.sizes, sequences, moments, again), self.sizes.model, 1).values())
            + RESERVED
            <= available
        ]
        for moments, again in fitting:
            config = train_config(model, self.sizes, sequences, moments, again)
            if self._try("ours", sequences, lambda _, c=config: self._steps(c, ranks), (again,), moments):
                return

    def _steps(self, config: TrainConfig, ranks: Ranks) -> dict[str, Any]:
        inputs = Inputs(
            train={"random": None}, validation={}, corpus=None, model=self.sizes.model, support=None, questions={},
            num_steps=1 + STEPS,
        )  # fmt: skip
        training = loop.Training(config, inputs, ranks, Interruption())
        batches = [random_batch(self.sizes, config.batch.micro_batch, seed) for seed in range(ACCUMULATION)]
        if ranks.device.type == "cuda":
            batches = [batch.pinned() for batch in batches]
        first, times = training._step(0, batches), []
        for step in range(1, 1 + STEPS):
            started = time.perf_counter()
            training._step(step, batches)  # its report waits for the device
            times.append((time.perf_counter() - started) * 1e3)
        return {
            "loss": first.loss,
            "times": sorted(times),
            "flops": sum(flops(self.sizes.model, batch) for batch in batches),
            "batches": ACCUMULATION,
            "resident": resident_bytes(training),
            "planned": memory(config, self.sizes.model, 1),
        }

    def _try(
        self,
        name: str,
        sequences: int,
        measure: Callable[[Checkpointing], dict[str, Any]],
        settings: tuple[Checkpointing, ...],
        moments: str | None = None,
    ) -> bool:
        """Measures with the first setting whose memory suffices; whether there was one."""
        on_gpu, reasons = self.bench.device.type == "cuda", []
        for again in settings:
            torch._dynamo.reset()
            gc.collect()
            if on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                found = measure(again)
            except Exception as problem:  # whatever a peer raises, what the others took must not be lost
                missing = "missing: " if isinstance(problem, ImportError) else ""
                reasons.append(f"{missing}{again}: {(str(problem) or repr(problem)).splitlines()[0]}")
                if not isinstance(problem, torch.OutOfMemoryError):
                    break
                continue
            seconds, tokens = statistics.median(found["times"]) / 1e3, sequences * self.sizes.length
            self.bench.training.append(
                Training(
                    contestant=name,
                    sequences=sequences,
                    tokens=tokens,
                    micro_batches=found["batches"],
                    optimiser=moments is not None,
                    checkpointing=again,
                    moments=moments,
                    milliseconds=seconds * 1e3,
                    fastest=found["times"][0],
                    slowest=found["times"][-1],
                    repeats=len(found["times"]),
                    loss=found["loss"],
                    flops=found["flops"],
                    flops_per_second=found["flops"] / seconds,
                    gemm_share=found["flops"] / seconds / self.gemm,
                    tokens_per_second=found["batches"] * tokens / seconds,
                    peak_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
                    resident_bytes=found.get("resident"),
                    planned_bytes=found.get("planned"),
                )
            )
            self.save()
            return True
        skipped = Skipped(kernel=f"training x {sequences}", contestant=name, reason="; ".join(reasons))
        self.bench.skipped.append(skipped)
        return False


def unlike(training: list[Training], dry_run: bool) -> list[str]:
    """Contestants whose loss is another than ours on the same batch: they do other work."""
    tolerance = 1e-4 if dry_run else 2e-3
    expected = {t.sequences: t.loss for t in training if t.contestant == "ours" and not t.optimiser}
    return [
        f"{t.contestant} x {t.sequences}: loss {t.loss:.6f}, not {expected[t.sequences]:.6f}"
        for t in training
        if not t.optimiser and t.sequences in expected and "float8" not in t.contestant
        and abs(t.loss - expected[t.sequences]) > tolerance * abs(expected[t.sequences])
    ]  # fmt: skip
