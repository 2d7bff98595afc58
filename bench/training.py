"""The training step, CE + KL against a frozen copy, beside transformers' model doing the same.

Random weights, documents of random tokens packed into sequences. All contestants begin with the same weights and
batches; `equal_work` proves beforehand, on weights to which it matters, that they do the same.
"""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import equal_work
import torch
from contestants import Contestant, Make, contestants
from findings import Findings
from schema import EqualWork, Training
from stopwatch import Lane, Stopwatch
from torch import Tensor

from vikhr_fast.config import (
    BatchConfig,
    DataConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
)
from vikhr_fast.data.packing import IGNORED, Batch
from vikhr_fast.distributed.ranks import Ranks, process_group
from vikhr_fast.model.config import write_config
from vikhr_fast.model.mistral import Checkpointing, Mistral, ModelConfig
from vikhr_fast.model.weights import write_weights
from vikhr_fast.plan.command import MISTRAL_7B_40K
from vikhr_fast.plan.memory import GIB, Parameters, memory
from vikhr_fast.plan.speed import RESERVED, attention_flops
from vikhr_fast.train.inputs import Inputs
from vikhr_fast.train.reference import Reference
from vikhr_fast.train.signals import Interruption
from vikhr_fast.train.state import TrainState
from vikhr_fast.train.step import TrainStep

MEAN_LENGTH = 400  # of a document
ACCUMULATION = 8
STEPS = 3  # of the optimiser that are timed, after one that isn't
TOGETHER = 4096  # tokens of a micro-batch: larger ones fill the memory alone, and contestants come one after the other
# What leaves less in memory for more time, in the order of trying: dtype of the moments, what is computed again.
SETTINGS: tuple[tuple[str, Checkpointing], ...] = (
    ("float32", "none"), ("bfloat16", "none"), ("float32", "selective"), ("bfloat16", "selective"),
    ("bfloat16", "full"),
)  # fmt: skip
Setting = TypeVar("Setting")
Found = TypeVar("Found")


@dataclass(frozen=True)
class TrainSizes:
    """A model and the micro-batches that are measured."""

    name: str = "Mistral-7B, 40,000 pieces"
    model: ModelConfig = MISTRAL_7B_40K
    length: int = 1024
    sequences: tuple[int, ...] = (3, 16)

    @classmethod
    def tiny(cls) -> "TrainSizes":
        """For a machine without a GPU."""
        return cls(
            "tiny",
            ModelConfig(
                vocab_size=211, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, head_dim=8, max_position_embeddings=64, initializer_range=0.3,
            ),
            32,
            (2,),
        )  # fmt: skip

    def cut(self, layers: int) -> "TrainSizes":
        """The same with fewer layers, for GPUs that don't hold all of them."""
        whole = self.model.num_hidden_layers
        if layers == whole:
            return self
        return replace(
            self,
            name=f"{self.name}, {layers} of {whole} layers",
            model=replace(self.model, num_hidden_layers=layers),
        )


def layers_that_fit(available: float) -> int:
    """Of the 7B model in so many bytes: all 32 on a GPU of 141 GB, half on one of 80."""
    return 32 if available > 130 * GIB else 16


