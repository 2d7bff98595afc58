"""Matrices that lie together in memory, and so are one matrix without a copy."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def stack(weights: Sequence[Tensor]) -> None:
    """Moves matrices [N_i, C] into one buffer, one after another; they keep their identity and their values."""
    buffer = torch.cat([weight.detach() for weight in weights])
    for weight, rows in zip(weights, buffer.split([len(weight) for weight in weights]), strict=True):
        weight.data = rows


def stacked(matrices: Sequence[Tensor]) -> Tensor | None:
    """Contiguous matrices [N_i, C] as one [ΣN_i, C]; None where they don't lie one after another."""
    first = matrices[0]
    if len(matrices) == 1:
        return first
    if not all(x.is_contiguous() and x.shape[1] == first.shape[1] for x in matrices):
        return None
    if not _follow_each_other(matrices, [x.numel() for x in matrices]):
        return None
    return first.as_strided((sum(map(len, matrices)), first.shape[1]), first.stride())


def side_by_side(columns: Sequence[Tensor]) -> Tensor:
    """Matrices [T, N_i] as one [T, ΣN_i]: without a copy where they are its slices already."""
    first, sizes = columns[0], [x.shape[1] for x in columns]
    if len(columns) == 1:
        return first
    if all(x.stride() == (sum(sizes), 1) for x in columns) and _follow_each_other(columns, sizes):
        return first.as_strided((len(first), sum(sizes)), first.stride())
    return torch.cat(list(columns), dim=1)


def _follow_each_other(tensors: Sequence[Tensor], steps: Sequence[int]) -> bool:
    """Whether each begins so many elements behind the one before, in the same memory."""
    storage, next_one = tensors[0].untyped_storage().data_ptr(), tensors[0].data_ptr()
    for tensor, step in zip(tensors, steps, strict=True):
        if tensor.data_ptr() != next_one or tensor.untyped_storage().data_ptr() != storage:
            return False
        next_one += step * tensor.element_size()
    return True
