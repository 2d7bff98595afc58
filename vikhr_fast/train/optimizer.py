"""AdamW's parameter groups, clipping and step, and the learning rate of a step."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vikhr_fast.config import OptimizerConfig


class MasterAdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW on parameters that are the masters themselves."""

    def gradient_norm(self) -> Tensor:
        """The global norm [] of the gradients as they are."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters() if p.grad is not None])
        assert isinstance(norm, DTensor)
        return norm.full_tensor()

    def update(self, norm: Tensor, max_norm: float) -> None:
        """One step with gradients of the global norm `norm` [] scaled down to at most `max_norm`; 0 doesn't scale."""
        if max_norm:
            torch.nn.utils.clip_grads_with_norm_(self._parameters(), max_norm, norm)
        self.step()
        self.zero_grad()

    def skip(self) -> None:
        """Forgets the gradients."""
        self.zero_grad()

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Two groups: matrices (embeddings and head included) with weight decay, norm scales without."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> MasterAdamW:
    """AdamW over parameters stored as masters."""
    betas = (config.beta1, config.beta2)
    optimizer = MasterAdamW(
        parameter_groups(model, config), lr=config.learning_rate, betas=betas, eps=config.eps, fused=True
    )
    for parameter in model.parameters():  # a checkpoint before the first update would make them by a step of its own
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            **{name: torch.zeros_like(parameter, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")},
        }
    return optimizer


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