def random_batch(sizes: TrainSizes, sequences: int, seed: int, mean: int = MEAN_LENGTH) -> Batch:
    """Sequences filled with documents of random tokens and lengths; no target crosses from one to the next."""
    generator = torch.Generator().manual_seed(seed)
    total, bounds = sequences * sizes.length, [0]
    mean = min(mean, sizes.length // 2)
    while bounds[-1] < total:
        drawn = int(torch.empty(()).exponential_(1 / mean, generator=generator)) + 2
        bounds.append(min(bounds[-1] + drawn, (bounds[-1] // sizes.length + 1) * sizes.length))
    tokens = torch.randint(sizes.model.vocab_size, (total,), generator=generator)
    targets = tokens.roll(-1)
    targets[torch.tensor(bounds[1:]) - 1] = IGNORED
    return Batch(tokens, targets, torch.tensor(bounds, dtype=torch.int32), torch.zeros_like(tokens))


def write_random_model(
    directory: Path, shape: ModelConfig, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> None:
    """A Hugging Face directory of normal weights, drawn on the device tensor by tensor."""
    generator = torch.Generator(device).manual_seed(seed)
    parameters = dict(Mistral(shape, device="meta", dtype=dtype).named_parameters())

    def drawn(name: str) -> Tensor:
        value = torch.ones(parameters[name].shape, device=device)
        return value.normal_(0, shape.initializer_range, generator=generator) if value.dim() > 1 else value

    directory.mkdir()
    write_config(directory, shape, dtype)
    write_weights(directory, parameters, drawn)


def flops(shape: ModelConfig, batch: Batch) -> float:
    """Of training and of the reference's forward, as a run's metrics count them."""
    work, attention = (
        Parameters.of(shape).multiplied * len(batch.tokens),
        attention_flops(shape, batch.seen_pairs(shape.sliding_window)),
    )
    return 8 * work + 4.5 * attention


def train_config(model: Path, sizes: TrainSizes, sequences: int, moments: str, checkpointing: str) -> TrainConfig:
    """One optimiser step over 8 micro-batches, as vikhr-7b-1gpu makes it."""
    return TrainConfig(
        model=model,
        output=model.with_name("run"),
        data=DataConfig(train={"random": model}, sequence_length=sizes.length),
        batch=BatchConfig(micro_batch=sequences, sequences_per_step=ACCUMULATION * sequences),
        optimizer=OptimizerConfig(master="split", moments=moments, warmup_steps=0, learning_rate=1e-5),
        runtime=RuntimeConfig(dtype="bfloat16", checkpointing=checkpointing),
    )


def resident_bytes(train_step: TrainStep) -> dict[str, int]:
    """Bytes of what lives from step to step, under the names that the plan has for them."""

    def size(tensors: Iterator[Tensor]) -> int:
        return sum(x.nbytes for x in tensors)

    states = list(train_step.optimizer.state.values())
    return {
        "parameters": size(iter(train_step.model.parameters())),
        "remainders": size(state["remainder"] for state in states),
        "moments": size(state[name] for state in states for name in ("exp_avg", "exp_avg_sq")),
        "gradients": train_step.optimizer._gradients.num_bytes,
        "reference": size(iter(train_step.objective._reference.parameters())),
    }


@dataclass(frozen=True)
class Ready:
    """A contestant that has made its first micro-batch."""

    contestant: Contestant
    checkpointing: Checkpointing
    loss: float
    peak_bytes: int | None


class TrainBench:
    """Measures training steps on one rank, while its context lasts."""

    def __init__(
        self,
        findings: Findings,
        stopwatch: Stopwatch,
        sizes: TrainSizes,
        dtype: torch.dtype,
        gemm: float,
        threads: int = 1,
    ) -> None:
        self.findings, self.stopwatch, self.sizes, self.dtype, self.gemm = findings, stopwatch, sizes, dtype, gemm
        # without phases of training, nobody could tell a hang from a long measurement
        self._runtime = RuntimeConfig(device=stopwatch.device.type, threads=threads, timeout_seconds=10**6)
        self._on_gpu = stopwatch.device.type == "cuda"

    def __enter__(self) -> "TrainBench":
        with ExitStack() as stack:
            self._scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._ranks: Ranks = stack.enter_context(process_group(self._runtime))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *problem: object) -> None:
        self._stack.close()

    @cached_property
    def _model(self) -> Path:
        directory = self._scratch / "model"
        write_random_model(directory, self.sizes.model, self._ranks.device, self.dtype)
        return directory

    @cached_property
    def _equal(self) -> list[str]:
        """Those whose work is proved equal; the others are skipped."""
        paths = [self._scratch / name for name in ("equal", "equal-reference")]
        for seed, path in enumerate(paths):
            write_random_model(path, equal_work.SHAPE, self._ranks.device, self.dtype, seed)
        shape = TrainSizes("", equal_work.SHAPE, equal_work.LENGTH)
        batch = random_batch(shape, equal_work.SEQUENCES, seed=0, mean=equal_work.MEAN_LENGTH)
        truth = equal_work.documents_alone(*paths, batch)  # before Liger's kernels replace what a CPU can run
        makers = contestants(*paths, self._ranks, self.dtype, equal_work.LENGTH)
        equal = []
        for found in equal_work.compare(makers, truth, batch.to(self._ranks.device), self.dtype):
            if not isinstance(found, EqualWork):
                self.findings.skip("training", *found)
                continue
            self.findings.equal_work.append(found)
            if found.passed:
                equal.append(found.contestant)
            else:
                problem = (
                    f"does other work: loss off by {found.loss_error:.1e}, gradients by {found.gradient_error:.1e}"
                )
                self.findings.skip("training", found.contestant, RuntimeError(problem))
        return equal

    def micro_batches(self, sequences: int) -> None:
        """Every contestant in turns, or one after the other where memory holds no two."""
        batches = [random_batch(self.sizes, sequences, seed).to(self._ranks.device) for seed in range(2)]
        together = sequences * self.sizes.length <= TOGETHER
        for names in [self._equal] if together else [[name] for name in self._equal]:
            self._in_turns(names, sequences, batches)
            self._clear()

    def _in_turns(self, names: list[str], sequences: int, batches: list[Batch]) -> None:
        makers = contestants(self._model, self._model, self._ranks, self.dtype, self.sizes.length)
        settings: tuple[Checkpointing, ...] = ("none", "selective")[: 2 if len(names) == 1 else 1]  # some share a model
        ready: dict[str, Ready] = {}
        for name in names:
            prepare = partial(self._prepare, makers[name], batches[0])
            found = self._first_that_fits(name, sequences, prepare, settings)
            if found:
                ready[name] = found
        del makers
        lanes = {name: Lane(r.contestant.run, batches, r.contestant.forget_gradients) for name, r in ready.items()}
        times = self.stopwatch.in_turns(
            lanes, lambda name, problem: self.findings.skip(f"training x {sequences}", name, problem)
        )
        for name, found in times.items():
            self._record(
                contestant=name, sequences=sequences, times=found, flops=flops(self.sizes.model, batches[0]),
                turns=self.stopwatch.turns if len(lanes) > 1 else 1, checkpointing=ready[name].checkpointing,
                loss=ready[name].loss, peak_bytes=ready[name].peak_bytes,
            )  # fmt: skip

    def _prepare(self, make: Make, batch: Batch, again: Checkpointing) -> Ready:
        contestant, before = make(again), 0
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()  # others' weights, too
        loss = float(contestant.run(batch))
        peak = torch.cuda.max_memory_allocated() - before + contestant.resident_bytes if self._on_gpu else None
        contestant.forget_gradients()
        return Ready(contestant, again, loss, peak)

    def whole_step(self, sequences: int) -> None:
        """AdamW over several micro-batches, with the first settings whose memory suffices."""
        available = torch.cuda.get_device_properties(0).total_memory if self._on_gpu else float("inf")
        configs = {
            setting: train_config(self._model, self.sizes, sequences, *setting)
            for setting in SETTINGS
        }  # fmt: skip
        fitting = tuple(
            setting
            for setting, config in configs.items()
            if sum(memory(config, self.sizes.model, 1).values()) + RESERVED <= available
        )
        found = self._first_that_fits(
            "ours, whole step", sequences, lambda setting: (setting, self._steps(configs[setting])), fitting
        )
        if found:
            (moments, again), fields = found
            self._record(
                contestant="ours", sequences=sequences, checkpointing=again, moments=moments,
                micro_batches=ACCUMULATION, optimiser=True, **fields,
            )  # fmt: skip
        self._clear()

    def _steps(self, config: TrainConfig) -> dict[str, Any]:
        inputs = Inputs(
            train={"random": None}, validation={}, corpus=None, model=self.sizes.model,
            reference=Reference(self.sizes.model, sources=None, support=None, reader=None), questions={},
            num_steps=1 + STEPS, length="short",
        )  # fmt: skip
        train_step = TrainStep(config, inputs, self._ranks, Interruption())
        batches = [random_batch(self.sizes, config.batch.micro_batch, seed) for seed in range(ACCUMULATION)]
        if self._on_gpu:
            batches = [batch.pinned() for batch in batches]
        first, times = train_step(TrainState(), batches), []
        state = TrainState().after(first)
        for _ in range(STEPS):
            started = time.perf_counter()
            state = state.after(train_step(state, batches))  # its result waits for the device
            times.append((time.perf_counter() - started) * 1e3)
        return {
            "loss": first.loss,
            "times": sorted(times),
            "flops": sum(flops(self.sizes.model, batch) for batch in batches),
            "peak_bytes": torch.cuda.max_memory_allocated() if self._on_gpu else None,
            "resident_bytes": resident_bytes(train_step),
            "planned_bytes": memory(config, self.sizes.model, 1),
        }

    def _first_that_fits(
        self, name: str, sequences: int, attempt: Callable[[Setting], Found], settings: tuple[Setting, ...]
    ) -> Found | None:
        """What the first setting whose memory suffices gives; None, and the reasons, where none does."""
        reasons = ["no memory for any setting, by the plan"] if not settings else []
        for setting in settings:
            self._clear()
            try:
                return attempt(setting)
            except Exception as problem:  # whatever a peer raises, what the others took must not be lost
                if not isinstance(problem, torch.OutOfMemoryError):
                    self.findings.skip(f"training x {sequences}", name, problem)
                    return None
                reasons.append(f"{setting}: {str(problem).splitlines()[0]}")
        self.findings.skip(f"training x {sequences}", name, RuntimeError("; ".join(reasons)))
        return None

    def _clear(self) -> None:
        gc.collect()
        if self._on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _record(
        self, *, sequences: int, times: list[float], flops: float, micro_batches: int = 1, **fields: Any
    ) -> None:
        seconds, tokens = statistics.median(times) / 1e3, sequences * self.sizes.length
        defaults = {"optimiser": False, "moments": None, "resident_bytes": None, "planned_bytes": None}
        self.findings.training.append(
            Training(
                model=self.sizes.name, sequences=sequences, tokens=tokens, micro_batches=micro_batches,
                milliseconds=seconds * 1e3, fastest=times[0], slowest=times[-1], repeats=len(times),
                flops=flops, flops_per_second=flops / seconds, gemm_share=flops / seconds / self.gemm,
                tokens_per_second=micro_batches * tokens / seconds, **defaults | fields,
            )
        )  # fmt: skip


def unlike(training: list[Training], dtype: torch.dtype) -> list[str]:
    """Contestants whose loss is another than ours on the same batch: they do other work."""
    tolerance = 1e-4 if dtype == torch.float32 else 2e-3
    expected = {t.sequences: t.loss for t in training if t.contestant == "ours" and not t.optimiser}
    return [
        f"{t.contestant} x {t.sequences}: loss {t.loss:.6f}, not {expected[t.sequences]:.6f}"
        for t in training
        if not t.optimiser and t.sequences in expected
        and abs(t.loss - expected[t.sequences]) > tolerance * abs(expected[t.sequences])
    ]  # fmt: skip
