"""Checks every kernel against float64, and measures it beside eager PyTorch, torch.compile and the peers."""

import gc
import statistics
from collections.abc import Callable, Sequence

import torch
from findings import Findings
from measuring import Case, Inputs, Run, Sizes
from schema import Check, Measurement
from stopwatch import SETS, Lane, Stopwatch
from torch import Tensor

GPU_ONLY = {
    "liger",
    "cut",
    "torch fused, fp32",
    "FlashAttention-2",
    "cuDNN",
    "FlexAttention",
}  # peers that a CPU cannot run
RUNS = 10  # that must agree bit for bit


class KernelBench:
    """The measurements of the kernels."""

    def __init__(self, findings: Findings, stopwatch: Stopwatch, sizes: Sizes, dtype: torch.dtype) -> None:
        self.findings, self.stopwatch, self.sizes, self.dtype = findings, stopwatch, sizes, dtype
        self._on_gpu = stopwatch.device.type == "cuda"
        self._truths: dict[str, tuple[Inputs, tuple[Tensor, ...]]] = {}  # inputs and their float64 results

    def check(self, case: Case) -> None:
        """The error of each result against float64, and the bits over ten runs."""
        given = case.checked(self.stopwatch.device, self.dtype)
        ours = [self._copy_and_run(case.ours, given) for _ in range(RUNS)]
        plain = self._copy_and_run(case.eager, given)
        # adamw's specification is in the bits themselves: its float64 is the plain run
        exact = case.kernel == "adamw"
        truth = plain if exact else self._copy_and_run(case.eager, given, torch.float64)
        self._truths[case.kernel] = given, _without_vectors(case, truth)
        errors, plain_errors = (list(map(_error, results, truth)) for results in (ours[0], plain))
        equal_bits = all(torch.equal(a, b) for other in ours[1:] for a, b in zip(ours[0], other, strict=True))
        allowed = [
            0.0 if exact else max(2 * plain_error, torch.finfo(result.dtype).eps)
            for result, plain_error in zip(ours[0], plain_errors, strict=True)
        ]
        if case.vectors:
            allowed[0] = _allowed_mean(truth[: 1 + case.vectors], errors[1 : 1 + case.vectors])
        right = all(error <= limit for error, limit in zip(errors, allowed, strict=True))
        self.findings.checks.append(
            Check(
                kernel=case.kernel, dtype=str(self.dtype).removeprefix("torch."), error=max(errors),
                plain_error=max(plain_errors), runs=RUNS, equal_bits=equal_bits, passed=equal_bits and right,
            )
        )  # fmt: skip

    def _error_of(self, case: Case, run: Run) -> float | None:
        """The largest error of a contestant's results; None where they aren't the operation's (bare products)."""
        given, truth = self._truths[case.kernel]
        results = _without_vectors(case, self._copy_and_run(run, given))
        return max(map(_error, results, truth)) if len(results) == len(truth) else None

    @staticmethod
    def _copy_and_run(run: Run, inputs: Inputs, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        def copy(x: object) -> object:
            if isinstance(x, list):
                return [copy(y) for y in x]
            if not isinstance(x, Tensor):
                return x
            wanted = dtype if dtype and x.is_floating_point() else x.dtype
            return x.detach().to(wanted, copy=True).requires_grad_(x.requires_grad)

        return run({name: copy(x) for name, x in inputs.items()})

    def measure(self, case: Case) -> None:
        """Every contestant at every size, in turns."""
        backend = "inductor" if self._on_gpu else "aot_eager"
        contestants: dict[str, Callable[[], Run]] = {
            "ours": lambda: case.ours,
            "eager": lambda: case.eager,
            **({"torch.compile": lambda: case.compiled(backend)} if case.compiles else {}),
            **case.peers,
        }
        runs: dict[str, tuple[Run, float | None]] = {}  # and errors
        for name, make in contestants.items():
            try:
                if not self._on_gpu and name in GPU_ONLY:
                    raise RuntimeError("needs a GPU")
                run = make()
                runs[name] = run, self._error_of(case, run)
            except Exception as problem:  # whatever a peer raises, what the others took must not be lost
                self.findings.skip(case.kernel, name, problem)
        for size in case.sizes:
            self._measure_size(case, size, runs)
            gc.collect()
            if self._on_gpu:
                torch.cuda.empty_cache()

    def _measure_size(self, case: Case, size: int, runs: dict[str, tuple[Run, float | None]]) -> None:
        """One size; who fails at it is taken out of `runs`."""
        sets = SETS if case.flops is None else 1  # a chunk of logits alone is larger than the cache
        lanes: dict[str, Lane] = {}
        peaks: dict[str, int | None] = {}

        def failed(name: str, problem: Exception) -> None:
            self.findings.skip(case.kernel, name, problem)
            del runs[name]

        for name, (run, _) in list(runs.items()):
            if name == "eager" and case.eager_sizes is not None and size not in case.eager_sizes:
                continue
            try:
                inputs = [case.make(size, self.stopwatch.device, self.dtype) for _ in range(sets)]
                peaks[name] = self._peak(run, inputs[0])
                lanes[name] = Lane(run, inputs)
            except Exception as problem:  # as above
                failed(name, problem)
        for name, times in self.stopwatch.in_turns(lanes, failed).items():
            leaves = [x for x in lanes[name].inputs[0].values() if isinstance(x, Tensor) and x.requires_grad]
            median = statistics.median(times)
            self.findings.measurements.append(
                Measurement(
                    kernel=case.kernel,
                    contestant=name,
                    tokens=size,
                    milliseconds=median,
                    fastest=times[0],
                    slowest=times[-1],
                    repeats=len(times),
                    error=runs[name][1],
                    peak_bytes=peaks[name],
                    gradient_bytes=sum(x.numel() * x.element_size() for x in leaves),
                    bytes_per_second=case.traffic(size) / median * 1e3 if case.traffic else None,
                    flops_per_second=case.flops(size) / median * 1e3 if case.flops else None,
                )
            )

    def _peak(self, run: Run, inputs: Inputs) -> int | None:
        """Bytes beyond what lies there before a run; the second one, for the first one compiles and keeps."""
        if not self._on_gpu:
            return None
        run(inputs)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(inputs)
        return torch.cuda.max_memory_allocated() - before


def _error(actual: Tensor, truth: Tensor) -> float:
    actual, truth = actual.detach().double(), truth.detach().double()
    return float((actual - truth).norm() / truth.norm().clamp(min=1e-30))


def _without_vectors(case: Case, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What peers give, too."""
    given = any(x.dim() == 1 for x in results[1 : 1 + case.vectors])
    return (results[0], *results[1 + case.vectors :]) if given else results


def _allowed_mean(truth: Sequence[Tensor], errors: Sequence[float]) -> float:
    """The relative error that the mean of vectors with these errors e can have, |mean e| <= norm(e) / sqrt(N)."""
    mean, *vectors = (x.detach() for x in truth)
    total = sum(error * float(x.norm()) / x.numel() ** 0.5 for error, x in zip(errors, vectors, strict=True))
    return total / abs(float(mean)) + 8 * torch.finfo(torch.float32).eps  # of summing in float32
