"""A run in which one rank's loss is NaN in one step: `python poisoned_run.py CONFIG.json RANK STEP`."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from vikhr_fast.config import train_config
from vikhr_fast.train import loop
from vikhr_fast.train.objective import Objective

path, rank, step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
config = train_config(json.loads(path.read_text()), str(path))
whole_call, whole_step = Objective.__call__, loop.Training._step
current = 0


def counted_step(self: loop.Training, number: int, *args: Any, **kwargs: Any) -> Any:
    global current
    current = number + 1
    return whole_step(self, number, *args, **kwargs)


def poisoned_call(self: Objective, *args: Any, **kwargs: Any) -> Any:
    loss, losses = whole_call(self, *args, **kwargs)
    return (loss * math.nan if current == step and int(os.environ["RANK"]) == rank else loss), losses


loop.Training._step = counted_step  # type: ignore[method-assign]
Objective.__call__ = poisoned_call  # type: ignore[method-assign]
loop.train(config)
