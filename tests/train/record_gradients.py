"""Runs training and records what tests compare: `python record_gradients.py CONFIG.json …`, one run after another.

Beside each config, RECORDED.pt holds from rank 0: the gradients of every step before clipping (gathered), and for each
micro-batch of the run which collectives it made (gather or reduce), with the elements of the whole tensor.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vikhr_fast.config import TrainConfig, train_config
from vikhr_fast.ranks import Ranks, process_group
from vikhr_fast.train import loop
from vikhr_fast.train.inputs import open_inputs
from vikhr_fast.train.interruption import Interruption
from vikhr_fast.train.sharding import full

# fully_shard calls the first or, in later versions of PyTorch, the second of each pair.
COLLECTIVES = {"all_gather_into_tensor", "all_gather_single", "reduce_scatter_tensor", "reduce_scatter_single"}
gradients: list[dict[str, torch.Tensor]] = []
collectives: list[tuple[str, int]] = []


def recording(name: str) -> Any:
    function = getattr(dist, name)

    def record(*args: Any, **kwargs: Any) -> Any:
        output = args[0] if args else kwargs.get("output_tensor", kwargs.get("output"))
        kind = "gather" if name.startswith("all_gather") else "reduce"
        collectives.append((kind, output.numel() * (1 if kind == "gather" else dist.get_world_size())))
        return function(*args, **kwargs)

    return record


def run(config: TrainConfig, recorded: Path, ranks: Ranks) -> None:
    config.output.mkdir(exist_ok=True)
    training = loop.Training(config, open_inputs(config), ranks, Interruption())
    objective, update = training.objective, training.optimizer.update
    micro_batches: list[list[tuple[str, int]]] = []

    def recording_objective(*args: Any, **kwargs: Any) -> Any:
        micro_batches.append(collectives.copy())
        collectives.clear()
        return objective(*args, **kwargs)

    def recording_update(norm: torch.Tensor, max_norm: float) -> None:
        gradients.append({name: full(found).clone() for name, found in training.optimizer.gradients().items()})
        update(norm, max_norm)

    recording_objective.weights = objective.weights  # type: ignore[attr-defined]
    recording_objective.with_reference = objective.with_reference  # type: ignore[attr-defined]
    training.objective = recording_objective  # type: ignore[assignment]
    training.optimizer.update = recording_update  # type: ignore[method-assign]
    gradients.clear()
    training.run()
    if ranks.is_main:
        torch.save({"gradients": gradients, "micro_batches": micro_batches[1:]}, recorded)


for collective in COLLECTIVES & set(dir(dist)):
    setattr(dist, collective, recording(collective))
configs = {path: train_config(json.loads(path.read_text()), str(path)) for path in map(Path, sys.argv[1:])}
with process_group(next(iter(configs.values())).runtime) as all_ranks:
    for path, config in configs.items():
        run(config, path.with_name("recorded.pt"), all_ranks)
