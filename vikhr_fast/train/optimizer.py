"""AdamW: what training asks of it, its usual way, its parameter groups and the learning rate of a step."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vikhr_fast.config import OptimizerConfig
from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.distributed.sharding import full, local
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.train.gradients import LocalGradients


class Optimizer(Protocol):
    """What training asks of AdamW, however that keeps its masters and gradients."""

    param_groups: list[dict[str, Any]]
    stored: dict[str, Tensor]  # what a checkpoint holds as the weights, by the parameters' names
    state: defaultdict[Tensor, Any]  # by what is stored: the moments, and what else a checkpoint holds

    def gradient_norm(self) -> Tensor:
        """The global norm [] of the gradients as they are."""

    def update(self, norm: Tensor, max_norm: float) -> None:
        """One step with gradients of the global norm `norm` [] scaled down to at most `max_norm`; 0 doesn't scale."""

    def skip(self) -> None:
        """Forgets the gradients."""

    def refresh(self) -> None:
        """Brings what is computed with up to date with what is stored."""


class MasterAdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW on masters in float32 or wider.

    On several ranks the masters are the model's own shards, from which FSDP2 gathers what it computes with. On one rank
    they are the parameters too, unless those are narrower: then the parameters are a copy, made anew each step.

    Args:
        model: whose parameters are trained.
        masters: this rank's part of each, by the parameters' names.
        config: rate, betas, eps and weight decay.
        ranks: of the run.
    """

    def __init__(self, model: Mistral, masters: dict[str, Tensor], config: OptimizerConfig, ranks: Ranks) -> None:
        self._copies: dict[Tensor, Tensor] = {}  # by master; none where the masters are the parameters
        self.stored: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            master: Tensor = parameter
            if local(parameter).dtype != masters[name].dtype:
                master = nn.Parameter(masters[name])
                self._copies[master] = parameter
            self.stored[name] = master
        dtype = next(iter(masters.values())).dtype
        self._gradients = LocalGradients(model, dtype) if ranks.count == 1 else None  # FSDP2's are in .grad
        super().__init__(
            parameter_groups(self.stored.values(), config),
            lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True,
        )  # fmt: skip
        for master in self.stored.values():  # a checkpoint before the first update has them, too
            self.state[master] = {
                "step": torch.zeros((), dtype=torch.float32, device=master.device),
                **{name: torch.zeros_like(master, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")},
            }

    def gradients(self) -> dict[str, Tensor]:
        """By the parameters' names.

        Raises:
            RuntimeError: none reached one of them, which AdamW would skip in silence.
        """
        found = {}
        for name, master in self.stored.items():
            gradient = master.grad
            if self._gradients is not None:
                gradient = self._gradients.of(self._copies.get(master, master))
            if gradient is None:
                raise RuntimeError(f"no gradient reached {name}")
            found[name] = gradient
        return found

    def gradient_norm(self) -> Tensor:
        """The global norm [] of the gradients as they are."""
        return full(torch.nn.utils.get_total_norm(self.gradients().values()))

    def update(self, norm: Tensor, max_norm: float) -> None:
        """One step with gradients of the global norm `norm` [] scaled down to at most `max_norm`; 0 doesn't scale."""
        for name, gradient in self.gradients().items():
            self.stored[name].grad = gradient
        if max_norm:
            torch.nn.utils.clip_grads_with_norm_(self.stored.values(), max_norm, norm)
        self.step()
        self.skip()
        self.refresh()

    def skip(self) -> None:
        """Forgets the gradients."""
        self.zero_grad()
        if self._gradients is not None:
            self._gradients.clear()

    @torch.no_grad()
    def refresh(self) -> None:
        """Brings what is computed with up to date with the masters."""
        if self._copies:
            torch._foreach_copy_(list(self._copies.values()), list(self._copies))


def parameter_groups(parameters: Iterable[Tensor], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Two groups: matrices (embeddings and head included) with weight decay, norm scales without."""
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


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
