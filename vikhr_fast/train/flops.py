"""What a step costs: FLOPs, their share of the peak, memory."""

import resource
from collections.abc import Sequence

import torch

from vikhr_fast.data.packing import Batch
from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.model.config import ModelConfig
from vikhr_fast.plan.memory import Parameters
from vikhr_fast.plan.speed import attention_flops, peak_flops


def step_work(shape: ModelConfig, reference: ModelConfig | None, batches: Sequence[Batch]) -> tuple[float, float]:
    """FLOPs of training on a rank's micro-batches, padding included, and of the reference's forward over some of them.

    By 6 N and 2 N a token, N without the embedding, and attention over the pairs that see each other.
    """
    n, frozen_n = (Parameters.of(own).multiplied if own is not None else 0 for own in (shape, reference))
    training = frozen = 0.0
    for batch in batches:
        tokens, attention = len(batch.tokens), attention_flops(shape, batch.seen_pairs(shape.sliding_window))
        training += 6 * n * tokens + 3.5 * attention
        if reference is not None and batch.has_kl:
            read = batch.reading or batch
            frozen += 2 * frozen_n * len(read.tokens)
            frozen += attention_flops(reference, read.seen_pairs(reference.sliding_window))
    return training, frozen


def flops_share(flops: float, ranks: Ranks, seconds: float) -> float | None:
    """FLOPs of all ranks a second over their GPUs' bf16 peak; None where that isn't known."""
    if ranks.device.type != "cuda":
        return None
    peak = peak_flops(torch.cuda.get_device_name(ranks.device))
    return None if peak is None else flops / seconds / ranks.count / peak


def peak_bytes(device: torch.device) -> int:
    """The most that this process had allocated on its GPU, or resident on a CPU, so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
