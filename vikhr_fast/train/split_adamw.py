"""AdamW on parameters kept as bf16 and the 16 bits that are missing to float32: 7B with its reference on one GPU.

The trained parameter is the bf16 half; forward and backward read it as it is, without a float32 master beside it. The
update works on the exact float32 master (`vikhr_kernels.adamw`), from gradients that are reduced and summed in float32
here: FSDP2 would round them to the parameter's dtype.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from vikhr_fast.config import OptimizerConfig
from vikhr_fast.model import Mistral
from vikhr_fast.ranks import Ranks
from vikhr_fast.train.optimizer import parameter_groups
from vikhr_kernels import adamw


class SplitAdamW(torch.optim.Optimizer):
    """AdamW over bf16 shards, with its own sharded float32 gradients; the state goes into checkpoints as DTensors.

    Moments in bf16 are rounded stochastically, by bits that follow from the step and the shard.

    Args:
        model: sharded, its parameters the upper halves of the masters.
        remainders: the lower halves of the masters' local shards, int16, by the parameters' names.
        config: rate, betas, eps and the moments' dtype.
        ranks: over which the gradients' norm is summed.
    """

    def __init__(
        self,
        model: Mistral,
        remainders: dict[str, Tensor],
        config: OptimizerConfig,
        ranks: Ranks,
    ) -> None:
        betas = (config.beta1, config.beta2)
        super().__init__(
            parameter_groups(model, config), {"lr": config.learning_rate, "betas": betas, "eps": config.eps}
        )
        self._ranks = ranks
        self._shards = ranks.mesh.size(-1)  # ranks that share one copy of the weights
        self._gradients: dict[Tensor, Tensor] = {}
        for name, parameter in model.named_parameters():
            local = _local(parameter)
            self._gradients[parameter] = torch.zeros_like(local, dtype=torch.float32)
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
            moments = (torch.zeros_like(local, dtype=getattr(torch, config.moments)) for _ in range(2))
            self.state[parameter] = {
                # on the CPU: it is read every step
                "step": torch.zeros((), dtype=torch.float32),
                **dict(zip(("exp_avg", "exp_avg_sq"), (_like(moment, parameter) for moment in moments), strict=True)),
                "remainder": _like(remainders[name], parameter),
            }
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_all_reduce_hook(partial(self._take, _own_parameters(module)))

    def _take(self, parameters: list[Tensor], reduced: Tensor) -> None:
        """Adds a module's reduced gradients: one after another in `reduced`, each padded to equal rows a rank."""
        if reduced.is_cuda:  # FSDP2 drops it before this has run; the next module's would take its memory
            reduced.record_stream(torch.cuda.current_stream())
        start = 0
        for parameter in parameters:
            gradient = self._gradients[parameter]
            gradient.add_(reduced[start : start + gradient.numel()].view_as(gradient))
            rows = -(-parameter.shape[0] // self._shards)
            start += rows * (parameter.numel() // parameter.shape[0])

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """The global norm [] of the gradients as they are."""
        squares = torch.stack([gradient.square().sum(dtype=torch.float64) for gradient in self._gradients.values()])
        return (self._ranks.sum(squares.sum()) / self._ranks.replicas).sqrt().float()

    @torch.no_grad()
    def update(self, norm: Tensor, max_norm: float) -> None:
        """One step with gradients of the global norm `norm` [] scaled down to at most `max_norm`; 0 doesn't scale."""
        self._step((max_norm / (norm + 1e-6)).clamp(max=1.0) if max_norm else torch.ones_like(norm))
        self.skip()

    def skip(self) -> None:
        """Forgets the gradients."""
        for gradient in self._gradients.values():
            gradient.zero_()

    def _step(self, scale: Tensor) -> None:
        """The update itself, from gradients multiplied by `scale`."""
        for number, group in enumerate(self.param_groups):
            states = [self.state[parameter] for parameter in group["params"]]
            for state in states:
                state["step"] += 1
            step = int(states[0]["step"])
            shard = self._ranks.mesh.get_local_rank(self._ranks.mesh.ndim - 1)  # the same in each replica
            adamw(
                [_local(parameter) for parameter in group["params"]],
                [_local(state["remainder"]) for state in states],
                [self._gradients[parameter] for parameter in group["params"]],
                [_local(state["exp_avg"]) for state in states],
                [_local(state["exp_avg_sq"]) for state in states],
                step=step,
                learning_rate=group["lr"],
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                gradient_scale=scale,
                rounding_seed=((step * self._shards + shard) * len(self.param_groups) + number) % 2**31,
            )

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Fills the state in place: PyTorch's own would cast all of it to the parameters' dtype."""
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for parameter, key in zip(group["params"], saved["params"], strict=True):
                for name, value in state_dict["state"][key].items():
                    self.state[parameter][name].copy_(value)


def _drop_gradient(parameter: Tensor) -> None:
    """FSDP2's own gradient, rounded to bf16: freed at once, layer by layer."""
    parameter.grad = None


def _own_parameters(module: FSDPModule) -> list[Tensor]:
    """The parameters that FSDP2 gathers with a module: all that belong to no sharded module inside it."""
    assert isinstance(module, torch.nn.Module)
    inner = {p for m in module.modules() if m is not module and isinstance(m, FSDPModule) for p in m.parameters()}
    return [parameter for parameter in module.parameters() if parameter not in inner]


def _local(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def _like(local: Tensor, parameter: Tensor) -> DTensor:
    """A DTensor of this rank's shard, laid out as the parameter is."""
    assert isinstance(parameter, DTensor)
    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape,
        stride=parameter.stride(),
    )  # fmt: skip
