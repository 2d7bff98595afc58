"""Runs works, several at once, each in a process of its own; what is there already isn't done again."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

from vikhr_fast.ablate.works import Work
from vikhr_fast.console import logger
from vikhr_fast.errors import ExitCode, InputError

Main = Callable[[list[str]], object]
"""Runs a command of this package and exits."""
_PRELOADED = ("vikhr_fast.cli", "vikhr_fast.ablate.inputs", "vikhr_fast.ablate.score", "vikhr_fast.train.loop")
_GRACE_SECONDS = 60


def run_works(works: Sequence[Work], logs: Path, jobs: int, launcher: tuple[str, ...], main: Main) -> None:
    """Runs every work that isn't finished, each after those that it needs.

    Args:
        works: what there is to do.
        logs: directory for what the commands print, a file a work.
        jobs: how many processes at once, with one thread each where there are several.
        launcher: what starts trainings, if not this process's child.
        main: the command line.

    Raises:
        InputError: a command failed; with its last line, and where the others are.
        OSError: the disk is full.
        SystemExit: on SIGTERM, after the works under way have been stopped.
    """
    waiting = [work for work in works if not work.done.exists()]
    logger.info(f"ablate: {len(works) - len(waiting)} of {len(works)} works done before")
    logs.mkdir(parents=True, exist_ok=True)
    context = get_context("forkserver")  # which has loaded PyTorch once, for all of them
    context.set_forkserver_preload(list(_PRELOADED))
    running: dict[Work, tuple[BaseProcess, float]] = {}
    number, total = 0, len(waiting)
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        while waiting or running:
            while len(running) < jobs and (work := _next(waiting, running)) is not None:
                number += 1
                logger.info(f"{work.name}: begins ({number} of {total})")
                waiting.remove(work)
                work.output.parent.mkdir(parents=True, exist_ok=True)
                words = list(work.finished_words())
                process: BaseProcess = context.Process(
                    target=_work, args=(words, launcher, _log(work, logs), 1 if jobs > 1 else 0, main)
                )
                process.start()
                running[work] = process, time.monotonic()
            connection.wait([process.sentinel for process, _ in running.values()])
            for work, (process, started) in list(running.items()):
                if process.exitcode is not None:
                    del running[work]
                    _require_success(work, process.exitcode, logs)
                    logger.info(f"{work.name}: took {time.monotonic() - started:.1f} s")
    finally:
        _stop([process for process, _ in running.values()])
        signal.signal(signal.SIGTERM, previous)


def _terminated(*_: object) -> NoReturn:
    sys.exit(ExitCode.TERMINATED)


def _next(waiting: Sequence[Work], running: Iterable[Work]) -> Work | None:
    """The first work that has all it needs."""
    unfinished = {work.done for work in (*waiting, *running)}
    return next((work for work in waiting if unfinished.isdisjoint(work.needs)), None)


def _stop(processes: Sequence[BaseProcess]) -> None:
    """Ends processes and what they have started; a training saves a checkpoint first."""
    for process in processes:
        if process.pid is not None and process.is_alive():
            with contextlib.suppress(ProcessLookupError):  # it hasn't come to its first line
                os.killpg(process.pid, signal.SIGTERM)
            process.terminate()
    for process in processes:
        process.join(_GRACE_SECONDS)
        if process.is_alive():
            process.kill()


def _work(words: list[str], launcher: tuple[str, ...], log: Path, threads: int, main: Main) -> None:
    """A child: runs one command, with what it prints in a file, and exits with its code."""
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with log.open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    if threads:
        import torch

        torch.set_num_threads(threads)
    first, *others = words
    try:
        if first == "score":
            from vikhr_fast.ablate.score import score_words

            score_words(others)
        elif first == "inputs":
            from vikhr_fast.ablate.inputs import make_input

            make_input(others)
        elif first == "train" and launcher:
            sys.exit(subprocess.call([*launcher, "-m", "vikhr_fast.train", *others]))
        else:
            main(words)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(ExitCode.BAD_INPUT)


def _end_with_parent() -> None:
    """Nothing may go on beside the works of a killed process's successor."""
    if (parent := parent_process()) is not None:
        connection.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)


def _log(work: Work, logs: Path) -> Path:
    return logs / f"{work.name.replace(': ', '-').replace(', ', '-').replace(' ', '-')}.log"


def _require_success(work: Work, code: int, logs: Path) -> None:
    log = _log(work, logs)
    if code == 0 and work.done.exists():
        return
    if code == ExitCode.NO_SPACE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work.output))
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "it printed nothing"
    raise InputError(f"{work.name}: ended with exit code {code}: {last}; more in {log}")
