"""AdamW's parameter groups, and the learning rate of a step."""

import math

import torch
from torch import nn

from vikhr_fast.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over two groups: matrices (embeddings and head included) with weight decay, norm scales without."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """The learning rate of a step, counted from 0.

    Warm-up rises linearly and reaches the peak on its last step; cosine and linear then fall to
    `final_fraction` of the peak, reached on the last step of the run.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    remaining = num_steps - 1 - config.warmup_steps
    progress = (step - config.warmup_steps) / remaining if remaining > 0 else 1.0
    height = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * height)
