"""A run in which one rank's loader hangs at one step: `python faulty_run.py CONFIG.toml RANK STEP`."""

import os
import sys
import time
from typing import Any

from vikhr_fast.cli import main
from vikhr_fast.corpus.packing import StepLoader

path, rank, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
whole = StepLoader._step


def hanging(self: StepLoader, number: int) -> Any:
    if number + 1 == step and int(os.environ.get("RANK", 0)) == rank:
        time.sleep(10_000)
    return whole(self, number)


StepLoader._step = hanging  # type: ignore[method-assign]
main(["train", "--config", path])
