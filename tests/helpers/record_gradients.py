"""Runs training and records its gradients: `python record_gradients.py CONFIG.json …`, one run after another.

Beside each config, `recorded.pt` holds from rank 0 the gradients of every step before clipping, gathered.
"""

import json
import sys
from pathlib import Path

import torch

from vikhr_fast.config import TrainConfig, train_config
from vikhr_fast.distributed.ranks import Ranks, process_group
from vikhr_fast.distributed.sharding import full
from vikhr_fast.train.inputs import open_inputs
from vikhr_fast.train.loop import Training
from vikhr_fast.train.signals import Interruption


def run(config: TrainConfig, recorded: Path, ranks: Ranks) -> None:
    config.output.mkdir(exist_ok=True)
    training = Training(config, open_inputs(config), ranks, Interruption())
    update, gradients = training.step.optimizer.update, []

    def recording_update(norm: torch.Tensor, max_norm: float) -> None:
        gradients.append({name: full(found).clone() for name, found in training.step.optimizer.gradients().items()})
        update(norm, max_norm)

    training.step.optimizer.update = recording_update  # type: ignore[method-assign]
    training.run()
    if ranks.is_main:
        torch.save({"gradients": gradients}, recorded)


configs = {path: train_config(json.loads(path.read_text()), str(path)) for path in map(Path, sys.argv[1:])}
with process_group(next(iter(configs.values())).runtime) as all_ranks:
    for path, config in configs.items():
        run(config, path.with_name("recorded.pt"), all_ranks)
