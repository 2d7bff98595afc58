"""AdamW on parameters kept as bf16 and the 16 bits that are missing to float32: 7B with its reference on one GPU.

The trained parameter is the bf16 half; forward and backward read it as it is, without a float32 master beside it. The
update works on the exact float32 master (`vikhr_kernels.adamw`), from gradients summed in float32 (`train.gradients`).
"""

import torch
from torch import Tensor

from vikhr_fast.config import OptimizerConfig
from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.distributed.sharding import laid_out_as, local
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.train.gradients import LocalGradients, ReducedGradients
from vikhr_fast.train.optimizer import parameter_groups
from vikhr_kernels import adamw, split_master


class SplitAdamW(torch.optim.Optimizer):
    """AdamW over bf16 parameters, with its own float32 gradients; the state is laid out as the parameters are.

    Moments in bf16 are rounded stochastically, by bits that follow from the step and the shard.

    Args:
        model: its parameters become the upper halves of the masters.
        masters: this rank's part of each, float32, by the parameters' names; taken out one by one.
        config: rate, betas, eps and the moments' dtype.
        ranks: over which the gradients' norm is summed.
    """

    def __init__(self, model: Mistral, masters: dict[str, Tensor], config: OptimizerConfig, ranks: Ranks) -> None:
        self.stored: dict[str, Tensor] = dict(model.named_parameters())
        defaults = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "eps": config.eps}
        super().__init__(parameter_groups(self.stored.values(), config), defaults)
        self._ranks = ranks
        self._shards = ranks.mesh.size(-1)  # ranks that share one copy of the weights
        self._gradients = LocalGradients(model, torch.float32) if ranks.count == 1 else ReducedGradients(model, ranks)
        for name, parameter in self.stored.items():
            own = local(parameter.detach())
            upper, remainder = split_master(masters.pop(name))
            own.copy_(upper)
            moments = (torch.zeros_like(own, dtype=getattr(torch, config.moments)) for _ in range(2))
            self.state[parameter] = {
                # on the CPU: it is read every step
                "step": torch.zeros((), dtype=torch.float32),
                **{n: laid_out_as(parameter, m) for n, m in zip(("exp_avg", "exp_avg_sq"), moments, strict=True)},
                "remainder": laid_out_as(parameter, remainder),
            }

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """The global norm [] of the gradients as they are."""
        # one pass in float64, without a copy of any gradient in that
        norms = torch._foreach_norm([self._gradients.of(parameter) for parameter in self.state], dtype=torch.float64)
        squares = torch.stack(norms).square().sum()
        return (self._ranks.all_reduce_sum(squares) / self._ranks.replicas).sqrt().float()

    @torch.no_grad()
    def update(self, norm: Tensor, max_norm: float) -> None:
        """One step with gradients of the global norm `norm` [] scaled down to at most `max_norm`; 0 doesn't scale."""
        self._step((max_norm / (norm + 1e-6)).clamp(max=1.0) if max_norm else torch.ones_like(norm))
        self.skip()

    def skip(self) -> None:
        """Forgets the gradients."""
        self._gradients.clear()

    def refresh(self) -> None:
        """Nothing: a checkpoint fills parameters and state themselves."""

    def _step(self, scale: Tensor) -> None:
        """The update itself, from gradients multiplied by `scale`."""
        for number, group in enumerate(self.param_groups):
            states = [self.state[parameter] for parameter in group["params"]]
            for state in states:
                state["step"] += 1
            step = int(states[0]["step"])
            shard = self._ranks.mesh.get_local_rank(self._ranks.mesh.ndim - 1)  # the same in each replica
            adamw(
                [local(parameter) for parameter in group["params"]],
                [local(state["remainder"]) for state in states],
                [self._gradients.of(parameter) for parameter in group["params"]],
                [local(state["exp_avg"]) for state in states],
                [local(state["exp_avg_sq"]) for state in states],
                step=step,
                learning_rate=group["lr"],
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                gradient_scale=scale,
                rounding_seed=((step * self._shards + shard) * len(self.param_groups) + number) % 2**31,
            )
