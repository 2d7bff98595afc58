"""The gradients of a step in float32 or wider: summed in place on one rank, taken from FSDP2 on several."""

from functools import partial

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.distributed.sharding import local, sharded_modules
from vikhr_fast.model.mistral import Mistral
from vikhr_kernels import GradientSum


class LocalGradients:
    """Of a model on one rank: the products that make weights' gradients add them up (`vikhr_kernels.linear`).

    What reaches autograd's own `.grad` (the norms' gradients) is added and dropped as soon as it is there.

    Args:
        model: not sharded.
        dtype: of the sums.
    """

    def __init__(self, model: Mistral, dtype: torch.dtype) -> None:
        totals: dict[Tensor, Tensor] = {}
        for weights in model.sharing_input():
            rows = [len(weight) for weight in weights]
            buffer = weights[0].new_empty((sum(rows), *weights[0].shape[1:]), dtype=dtype)
            totals.update(zip(weights, buffer.split(rows), strict=True))
        self._sums: dict[Tensor, GradientSum] = {}
        self._names: dict[Tensor, str] = {}
        for name, parameter in model.named_parameters():
            total = totals.get(parameter)
            one = GradientSum(torch.empty_like(parameter, dtype=dtype) if total is None else total)
            one.attach(parameter)
            parameter.register_post_accumulate_grad_hook(partial(_take, one))
            self._sums[parameter], self._names[parameter] = one, name
        self.num_bytes = sum(parameter.numel() for parameter in self._sums) * dtype.itemsize

    def of(self, parameter: Tensor) -> Tensor:
        """A parameter's sum since `clear`.

        Raises:
            RuntimeError: no gradient reached it.
        """
        if self._sums[parameter].is_empty:
            raise RuntimeError(f"no gradient reached {self._names[parameter]}")
        return self._sums[parameter].total

    def clear(self) -> None:
        """Forgets the sums, whole or half-filled."""
        for one in self._sums.values():
            one.clear()


def _take(one: GradientSum, parameter: Tensor) -> None:
    if parameter.grad is not None:  # it is where a product has added the gradient already
        one.add(parameter.grad)
        parameter.grad = None


class ReducedGradients:
    """Of shards in bf16 under FSDP2, which would round the reduced gradients to that: taken from it in float32 before.

    Args:
        model: sharded, and its gradients reduced in float32.
        ranks: of the run.
    """

    def __init__(self, model: Mistral, ranks: Ranks) -> None:
        self._shards = ranks.mesh.size(-1)  # ranks that share one copy of the weights
        self._sums: dict[Tensor, Tensor] = {}
        for parameter in model.parameters():
            self._sums[parameter] = torch.zeros_like(local(parameter), dtype=torch.float32)
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
        for module in sharded_modules(model):
            module.set_all_reduce_hook(partial(self._take, _own_parameters(module)))

    def of(self, parameter: Tensor) -> Tensor:
        """This rank's part of a parameter's sum since `clear`, zeros where nothing was added."""
        return self._sums[parameter]

    def clear(self) -> None:
        """Forgets the sums, whole or half-filled."""
        for one in self._sums.values():
            one.zero_()

    def _take(self, parameters: list[Tensor], reduced: Tensor) -> None:
        """Adds a module's reduced gradients: one after another in `reduced`, each padded to equal rows a rank."""
        if reduced.is_cuda:  # FSDP2 drops it before this has run; the next module's would take its memory
            reduced.record_stream(torch.cuda.current_stream())
        start = 0
        for parameter in parameters:
            one = self._sums[parameter]
            one.add_(reduced[start : start + one.numel()].view_as(one))
            rows = -(-parameter.shape[0] // self._shards)
            start += rows * (parameter.numel() // parameter.shape[0])
        if start != reduced.numel():
            raise RuntimeError("no gradient reached some of a module's parameters")


def _drop_gradient(parameter: Tensor) -> None:
    """FSDP2's own gradient, rounded to bf16: freed at once, layer by layer."""
    parameter.grad = None


def _own_parameters(module: FSDPModule) -> list[Tensor]:
    """The parameters that FSDP2 gathers with a module: all that belong to no sharded module inside it."""
    assert isinstance(module, torch.nn.Module)
    inner = {p for m in module.modules() if m is not module and isinstance(m, FSDPModule) for p in m.parameters()}
    return [parameter for parameter in module.parameters() if parameter not in inner]
