"""Checks and measures kernels and training step on one GPU, beside eager PyTorch, torch.compile and the peers.

    python bench/gpu.py --out DIR [--budget SECONDS] [--only linear_ce_kl,rope | --train [3|16]] [--layers N]
                        [--allow-missing] [--dry-run]

The most valuable first: the training step, attention, the loss head, the rest. Contestants take turns. After every
step results.json (checked against bench/schema.json) is saved, and at the end results.txt and a plot a kernel. What
`--budget` has no time for is named and left out. A failed check, a contestant that does other work, or a peer that
isn't installed, makes the exit code 1; `--allow-missing` lets peers be missing. `--dry-run` needs no GPU: it runs
every check and every contestant that a CPU can, at tiny shapes, and its times mean nothing.

The training step is that of the 7B model with random weights and a frozen copy (15 GB of scratch in TMPDIR, best in
memory, and most of a GPU of 141 GB); with 16 of its 32 layers on a smaller GPU, or with as many as `--layers` says.

TRITON_OVERRIDE_ARCH=sm80 makes a newer GPU a stand-in for an A100: the kernels are compiled, and their tiles chosen, as
they would be there.
"""

import argparse
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import machine
import torch
from cases import all_cases
from findings import Findings
from kernel_bench import KernelBench
from measuring import Case, Sizes
from schema import Ceilings, Results
from stopwatch import Stopwatch
from tables import plot, plot_training, print_table
from training import TrainBench, TrainSizes, layers_that_fit, unlike

from vikhr_fast.io.console import PlainConsole

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Step:
    """What is measured in one piece.

    Attributes:
        name: for people.
        seconds: that it usually takes on a GPU.
        run: measures.
    """

    name: str
    seconds: float
    run: Callable[[], None]


def within(steps: list[Step], seconds: float | None, findings: Findings, *, dry_run: bool) -> Iterator[Step]:
    """The steps that a budget has time for; the others are noted, and shorter ones after them still come."""
    started = time.monotonic()
    for step in steps:
        usual = 0.0 if dry_run else step.seconds
        if seconds is not None and time.monotonic() - started + usual >= seconds:
            findings.left_out.append(step.name)
        else:
            yield step


