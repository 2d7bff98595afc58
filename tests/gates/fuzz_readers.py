"""Fuzzing of whatever reads files that others wrote: each is read, or refused in one line, in bounded time and memory.

    python tests/gates/fuzz_readers.py [--seconds 600] [--targets json,toml,safetensors] [--seed 0] [--only TEXT]

Small valid files are changed, one at a time, by `mutators`, and read in a process of their own, which may take
`SECONDS` of a CPU and `MEGABYTES` more than it began with for each. Anything but a result or an InputError of one line
is a failure: its file is kept below build/fuzz-readers, and the exit code is 1. A failure is found again by its number:
`--only SUBJECT --first NUMBER --count 1`.

A target is a function in `TARGETS` that makes valid files in an empty directory and returns its subjects: what is read,
by which function. To add one, write such a function, in a module beside this one, and name it there.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import subjects
from mutators import mutated
from subjects import Subject

from vikhr_fast.errors import InputError

TARGETS: dict[str, Callable[[Path], list[Subject]]] = {
    "json": subjects.json_subjects,
    "toml": subjects.toml_subjects,
    "safetensors": subjects.safetensors_subjects,
}
KEPT = Path(__file__).parents[2] / "build" / "fuzz-readers"
SECONDS, MEGABYTES = 10, 1024
_LONGEST_LINE = 5000  # characters of a message
_AT_ONCE = 100  # inputs that a process reads
_STUCK_SECONDS = 300  # without using the CPU


class Result(NamedTuple):
    """What became of one input."""

    number: int
    outcome: str
    """"read", "refused", or what went wrong."""
    detail: str = ""


class Failure(NamedTuple):
    """An input that was neither read nor refused."""

    subject: str
    result: Result
    file: Path

    def __str__(self) -> str:
        return f"{self.subject} {self.result.number}: {self.result.outcome}: {self.file}\n{self.result.detail}"


def results_of(subject: Subject, seed: int, first: int = 0, count: int | None = None) -> Iterator[Result]:
    """The results of `count` inputs, or of endlessly many, each process of which reads some."""
    number, end = first, None if count is None else first + count
    while end is None or number < end:
        last = number + _AT_ONCE if end is None else min(number + _AT_ONCE, end)
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(
            target=_read_all, args=(subject, seed, number, last, sender)
        )
        process.start()
        sender.close()
        try:
            while number < last and receiver.poll(_STUCK_SECONDS):
                yield receiver.recv()
                number += 1
        except EOFError:
            pass
        finally:
            process.join(0 if number < last and process.is_alive() else 1)
            process.kill()
            process.join()
            receiver.close()
        if number < last:
            yield Result(number, _why_it_died(process.exitcode))
            number += 1


def _why_it_died(code: int | None) -> str:
    if code == -signal.SIGPROF:
        return f"took more than {SECONDS} s"
    return "stuck" if code == -signal.SIGKILL else f"ended its process with {code}"


def _read_all(subject: Subject, seed: int, first: int, last: int, results: Connection) -> None:
    """Reads inputs in this process, which is new."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (MEGABYTES << 20), resource.RLIM_INFINITY))
    original = subject.file.read_bytes()
    try:
        for number in range(first, last):
            subject.file.write_bytes(input_of(subject, original, seed, number))
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            outcome, detail = _read(subject)
            signal.setitimer(signal.ITIMER_PROF, 0)
            results.send(Result(number, outcome, detail))
    finally:
        subject.file.write_bytes(original)


def input_of(subject: Subject, original: bytes, seed: int, number: int) -> bytes:
    """One of the inputs, always the same by its number."""
    content = mutated(original, subject.kind, random.Random(f"{seed} {subject.name} {number}"))
    if subject.seal and number % 8:
        with contextlib.suppress(ValueError, RecursionError, TypeError, AttributeError):
            content = subject.seal(json.loads(content))
    return content


def _read(subject: Subject) -> tuple[str, str]:
    try:
        subject.read(subject.file)
    except InputError as error:
        message = str(error)
        is_line = "\n" not in message and len(message) <= _LONGEST_LINE
        return ("refused", "") if is_line else ("not one line", message[:1000])
    except BaseException as error:  # Rust's panics are no Exception
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}", traceback.format_exc()[-3000:]
    return "read", ""


def fuzz(
    names: Sequence[str],
    seed: int,
    *,
    seconds: float | None = None,
    count: int | None = None,
    first: int = 0,
    only: str = "",
) -> tuple[dict[str, Counter[str]], list[Failure]]:
    """Fuzzes all subjects of some targets.

    Args:
        names: of the targets.
        seed: of the changes.
        seconds: for each target, shared among its subjects; or
        count: how many inputs a subject gets.
        first: number of the first of them.
        only: of subjects, those with this in their name.

    Returns:
        By subject, how many inputs had which outcome; and the failures, one of each kind.
    """
    counts: dict[str, Counter[str]] = {}
    failures: list[Failure] = []
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            chosen = [subject for subject in TARGETS[name](Path(scratch)) if only in subject.name]
            for subject in chosen:
                deadline = None if seconds is None else time.monotonic() + seconds / len(chosen)
                own = counts[f"{name}: {subject.name}"] = Counter()
                original = subject.file.read_bytes()
                with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
                    subject.read(subject.file)  # as it is, it can be read
                for result in results_of(subject, seed, first, count):
                    own[result.outcome] += 1
                    if result.outcome not in ("read", "refused") and own[result.outcome] == 1:
                        kept = KEPT / f"{subject.name.replace(' ', '-')}-{result.number}" / subject.file.name
                        kept.parent.mkdir(parents=True, exist_ok=True)
                        kept.write_bytes(input_of(subject, original, seed, result.number))
                        failures.append(Failure(subject.name, result, kept))
                    if deadline is not None and time.monotonic() > deadline:
                        break
                shares = ", ".join(f"{n:,} {outcome}" for outcome, n in own.most_common())
                print(f"{name}: {subject.name}: {own.total():,} inputs: {shares}", flush=True)
                subject.file.write_bytes(original)
    return counts, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--targets", default=",".join(TARGETS), help="by commas")
    parser.add_argument("--seed", type=int, default=0, help="of the changes")
    parser.add_argument("--only", default="", help="subjects with this in their name")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--count", type=int, help="inputs of each subject, instead of --seconds")
    options = parser.parse_args()
    names = options.targets.split(",")
    seconds = None if options.count else options.seconds / len(names)
    counts, failures = fuzz(
        names, options.seed, seconds=seconds, count=options.count, first=options.first, only=options.only
    )
    for failure in failures:
        print(f"\nFAILED {failure}")
    print(f"{sum(own.total() for own in counts.values()):,} inputs, {len(failures)} kinds of failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
