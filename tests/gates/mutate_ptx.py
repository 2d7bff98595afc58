"""Takes one barrier, wait, fence, guard or size at a time out of compiled kernels: does the emulator notice?

    python tests/gates/mutate_ptx.py [--architecture 80 90] [--operation "loss rows"] [--only bar.sync] [--record]

Each mutant runs under several seeds. It is found by the emulator, makes the result wrong, survives, or is in code that
the cases don't reach. The last fail the gate, and so do more survivors than are recorded for this release of Triton;
why one may survive is explained below, mutation by mutation.
"""

import argparse
import collections
import contextlib
import json
import multiprocessing
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import triton
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "emulator"))
from ptx_emulator import emulating

import vikhr_kernels
from vikhr_kernels import PackedDocuments, dispatch
from vikhr_kernels.buckets import Partition
from vikhr_kernels.gpu import flash_attention, flash_attention_backward
from vikhr_kernels.gpu.loss_rows import loss_rows as gpu_loss_rows
from vikhr_kernels.gpu.pool_rows import pool_rows

RECORD = Path(__file__).with_name("ptx_survivors.json")
SEEDS = (1, 2)


@dataclass(frozen=True)
class Mutation:
    """Lines that match `pattern` become `replacement`, one at a time."""

    name: str
    pattern: str
    replacement: str = ""
    is_of_vectors: bool = False  # a line of the source becomes many such


MUTATIONS = (
    Mutation("bar.sync", r"^\s*bar\.sync\s.*"),
    Mutation("cp.async.wait_group", r"^\s*cp\.async\.wait_group.*"),
    Mutation("cp.async.commit_group", r"^\s*cp\.async\.commit_group.*"),
    Mutation("mbarrier.try_wait", r"^\s*mbarrier\.try_wait\.parity\S*\s+(\w+),.*", r"setp.eq.u32 \1, 0, 0;"),
    Mutation("wgmma.wait_group", r"^\s*wgmma\.wait_group.*"),
    Mutation("wgmma.fence", r"^\s*wgmma\.fence.*"),
    Mutation("wgmma.commit_group", r"^\s*wgmma\.commit_group.*"),
    Mutation("fence.proxy.async", r"^\s*fence\.proxy\.async.*"),
    Mutation("mbarrier.inval", r"^\s*(@\S+\s+)?mbarrier\.inval.*"),
    Mutation("mbarrier.init", r"^\s*(@\S+\s+)?mbarrier\.init.*"),
    Mutation("bytes expected", r"^(\s*(?:@\S+\s+)?mbarrier\.arrive\.expect_tx.*, )\d+;", r"\g<1>16;"),
    Mutation("guard of a load", r"^\s*@%p\d+ (ld\.global.*)", r"\1", is_of_vectors=True),
    Mutation("guard of a store", r"^\s*@%p\d+ (st\.global.*)", r"\1", is_of_vectors=True),
    Mutation("size of a cp.async", r"^(\s*(?:@\S+ )?cp\.async\.cg.*, 0x10), %r\d+;", r"\1;", is_of_vectors=True),
)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


class Attention:
    """Forward and backward by themselves: a document of one token at either end, and between them all kinds of tiles,
    as many as fill the pipelines."""

    def __init__(self, size: int, length: str) -> None:
        bounds, tokens = torch.tensor([0, 1, 700, 768, 769], dtype=torch.int32), 769
        documents = PackedDocuments.of(bounds, tokens, 600)
        self.first, self.end, self.order = *documents.ranges, documents.order
        self.inputs = [normal(tokens, heads, size, seed=heads + i) for i, heads in enumerate((2, 1, 1))]
        self.d_out, self.length = normal(tokens, 2, size, seed=9), length

    def attend(self) -> tuple[Tensor, Tensor]:
        return flash_attention.forward(*self.inputs, self.first, self.length, 0.125)

    def forward(self) -> tuple[Tensor, ...]:
        out, lse = self.attend()
        return out, lse[:, : len(out)]  # what pads it is NaN, which equals nothing

    def backward(self) -> tuple[Tensor, ...]:
        if not hasattr(self, "made"):
            self.made = self.attend()
        ranges = (self.first, self.end, self.order)
        return flash_attention_backward.backward(self.d_out, *self.inputs, *self.made, *ranges, self.length, 0.125)


def loss_rows() -> tuple[Tensor, ...]:
    logits, ref_logits = (normal(3, 5003, seed=i).float() for i in (1, 2))
    ones, results = torch.ones(3), [torch.empty(3) for _ in range(3)]
    targets = torch.tensor([5002, 0, 4096])
    rest = (ones, ones, ones, None, None, False, *results, torch.bfloat16)
    return *results, gpu_loss_rows(logits, ref_logits, targets, *rest)


