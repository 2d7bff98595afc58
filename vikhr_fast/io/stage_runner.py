"""Stages that each leave an output, complete or not at all; what is there isn't made again."""

import contextlib
import errno
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

from vikhr_fast.errors import ExitCode, InputError, RankLostError, outcome_of
from vikhr_fast.io.console import configure_logging, logger
from vikhr_fast.io.files import open_here, remove_leftovers
from vikhr_fast.io.plain import one_line

_GRACE_SECONDS = 60


@dataclass(frozen=True)
class Stage:
    """Some work, and what it leaves."""

    name: str
    """For log lines."""
    output: Path
    """There once the work is finished."""
    run: Callable[[], object]
    needs: tuple[Path, ...] = ()
    """Outputs of other stages that must be there before."""
    compares: bool = False
    """Run also where the output is there: it then only looks whether that is what it would make, and says so."""


def run_stages(
    stages: Iterable[Stage], on_end: Callable[[Stage, float], object] = lambda _stage, _seconds: None
) -> None:
    """Runs stages one after another, in their order, in this process.

    Args:
        stages: may be made one by one, each when those before it are finished.
        on_end: is told of each that was not done before, and how many seconds it took.

    Raises:
        InputError: what a stage raises.
    """
    for stage in stages:
        if stage.output.exists():
            if stage.compares:
                stage.run()
            else:
                logger.info(f"{stage.name}: done before, {stage.output}")
            continue
        logger.info(f"{stage.name}: begins")
        remove_leftovers(stage.output.parent, stage.output.name)
        started = time.monotonic()
        stage.run()
        seconds = time.monotonic() - started
        logger.info(f"{stage.name}: took {seconds:.1f} s")
        on_end(stage, seconds)


def run_stages_at_once(stages: Sequence[Stage], logs: Path, jobs: int, preload: Sequence[str] = ()) -> None:
    """Runs stages in processes of their own, each after those that it needs.

    Args:
        stages: what they run can be pickled.
        logs: directory for what they print, a file a stage.
        jobs: how many processes at once, with one thread each where there are several.
        preload: modules that are slow to import, which the processes share.

    Raises:
        InputError: a stage failed, with its last line, and where the others are; or its file is a link.
        OSError: the disk is full.
        SystemExit: on SIGTERM, after the stages under way have been stopped.
    """
    waiting = [stage for stage in stages if not stage.output.exists()]
    number, total = len(stages) - len(waiting), len(stages)
    logger.info(f"{number} of {total} stages done before; what each prints goes to {logs}")
    logs.mkdir(parents=True, exist_ok=True)
    context = get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    running: dict[Stage, tuple[BaseProcess, float]] = {}
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        while waiting or running:
            while len(running) < jobs and (stage := _next(waiting, running)) is not None:
                number += 1
                logger.info(f"{stage.name}: begins ({number} of {total})")
                waiting.remove(stage)
                remove_leftovers(stage.output.parent, stage.output.name)
                open_here(_log(stage, logs), "wb").close()  # what is wrong with it is said here, not in it
                process: BaseProcess = context.Process(target=_child, args=(stage.run, _log(stage, logs), jobs > 1))
                process.start()
                running[stage] = process, time.monotonic()
            connection.wait([process.sentinel for process, _ in running.values()])
            for stage, (process, started) in list(running.items()):
                if process.exitcode is not None:
                    del running[stage]
                    _require_success(stage, process.exitcode, _log(stage, logs))
                    logger.info(f"{stage.name}: took {time.monotonic() - started:.1f} s")
    except (KeyboardInterrupt, SystemExit):
        logger.warning("stops; the same command goes on with what is unfinished")
        raise
    finally:
        _stop(running)
        signal.signal(signal.SIGTERM, previous)


def _terminated(*_: object) -> NoReturn:
    sys.exit(ExitCode.TERMINATED)


def _next(waiting: Sequence[Stage], running: Iterable[Stage]) -> Stage | None:
    """The first stage that has all it needs."""
    unfinished = {stage.output for stage in (*waiting, *running)}
    return next((stage for stage in waiting if unfinished.isdisjoint(stage.needs)), None)


def _log(stage: Stage, logs: Path) -> Path:
    return logs / f"{re.sub(r'[^a-z0-9-]+', '-', stage.name.replace('/', '--'))}.log"


def _child(run: Callable[[], object], log: Path, is_one_of_several: bool) -> None:
    """Runs a stage with what it prints in a file, and exits with one of `errors.ExitCode`."""
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open_here(log, "wb") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    configure_logging("info")
    if is_one_of_several:
        import torch

        torch.set_num_threads(1)
    try:
        run()
    except (InputError, RankLostError, OSError) as error:
        code, line = outcome_of(error)
        with contextlib.suppress(OSError):  # the log may be on the full disk, too
            sys.stderr.write(f"error: {one_line(line)}\n")
        sys.exit(code)


def _end_with_parent() -> None:
    """Nothing may go on beside the stages of a killed process's successor."""
    if (parent := parent_process()) is not None:
        connection.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)


def _require_success(stage: Stage, code: int, log: Path) -> None:
    if code == 0 and stage.output.exists():
        return
    if code == ExitCode.NO_SPACE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(stage.output))
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "it printed nothing"
    raise InputError(f"{stage.name}: ended with exit code {code}: {last}; more in {log}")


def _stop(running: Mapping[Stage, tuple[BaseProcess, float]]) -> None:
    """Ends processes and what they have started; a training saves a checkpoint first."""
    for process, _ in running.values():
        if process.pid is not None and process.is_alive():
            with contextlib.suppress(ProcessLookupError):  # it hasn't come to its first line
                os.killpg(process.pid, signal.SIGTERM)
            process.terminate()
    for stage, (process, _) in running.items():
        process.join(_GRACE_SECONDS)
        if process.is_alive():
            process.kill()
            logger.warning(f"{stage.name}: killed, since it took more than {_GRACE_SECONDS} s to stop")
