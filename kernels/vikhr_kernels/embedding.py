"""The embedding of tokens, whose gradient may be added row by row to a sum."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vikhr_kernels.gradient_sum import GradientSum


def embedding(tokens: Tensor, weight: Tensor) -> Tensor:
    """Rows of a weight: its gradient, where it has a `GradientSum`, never exists as a matrix of its own.

    Equal bits every time: the rows of a token are added in a fixed order.

    Args:
        tokens: [...] int64.
        weight: [V, H].

    Returns:
        [..., H].
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return F.embedding(tokens, weight)
    rows: Tensor = _Embedding.apply(tokens, weight)
    return rows


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.sum, ctx.vocabulary = GradientSum.of(weight), len(weight)
        return F.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None]:
        (tokens,) = ctx.saved_tensors
        if ctx.sum is None:
            return None, torch.ops.aten.embedding_dense_backward(gradient, tokens, ctx.vocabulary, -1, False)
        ctx.sum.add_rows(tokens.flatten(), gradient.flatten(0, -2))
        return None, None
