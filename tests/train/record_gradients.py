"""Runs training and records what tests compare: `python record_gradients.py CONFIG.json …`, one run after another.

Beside each config, RECORDED.pt holds from rank 0: the gradients of every step before clipping (gathered), and for each
micro-batch of the run which collectives it made, with the elements that each delivered or took.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vikhr_fast.config import TrainConfig, train_config
from vikhr_fast.train import loop
from vikhr_fast.train.interruption import Interruption
from vikhr_fast.train.sharding import Ranks, process_group

gradients: list[dict[str, torch.Tensor]] = []
collectives: list[tuple[str, int]] = []
clip = loop._clip


def recording_clip(model: torch.nn.Module, max_norm: float) -> torch.Tensor:
    gradients.append({name: p.grad.full_tensor().clone() for name, p in model.named_parameters()})
    return clip(model, max_norm)


def recording(name: str) -> Any:
    function = getattr(dist, name)

    def record(*args: Any, **kwargs: Any) -> Any:
        whole = kwargs["output_tensor"] if name.startswith("all_gather") else kwargs["input"]
        collectives.append((name, whole.numel()))
        return function(*args, **kwargs)

    return record


def run(config: TrainConfig, recorded: Path, ranks: Ranks) -> None:
    training = loop.Training(config, ranks, Interruption())
    objective = training.objective
    micro_batches: list[list[tuple[str, int]]] = []

    def recording_objective(*args: Any, **kwargs: Any) -> Any:
        micro_batches.append(collectives.copy())
        collectives.clear()
        return objective(*args, **kwargs)

    recording_objective.weights = objective.weights  # type: ignore[attr-defined]
    training.objective = recording_objective  # type: ignore[assignment]
    gradients.clear()
    training.run()
    if ranks.is_main:
        torch.save({"gradients": gradients, "micro_batches": micro_batches[1:]}, recorded)


loop._clip = recording_clip
for collective in ("all_gather_into_tensor", "reduce_scatter_tensor"):
    setattr(dist, collective, recording(collective))
configs = {path: train_config(json.loads(path.read_text()), str(path)) for path in map(Path, sys.argv[1:])}
with process_group(next(iter(configs.values())).runtime) as all_ranks:
    for path, config in configs.items():
        run(config, path.with_name("recorded.pt"), all_ranks)
