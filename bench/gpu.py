"""Checks and measures every kernel on one GPU, beside eager PyTorch, torch.compile and the peers; or a training step.

    python bench/gpu.py --out DIR [--only linear_ce_kl,rope] [--train [3|16]] [--allow-missing] [--dry-run]

Writes results.json (checked against bench/schema.json), results.txt and a plot a kernel. A failed check, or a peer
that isn't installed, makes the exit code 1; `--allow-missing` lets peers be missing. `--dry-run` needs no GPU: it
runs every check and every contestant that a CPU can, at tiny shapes, and its times mean nothing.

`--train` measures the trainer in place of the kernels: 7.3 billion random weights and their frozen copy (15 GB of
scratch in TMPDIR, and most of a GPU of 141 GB), CE + KL, 3 and 16 sequences of 1024; see bench/training.py.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from cases import all_cases
from measuring import Case, Inputs, Run, Sizes
from rich.console import Console
from rich.table import Table
from schema import Ceilings, Check, Measurement, Results, Skipped, Training
from torch import Tensor
from training import TrainBench, TrainSizes, unlike

mpl.use("Agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
GPU_ONLY = {
    "liger",
    "cut",
    "torch fused, fp32",
    "FlashAttention-2",
    "cuDNN",
    "FlexAttention",
}  # peers that a CPU cannot run
PACKAGES = ("torch", "triton", "transformers", "liger-kernel", "cut-cross-entropy")
SETS = 3  # of inputs, taken in turn: what one run left in the cache is of no use to the next
RUNS = 10  # that must agree bit for bit


class Bench:
    """One run: where it measures, and what it has found."""

    def __init__(self, *, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.device = torch.device("cpu" if dry_run else "cuda")
        self.dtype = torch.float32 if dry_run else torch.bfloat16
        self.sizes = Sizes.tiny() if dry_run else Sizes()
        self.checks: list[Check] = []
        self.measurements: list[Measurement] = []
        self.skipped: list[Skipped] = []
        self.training: list[Training] = []
        self._truths: dict[str, tuple[Inputs, tuple[Tensor, ...]]] = {}  # inputs and their float64 results

    def time(
        self, run: Callable[[Any], object], inputs: Sequence[Any], seconds: float = 1.0, least: int = 20
    ) -> list[float]:
        """Milliseconds of single runs, sorted; after three that don't count."""
        for i in range(SETS):
            run(inputs[i % len(inputs)])
        if self.dry_run:
            times = []
            for given in inputs:
                started = time.perf_counter()
                run(given)
                times.append((time.perf_counter() - started) * 1e3)
            return sorted(times)
        events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        deadline = time.monotonic() + seconds
        while len(events) < least or (time.monotonic() < deadline and len(events) < 200):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(2_000_000)  # about a millisecond, in which the launches queue up: their cost isn't timed
            start.record()
            run(inputs[len(events) % len(inputs)])
            end.record()
            end.synchronize()
            events.append((start, end))
        return sorted(start.elapsed_time(end) for start, end in events)

    def ceilings(self) -> Ceilings:
        """Copy bandwidth and matrix-product rate."""
        elements, side = (1 << 12, 64) if self.dry_run else (1 << 29, 8192)
        copies = [{"x": torch.randn(elements, device=self.device).to(self.dtype)} for _ in range(2)]
        target = torch.empty_like(copies[0]["x"])
        copy = statistics.median(self.time(lambda i: target.copy_(i["x"]), copies))
        squares = [{"x": torch.randn(side, side, device=self.device).to(self.dtype)} for _ in range(SETS)]
        gemm = statistics.median(self.time(lambda i: i["x"] @ i["x"], squares))
        moved = 2 * elements * target.element_size()
        return Ceilings(copy_bytes_per_second=moved / copy * 1e3, gemm_flops_per_second=2 * side**3 / gemm * 1e3)

    def check(self, case: Case) -> None:
        """The error of each result against float64, and the bits over ten runs."""
        given = case.checked(self.device, self.dtype)
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
        self.checks.append(
            Check(
                kernel=case.kernel, dtype=_name(self.dtype), error=max(errors), plain_error=max(plain_errors),
                runs=RUNS, equal_bits=equal_bits, passed=equal_bits and right,
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
        """Every contestant at every size."""
        backend = "aot_eager" if self.dry_run else "inductor"
        contestants: dict[str, Callable[[], Run]] = {
            "ours": lambda: case.ours,
            "eager": lambda: case.eager,
            **({"torch.compile": lambda: case.compiled(backend)} if case.compiles else {}),
            **case.peers,
        }
        for name, make in contestants.items():
            try:
                if self.dry_run and name in GPU_ONLY:
                    raise RuntimeError("needs a GPU")
                run = make()
                error = self._error_of(case, run)
                limited = name == "eager" and case.eager_sizes is not None
                for size in case.eager_sizes if limited else case.sizes:
                    self.measurements.append(self._measure_one(case, name, run, size, error))
            except ImportError as problem:
                self.skipped.append(Skipped(kernel=case.kernel, contestant=name, reason=f"missing: {problem}"))
            except Exception as problem:  # whatever a peer raises, what the others took must not be lost
                reason = str(problem).splitlines()[0] if str(problem) else repr(problem)
                self.skipped.append(Skipped(kernel=case.kernel, contestant=name, reason=reason))
                if not self.dry_run:
                    torch.cuda.empty_cache()

    def _measure_one(self, case: Case, contestant: str, run: Run, size: int, error: float | None) -> Measurement:
        sets = SETS if case.flops is None else 1  # a chunk of logits alone is larger than the cache
        inputs = [case.make(size, self.device, self.dtype) for _ in range(sets)]
        times = self.time(run, inputs)
        peak = None
        if not self.dry_run:
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            run(inputs[0])
            peak = torch.cuda.max_memory_allocated() - before
        leaves = [x for x in inputs[0].values() if isinstance(x, Tensor) and x.requires_grad]
        median = statistics.median(times)
        return Measurement(
            kernel=case.kernel,
            contestant=contestant,
            tokens=size,
            milliseconds=median,
            fastest=times[0],
            slowest=times[-1],
            repeats=len(times),
            error=error,
            peak_bytes=peak,
            gradient_bytes=sum(x.numel() * x.element_size() for x in leaves),
            bytes_per_second=case.traffic(size) / median * 1e3 if case.traffic else None,
            flops_per_second=case.flops(size) / median * 1e3 if case.flops else None,
        )


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


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
    return versions


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        finished = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    except FileNotFoundError:  # no git
        return "unknown"
    return finished.stdout.strip() or "unknown"


def print_table(results: Results, console: Console) -> None:
    """Checks, ceilings and measurements, with each contestant's time as a multiple of ours."""
    title = f"{results.device}, {results.dtype}" + (": a dry run, whose times mean nothing" if results.dry_run else "")
    ours = {(m.kernel, m.tokens): m.milliseconds for m in results.measurements if m.contestant == "ours"}
    columns = ("kernel", "size", "contestant", "ms", "x ours", "error", "peak MiB", "% copy", "% GEMM")
    table = Table(*columns, title=title)
    for m in results.measurements:
        share = [
            "" if rate is None else f"{100 * rate / ceiling:.0f}"
            for rate, ceiling in (
                (m.bytes_per_second, results.ceilings.copy_bytes_per_second),
                (m.flops_per_second, results.ceilings.gemm_flops_per_second),
            )
        ]
        own = ours.get((m.kernel, m.tokens))
        factor = f"{m.milliseconds / own:.2f}" if own else ""
        error = "" if m.error is None else f"{m.error:.1e}"
        peak = "" if m.peak_bytes is None else f"{m.peak_bytes / 2**20:.0f}"
        table.add_row(m.kernel, str(m.tokens), m.contestant, f"{m.milliseconds:.3f}", factor, error, peak, *share)
    if results.measurements:
        console.print(table)
    if results.training:
        print_training(results, console)
    for check in results.checks:
        verdict = "passed" if check.passed else "FAILED"
        bits = "equal" if check.equal_bits else "UNEQUAL"
        console.print(
            f"{check.kernel}: {verdict}: error {check.error:.2e}, plain {check.plain_error:.2e}, "
            f"bits {bits} over {check.runs} runs"
        )
    for skipped in results.skipped:
        console.print(f"{skipped.kernel}: {skipped.contestant} skipped: {skipped.reason}")


def print_training(results: Results, console: Console) -> None:
    """Training steps, each contestant's speed as a share of ours, and peak memory beside the plan's."""
    columns = (
        "sequences", "micro-batches", "contestant", "again", "moments", "ms", "tokens/s", "ours x", "% GEMM", "loss",
        "peak GiB", "planned",
    )  # fmt: skip
    table = Table(*columns, title=f"training on {results.device}, CE + KL")
    own = {(t.sequences, t.micro_batches): t.tokens_per_second for t in results.training if t.contestant == "ours"}
    for t in results.training:
        factor = own.get((t.sequences, t.micro_batches), 0) / t.tokens_per_second
        peak = "" if t.peak_bytes is None else f"{t.peak_bytes / 2**30:.1f}"
        planned = "" if t.planned_bytes is None else f"{sum(t.planned_bytes.values()) / 2**30:.1f}"
        table.add_row(
            str(t.sequences), str(t.micro_batches), t.contestant, t.checkpointing, t.moments or "",
            f"{t.milliseconds:.1f}", f"{t.tokens_per_second:,.0f}", f"{factor:.2f}", f"{100 * t.gemm_share:.0f}",
            f"{t.loss:.4f}", peak, planned,
        )  # fmt: skip
    console.print(table)
    for t in results.training:
        for name, size in (t.resident_bytes or {}).items():
            planned = (t.planned_bytes or {}).get(name, 0)
            console.print(f"x {t.sequences}: {name} {size / 2**30:.3f} GiB, planned {planned / 2**30:.3f}")


def plot_training(results: Results, directory: Path) -> None:
    """Tokens a second by contestant, and the peak beside the plan."""
    figure, (speed, peak) = pyplot.subplots(1, 2, figsize=(12, 4), layout="constrained")
    names = [f"{t.contestant} x {t.sequences}{' step' if t.optimiser else ''}" for t in results.training]
    speed.barh(names, [t.tokens_per_second for t in results.training])
    speed.set(xlabel="tokens/s")
    planned = [sum((t.planned_bytes or {}).values()) / 2**30 for t in results.training]
    peak.barh(names, planned, height=0.8, color="lightgrey", label="planned")
    peak.barh(names, [(t.peak_bytes or 0) / 2**30 for t in results.training], height=0.4, label="measured")
    peak.set(xlabel="GiB at the peak", yticklabels=[])
    peak.legend()
    figure.suptitle(f"training, {results.device}" + (" (dry run)" if results.dry_run else ""))
    figure.savefig(directory / "training.svg")
    pyplot.close(figure)


def plot(results: Results, axes: dict[str, str], directory: Path) -> None:
    """Speed, or time where no product of matrices is made, and memory against the size; a picture a kernel."""
    for kernel in dict.fromkeys(m.kernel for m in results.measurements):
        figure, (time_axes, memory_axes) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
        for contestant in dict.fromkeys(m.contestant for m in results.measurements if m.kernel == kernel):
            points = [m for m in results.measurements if (m.kernel, m.contestant) == (kernel, contestant)]
            tokens = [m.tokens for m in points]
            width = 2.5 if contestant == "ours" else 1.2
            speeds = [m.flops_per_second / 1e12 for m in points if m.flops_per_second is not None]
            times = [m.milliseconds for m in points]
            time_axes.plot(tokens, speeds or times, marker="o", label=contestant, linewidth=width)
            if all(m.peak_bytes is not None for m in points):
                memory_axes.plot(tokens, [m.peak_bytes / 2**30 for m in points], marker="o", linewidth=width)
        unit = axes[kernel]
        if any(m.flops_per_second is not None for m in results.measurements if m.kernel == kernel):
            time_axes.set(xlabel=unit, ylabel="TFLOP/s", xscale="log", ylim=(0, None))
        else:
            time_axes.set(xlabel=unit, ylabel="milliseconds", xscale="log", yscale="log")
        memory_axes.set(xlabel=unit, ylabel="GiB beyond the inputs", xscale="log")
        time_axes.legend()
        figure.suptitle(f"{kernel}, {results.dtype}, {results.device}" + (" (dry run)" if results.dry_run else ""))
        figure.savefig(directory / f"{kernel}.svg")
        pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--only", help=f"comma-separated, of {', '.join(all_cases(Sizes.tiny()))}")
    parser.add_argument(
        "--train", nargs="?", const="all", metavar="SEQUENCES",
        help="measure the training step, not the kernels; with a micro-batch of so many sequences alone",
    )  # fmt: skip
    parser.add_argument("--allow-missing", action="store_true", help="peers that aren't installed are left out")
    parser.add_argument("--commit", help="of this tree, where it isn't a git repository")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("no CUDA device here; --dry-run runs what a CPU can")
    if options.train and options.only:
        parser.error("--only is for kernels, --train for the training step")
    train_sizes = TrainSizes.tiny() if options.dry_run else TrainSizes()
    if options.train not in (None, "all", *map(str, train_sizes.sequences)):
        parser.error(
            f"--train {options.train}: must be one of {', '.join(map(str, train_sizes.sequences))}, or nothing"
        )
    torch.manual_seed(0)
    if options.dry_run:
        torch.set_num_threads(1)
    bench = Bench(dry_run=options.dry_run)
    cases = all_cases(bench.sizes)
    names = options.only.split(",") if options.only else list(cases)
    if unknown := set(names) - set(cases):
        parser.error(f"--only: no kernel {', '.join(sorted(unknown))}; there are {', '.join(cases)}")
    # only where times mean nothing: another version of pydantic words the same schema otherwise
    if options.dry_run and json.loads((HERE / "schema.json").read_text("utf-8")) != Results.model_json_schema():
        print("bench/schema.json is old: python bench/schema.py > bench/schema.json")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    commit = options.commit or _commit()
    ceilings = bench.ceilings()

    def save() -> Results:
        """After every kernel and contestant: an interrupted run keeps what it has measured."""
        results = Results(
            dry_run=options.dry_run,
            commit=commit,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            device=platform.processor() or "cpu" if options.dry_run else torch.cuda.get_device_name(),
            dtype=_name(bench.dtype),
            versions=_versions(),
            checks=bench.checks,
            ceilings=ceilings,
            measurements=bench.measurements,
            training=bench.training,
            skipped=bench.skipped,
        )
        text = results.model_dump_json(indent=2)
        Results.model_validate_json(text)
        (options.out / "results.json").write_text(text + "\n", encoding="utf-8")
        return results

    if options.train:
        chosen = train_sizes.sequences if options.train == "all" else (int(options.train),)
        sizes = dataclasses.replace(train_sizes, sequences=chosen)
        TrainBench(bench, sizes, ceilings.gemm_flops_per_second, save).run()
    else:
        for name in names:
            bench.check(cases[name])
            bench.measure(cases[name])
            save()
    results = save()
    with (options.out / "results.txt").open("w", encoding="utf-8") as file:
        print_table(results, Console(file=file, width=120))
    print_table(results, Console(width=None if sys.stdout.isatty() else 120))
    plot(results, {name: case.axis for name, case in cases.items()}, options.out)
    if results.training:
        plot_training(results, options.out)
    failed = [check.kernel for check in results.checks if not check.passed]
    failed += unlike(results.training, options.dry_run)
    print(*failed, sep="\n", end="\n" if failed else "")
    missing = [
        s for s in results.skipped if not options.dry_run and not (options.allow_missing and "missing" in s.reason)
    ]
    return int(bool(failed or missing))


if __name__ == "__main__":
    sys.exit(main())