def pooled() -> tuple[Tensor, ...]:
    """Buckets of one piece, of some, and one over several blocks."""
    bucket = torch.cat((torch.arange(100), torch.full((2900,), 100), 101 + torch.arange(2003) // 4))
    return (pool_rows(normal(3, 5003, seed=1).float(), Partition.of(bucket, 602)),)


def norm() -> tuple[Tensor, ...]:
    shapes = (300, 1000), (1000,), (300, 1000)
    x, weight, residual = (normal(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes))
    outputs = vikhr_kernels.rms_norm(x, weight, 1e-5, residual)
    upstream = [normal(300, 1000, seed=9 + i) for i in range(2)]
    return *outputs, *torch.autograd.grad(outputs, (x, weight, residual), upstream)


ATTENTION = {(size, length): Attention(size, length) for size, length in ((64, "short"), (128, "short"), (128, "long"))}
OPERATIONS: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    **{f"attention {size} {length}": one.forward for (size, length), one in ATTENTION.items()},
    **{f"attention {size} {length} backward": one.backward for (size, length), one in ATTENTION.items()},
    "loss rows": loss_rows,
    "pooled rows": pooled,
    "rms_norm": norm,
}


@dataclass(frozen=True)
class Outcome:
    architecture: int
    operation: str
    kernel: str
    mutation: str
    line: int
    source: str
    outcome: str  # found, wrong, survived, unreached or refused
    detail: str


@contextlib.contextmanager
def running(architecture: int, **settings: object) -> Iterator[object]:
    with (
        dispatch.compiling_for(architecture),
        mock.patch.object(dispatch, "INTERPRETED", True),
        emulating(architecture, **settings) as emulation,
    ):
        yield emulation


def mutants(ptx: str, only: str) -> list[tuple[Mutation, int, str, str]]:
    """Mutation, line, its place in the source, and the PTX with it."""
    lines, source = ptx.split("\n"), ""
    found: dict[object, tuple[Mutation, int, str, str]] = {}
    for number, line in enumerate(lines):
        if line.lstrip().startswith(".loc"):
            source = line.partition("//")[2].strip()
        for mutation in MUTATIONS:
            if only in mutation.name and re.match(mutation.pattern, line):
                changed = re.sub(mutation.pattern, mutation.replacement, line)
                mutant = "\n".join([*lines[:number], changed, *lines[number + 1 :]])
                # Of the vectors that a line of the source becomes, the last is the likeliest to stick out.
                key = (mutation, source if mutation.is_of_vectors else number)
                found[key] = mutation, number + 1, source, mutant
    return list(found.values())


def judge(
    architecture: int, operation: str, kernel: str, ptx: str, mutant: str, expected: tuple[Tensor, ...]
) -> tuple[str, str]:
    """Whether a mutant is found, and what is said of it."""
    for seed in SEEDS:
        change = lambda name, text: mutant if name == kernel and text == ptx else text  # noqa: E731
        with running(architecture, seed=seed, change=change) as emulation:
            try:
                results = OPERATIONS[operation]()
            except ValueError as error:
                return "refused", str(error)
        if emulation.findings:
            finding = emulation.findings[0]
            return "found", f"{finding.kind} at {finding.source}"
        if not all(map(torch.equal, results, expected)):
            return "wrong", "result"
    return "survived", ""


def run(task: tuple[int, str, str]) -> list[Outcome]:
    architecture, operation, only = task
    torch.set_num_threads(1)
    with running(architecture) as emulation:
        expected = OPERATIONS[operation]()  # backward asks for forward, once
        emulation.launches.clear()
        expected = OPERATIONS[operation]()
    assert not emulation.findings, emulation.report()
    executed: dict[tuple[str, str], set[int]] = collections.defaultdict(set)
    for launch in emulation.launches:
        executed[launch.kernel, launch.ptx] |= launch.executed
    outcomes = []
    for (kernel, ptx), lines in sorted(executed.items()):
        for mutation, line, source, mutant in mutants(ptx, only):
            verdict = "unreached", ""
            if line in lines:
                verdict = judge(architecture, operation, kernel, ptx, mutant, expected)
            outcomes.append(Outcome(architecture, operation, kernel, mutation.name, line, source, *verdict))
            if verdict[0] in ("survived", "unreached", "refused"):
                print(
                    f"{verdict[0]}: sm_{architecture} {operation}: {kernel} ptx:{line} {mutation.name} at {source}",
                    flush=True,
                )
    return outcomes


# Why a mutant may survive. Races and pending copies are judged by clocks, so none of these depends on the schedule.
EXPLAINED = {
    "bar.sync": "another barrier orders the same accesses, or there are none",
    "cp.async.commit_group": "its copies join the next group, before a wait for all groups",
    "cp.async.wait_group": "nothing that is under way there is read before another wait",
    "wgmma.commit_group": "its products join the next group, before a wait for all groups",
    "wgmma.wait_group": "no register or tile of a product is touched before another wait",
    "wgmma.fence": "there was one since the last wait",
    "fence.proxy.async": "no store of a warp's is followed by a bulk copy or product there",
    "mbarrier.inval": "the kernel ends, or makes nothing of that memory again",
    "guard of a load": "it reads other elements of the tensor, which are masked away later",
    "guard of a store": "it writes the same value again, or into padding that nobody reads",
    "size of a cp.async": "it copies other rows of the tensor, which are masked away later or in no step's tile",
}


def read_record() -> dict[str, int] | None:
    """Survivors by architecture, kernel and mutation, for this release of Triton; None where nobody recorded any."""
    records: dict[str, dict[str, int]] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    return records.get(triton.__version__)


def write_record(survivors: dict[str, int]) -> None:
    """Records the survivors of this release of Triton beside those of others."""
    records = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    records[triton.__version__] = dict(sorted(survivors.items()))
    beside = RECORD.with_suffix(".beside")
    beside.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    beside.replace(RECORD)


def run_all(tasks: list[tuple[int, str, str]]) -> list[Outcome]:
    """On two processes.

    Raises:
        BrokenProcessPool: one of them died.
    """
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        futures = [executor.submit(run, task) for task in tasks]
        try:
            return [outcome for future in futures for outcome in future.result()]
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()
            raise


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/gates/mutate_ptx.py", description="Mutants of compiled kernels.")
    known = sorted(dispatch.ARCHITECTURES)
    parser.add_argument("--architecture", type=int, nargs="+", choices=known, default=known)
    parser.add_argument("--operation", choices=list(OPERATIONS), nargs="+", default=list(OPERATIONS), metavar="NAME",
                        help=", ".join(OPERATIONS))  # fmt: skip
    parser.add_argument("--only", default="", help="mutations whose names have this in them")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name} instead of judging by it")
    options = parser.parse_args()
    architectures, operations = sorted(set(options.architecture)), list(dict.fromkeys(options.operation))
    if options.record and (architectures != known or set(operations) != set(OPERATIONS) or options.only):
        parser.error("--record is of everything: without --architecture, --operation and --only")
    begun = time.monotonic()
    tasks = [
        (architecture, operation, options.only)
        for operation in operations
        for architecture in architectures
        if architecture >= 90 or "long" not in operation  # whose tiles are the short ones' there
    ]
    try:
        outcomes = run_all(tasks)
    except BrokenProcessPool:
        print("FAILED: a process died, killed or out of memory: nothing is judged")
        return 1
    if not outcomes:
        print("FAILED: no such mutation in what was asked for")
        return 1
    counts = collections.Counter((o.architecture, o.kernel, o.mutation, o.outcome) for o in outcomes)
    for (architecture, kernel, mutation, outcome), count in sorted(counts.items()):
        why = f"  {EXPLAINED.get(mutation, 'UNEXPLAINED')}" if outcome == "survived" else ""
        print(f"sm_{architecture} {kernel:40} {mutation:24} {outcome:10} {count:4}{why}")
    survivors = {f"sm_{a} {k} {m}": n for (a, k, m, outcome), n in counts.items() if outcome == "survived"}
    totals = collections.Counter(o.outcome for o in outcomes)
    summary = ", ".join(f"{count} {outcome}" for outcome, count in totals.most_common())
    print(f"Triton {triton.__version__}: {len(outcomes)} mutants, {summary}; {time.monotonic() - begun:.0f} s")
    if options.record:
        write_record(survivors)
        return 0
    recorded, more = read_record(), []
    if recorded is None:
        print(f"no survivors are recorded for Triton {triton.__version__}: they are shown, not judged")
    else:
        more = [
            f"{what}: {n}, recorded {recorded.get(what, 0)}"
            for what, n in survivors.items()
            if n > recorded.get(what, 0)
        ]
    more += [
        f"sm_{o.architecture} {o.kernel} {o.mutation} at ptx:{o.line}: {o.outcome} {o.detail}"
        for o in outcomes
        if o.outcome in ("unreached", "refused")
    ]
    for line in more:
        print(f"FAILED {line}")
    return int(bool(more))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
