"""A run whose ranks lose patience soon from one step on, in which one rank's loader hangs:

python faulty_run.py CONFIG.toml RANK STEP

(Before that step, ranks start on busy machines and may take their time. With rank -1 none hangs.)
"""

import os
import sys
import time
from typing import Any

from vikhr_fast.cli import main
from vikhr_fast.data.packing import StepLoader
from vikhr_fast.distributed.watchdog import Watch

PATIENCE = 6.0  # seconds

path, rank, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
enter, load = Watch.enter, StepLoader._step
watches: list[Watch] = []


def watched_enter(self: Watch, phase: str) -> None:
    watches[:] = [self]
    enter(self, phase)


def hanging_load(self: StepLoader, number: int) -> Any:
    if number + 1 >= step:
        watches[0]._timeout = PATIENCE
        if number + 1 == step and int(os.environ.get("RANK", 0)) == rank:
            time.sleep(10_000)
    return load(self, number)


Watch.enter = watched_enter  # type: ignore[method-assign]
StepLoader._step = hanging_load  # type: ignore[method-assign]
main(["train", "--config", path])
