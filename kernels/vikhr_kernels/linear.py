"""Products with the weights of linear layers: one for all that share an input, their gradients summed in place."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vikhr_kernels import reference
from vikhr_kernels.gradient_sum import GradientSum
from vikhr_kernels.layout import side_by_side, stacked


def linear(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """`reference.linear`: the products of x with each weight.

    Weights that lie one after another in memory (see `stack`) are multiplied at once, and what is returned are slices
    of the one result. The gradient of a weight with a `GradientSum` is added to that by the product that makes it;
    autograd then gets none. A compiler, and autocast, which changes dtypes, get the plain products instead.

    Args:
        x: [..., C].
        weights: [N_i, C] each, in the dtype of x.

    Returns:
        [..., N_i] for each weight.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return reference.linear(x, *weights)
    if not torch.is_grad_enabled():
        return _products(x, weights)
    results: tuple[Tensor, ...] = _Linear.apply(x, *weights)
    return results


def _products(x: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    whole = stacked(weights)
    if whole is None or len(weights) == 1:
        return reference.linear(x, *weights)
    slices: tuple[Tensor, ...] = F.linear(x, whole).split([len(weight) for weight in weights], dim=-1)
    return slices


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        ctx.sums = [GradientSum.of(weight) for weight in weights]
        return _products(x, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        wants_x, *wants_weights = ctx.needs_input_grad
        rows = x.reshape(-1, x.shape[-1])  # [T, C]
        d_outputs = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]  # [T, N_i]
        whole = stacked(weights)
        groups = [[index] for index in range(len(weights))] if whole is None else [list(range(len(weights)))]
        d_x: Tensor | None = None
        d_weights: list[Tensor | None] = [None] * len(weights)
        for group in groups:  # of weights that are one product
            weight = weights[group[0]] if whole is None else whole
            d_output = side_by_side([d_outputs[index] for index in group])
            if wants_x:
                d_x = torch.mm(d_output, weight) if d_x is None else d_x.addmm_(d_output, weight)
            sums = [ctx.sums[index] for index in group]
            if all(one is not None for one in sums):
                GradientSum.add_product(sums, d_output.T, rows)
            elif any(wants_weights[index] for index in group):
                sizes = [len(weights[index]) for index in group]
                for index, d_weight in zip(group, torch.mm(d_output.T, rows).split(sizes), strict=True):
                    if ctx.sums[index] is None:
                        d_weights[index] = d_weight
                    else:
                        ctx.sums[index].add(d_weight)
        return None if d_x is None else d_x.view_as(x), *d_weights
