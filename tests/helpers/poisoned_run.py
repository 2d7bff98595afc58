"""A run in which one rank's loss is NaN in one step: `python poisoned_run.py CONFIG.json RANK STEP`."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from vikhr_fast.config import train_config
from vikhr_fast.train.loop import train
from vikhr_fast.train.objective import Objective
from vikhr_fast.train.state import TrainState
from vikhr_fast.train.step import TrainStep

path, rank, step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
config = train_config(json.loads(path.read_text()), str(path))
whole_call, whole_step = Objective.__call__, TrainStep.__call__
current = 0


def counted_step(self: TrainStep, state: TrainState, *args: Any) -> Any:
    global current
    current = state.step + 1
    return whole_step(self, state, *args)


def poisoned_call(self: Objective, *args: Any, **kwargs: Any) -> Any:
    loss, losses = whole_call(self, *args, **kwargs)
    return (loss * math.nan if current == step and int(os.environ["RANK"]) == rank else loss), losses


TrainStep.__call__ = counted_step  # type: ignore[method-assign]
Objective.__call__ = poisoned_call  # type: ignore[method-assign]
train(config)
