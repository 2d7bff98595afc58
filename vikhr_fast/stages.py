"""Stages that each leave an output, complete or not at all; what is there isn't made again."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vikhr_fast.console import logger


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
        started = time.monotonic()
        stage.run()
        seconds = time.monotonic() - started
        logger.info(f"{stage.name}: took {seconds:.1f} s")
        on_end(stage, seconds)
