"""What a step costs: FLOPs, their share of the peak, memory."""

import resource
from typing import Any

import torch

from vikhr_fast.config import TrainConfig
from vikhr_fast.model import ModelConfig
from vikhr_fast.plan.memory import Parameters
from vikhr_fast.plan.speed import attention_flops, peak_flops
from vikhr_fast.ranks import Ranks
from vikhr_fast.train.inputs import has_reference


def step_work(
    config: TrainConfig, shape: ModelConfig, ranks: Ranks, positions: float, pairs: float, seconds: float
) -> dict[str, Any]:
    """The step's FLOPs over all ranks, their share of the peak, and the memory's high-water mark.

    Args:
        config: of the run.
        shape: of the model.
        ranks: this process's place.
        positions: of the step, over all ranks; padding is computed, too.
        pairs: of them that see each other.
        seconds: that the step took.

    Returns:
        The fields of these names of `StepMetrics`.
    """
    n, attention = Parameters.of(shape).multiplied, attention_flops(shape, pairs)
    flops = 6 * n * positions + 3.5 * attention
    on_gpu = ranks.device.type == "cuda"
    peak = peak_flops(torch.cuda.get_device_name(ranks.device)) if on_gpu else None
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "flops": flops,
        "reference_flops": (2 * n * positions + attention) if has_reference(config) else 0.0,
        "mfu": None if peak is None else flops / seconds / ranks.count / peak,
        "memory_bytes": torch.cuda.max_memory_allocated(ranks.device) if on_gpu else resident,
    }