def kernel_steps(bench: KernelBench, cases: dict[str, Case]) -> list[Step]:
    """A step a kernel."""

    def run(case: Case) -> None:
        bench.check(case)
        bench.measure(case)

    return [Step(name, 30, lambda case=case: run(case)) for name, case in cases.items()]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="stop when they are over")
    parser.add_argument("--only", help=f"comma-separated, of {', '.join(all_cases(Sizes.tiny()))}")
    parser.add_argument(
        "--train", nargs="?", const="all", metavar="SEQUENCES",
        help="measure the training step alone; with a micro-batch of so many sequences alone",
    )  # fmt: skip
    parser.add_argument("--layers", type=int, metavar="N", help="of the model that is trained")
    parser.add_argument("--allow-missing", action="store_true", help="peers that aren't installed are left out")
    parser.add_argument("--commit", help="of this tree, where it isn't a git repository")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("no CUDA device here; --dry-run runs what a CPU can")
    if options.train and options.only:
        parser.error("--only is for kernels, --train for the training step")
    sizes = TrainSizes.tiny() if options.dry_run else TrainSizes()
    if options.train not in (None, "all", *map(str, sizes.sequences)):
        parser.error(f"--train {options.train}: must be one of {', '.join(map(str, sizes.sequences))}, or nothing")
    if options.layers is not None and not 0 < options.layers <= sizes.model.num_hidden_layers:
        parser.error(f"--layers {options.layers}: must be 1 to {sizes.model.num_hidden_layers}")
    cases = all_cases(Sizes.tiny())
    if unknown := set(options.only.split(",") if options.only else ()) - set(cases):
        parser.error(f"--only: no kernel {', '.join(sorted(unknown))}; there are {', '.join(cases)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    # only where times mean nothing: another version of pydantic words the same schema otherwise
    if options.dry_run and json.loads((HERE / "schema.json").read_text("utf-8")) != Results.model_json_schema():
        print("bench/schema.json is old: python bench/schema.py > bench/schema.json")
        return 1
    torch.manual_seed(0)
    if options.dry_run:
        torch.set_num_threads(1)
        device, dtype = torch.device("cpu"), torch.float32
        stopwatch, kernel_sizes, train_sizes = Stopwatch.hasty(device), Sizes.tiny(), TrainSizes.tiny()
    else:
        device, dtype = torch.device("cuda"), torch.bfloat16
        stopwatch, kernel_sizes, train_sizes = Stopwatch(device), Sizes(), TrainSizes()
        options.layers = options.layers or layers_that_fit(torch.cuda.get_device_properties(0).total_memory)
    if options.layers:
        train_sizes = train_sizes.cut(options.layers)
    options.out.mkdir(parents=True, exist_ok=True)
    commit, findings = options.commit or machine.commit(), Findings()
    ceilings = stopwatch.ceilings(*((1 << 12, 64) if options.dry_run else (1 << 29, 8192)), dtype)

    def save(after: str) -> Results:
        """After every step: an interrupted run keeps what it has measured."""
        findings.device_states.append(machine.device_state(after))
        return write(options, commit, dtype, ceilings, findings)

    results = save("products and copies")
    cases = all_cases(kernel_sizes)
    with ExitStack() as stack:
        steps: list[Step] = []
        if not options.train:
            names = options.only.split(",") if options.only else cases
            steps += kernel_steps(KernelBench(findings, stopwatch, kernel_sizes, dtype), {n: cases[n] for n in names})
        if not options.only:
            fewer = dataclasses.replace(stopwatch, least=min(stopwatch.least, 2))  # runs, for each is long
            bench = TrainBench(findings, fewer, train_sizes, dtype, ceilings.gemm_flops_per_second)
            train = training_steps(stack.enter_context(bench), train_sizes, options.train)
            steps = [*train[:-1], *steps, train[-1]]  # the last one says least
        for step in within(steps, options.budget, findings, dry_run=options.dry_run):
            step.run()
            results = save(step.name)
    results = write(options, commit, dtype, ceilings, findings)
    return report(results, options, {name: case.axis for name, case in cases.items()}, dtype)


def training_steps(bench: TrainBench, sizes: TrainSizes, chosen: str | None) -> list[Step]:
    """Micro-batches and whole steps, of one size or of each."""
    sequences = sizes.sequences if chosen in (None, "all") else (int(chosen),)
    return [
        step
        for n in sequences
        for step in (
            Step(f"training x {n}", 90 + 4 * n, lambda n=n: bench.micro_batches(n)),
            Step(f"training x {n}, whole step", 30 + 3 * n, lambda n=n: bench.whole_step(n)),
        )
    ]


def write(
    options: argparse.Namespace, commit: str, dtype: torch.dtype, ceilings: Ceilings, findings: Findings
) -> Results:
    """results.json of what has been found so far."""
    results = Results(
        dry_run=options.dry_run,
        commit=commit,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        device=machine.device_name(),
        dtype=str(dtype).removeprefix("torch."),
        versions=machine.versions(),
        ceilings=ceilings,
        **vars(findings),
    )
    text = results.model_dump_json(indent=2)
    Results.model_validate_json(text)
    (options.out / "results.json").write_text(text + "\n", encoding="utf-8")
    return results


def report(results: Results, options: argparse.Namespace, axes: dict[str, str], dtype: torch.dtype) -> int:
    """Tables and plots; the exit code."""
    with (options.out / "results.txt").open("w", encoding="utf-8") as file:
        print_table(results, PlainConsole(file=file, width=120))
    print_table(results, PlainConsole(width=None if sys.stdout.isatty() else 120))
    plot(results, axes, options.out)
    if results.training:
        plot_training(results, options.out)
    failed = [check.kernel for check in results.checks if not check.passed]
    failed += [f"{equal.contestant}: other work" for equal in results.equal_work if not equal.passed]
    failed += unlike(results.training, dtype)
    print(*failed, sep="\n", end="\n" if failed else "")
    missing = [
        s for s in results.skipped if not options.dry_run and not (options.allow_missing and "missing" in s.reason)
    ]
    return int(bool(failed or missing))


if __name__ == "__main__":
    sys.exit(main())
