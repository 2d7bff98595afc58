"""Products with the weights of linear layers: one for all that share an input, their gradients summed in place."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vikhr_kernels.gradient_sum import add_product, gradient_sum, stacked


def linear(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """`reference.linear`: the products of x with each weight.

    Weights that lie one after another in memory (see `stack`) are multiplied at once, and what is returned are slices
    of the one result. The gradient of a weight with a `GradientSum` is added to that by the product that makes it;
    autograd then gets none.

    Args:
        x: [..., K].
        weights: [N_i, K] each, in the dtype of x.

    Returns:
        [..., N_i] for each weight.
    """
    results: tuple[Tensor, ...] = _Linear.apply(x, *weights)
    return results


@torch.no_grad()
def stack(weights: list[Tensor]) -> None:
    """Moves matrices [N_i, K] into one buffer, one after another; they keep their identity and their values."""
    buffer = torch.cat([weight.detach() for weight in weights])
    for weight, rows in zip(weights, buffer.split([len(weight) for weight in weights]), strict=True):
        weight.data = rows


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        ctx.sums = [gradient_sum(weight) for weight in weights]
        whole = stacked(list(weights))
        if whole is None:
            return tuple(F.linear(x, weight) for weight in weights)
        slices: tuple[Tensor, ...] = F.linear(x, whole).split([len(weight) for weight in weights], dim=-1)
        return slices

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        wants_x, *wants_weights = ctx.needs_input_grad
        rows = x.flatten(0, -2)  # [T, K]
        d_outputs = [gradient.flatten(0, -2) for gradient in gradients]  # [T, N_i]
        whole = stacked(weights)
        groups = [[index] for index in range(len(weights))] if whole is None else [list(range(len(weights)))]
        d_x: Tensor | None = None
        d_weights: list[Tensor | None] = [None] * len(weights)
        for group in groups:  # of weights that are one product
            weight = weights[group[0]] if whole is None else whole
            d_output = _side_by_side([d_outputs[index] for index in group])
            if wants_x:
                d_x = torch.mm(d_output, weight) if d_x is None else d_x.addmm_(d_output, weight)
            sums = [ctx.sums[index] for index in group]
            if all(sums):
                add_product(sums, d_output.T, rows)
            elif any(wants_weights[index] for index in group):
                sizes = [len(weights[index]) for index in group]
                for index, d_weight in zip(group, torch.mm(d_output.T, rows).split(sizes), strict=True):
                    if ctx.sums[index] is None:
                        d_weights[index] = d_weight
                    else:
                        ctx.sums[index].add(d_weight)
        return None if d_x is None else d_x.view_as(x), *d_weights


def _side_by_side(columns: list[Tensor]) -> Tensor:
    """Matrices [T, N_i] as one [T, ΣN_i]: without a copy where they are its slices already."""
    first = columns[0]
    storage, end, width = first.untyped_storage().data_ptr(), first.data_ptr(), sum(x.shape[1] for x in columns)
    for column in columns:
        follows = column.data_ptr() == end and column.untyped_storage().data_ptr() == storage
        if not follows or column.stride() != (width, 1):
            return torch.cat(columns, dim=1)
        end += column.shape[1] * column.element_size()
    return first.as_strided((len(first), width), (width, 1))
