# ruff: noqa: ARG001  (fake kernels and autograd contexts have the signature they are called with)
"""Rotary position embedding as a registered operation; its derivative is the rotation by the opposite angles."""

import functools
from typing import Any

import torch
from torch import Tensor

from vikhr_kernels import reference
from vikhr_kernels.arguments import require, require_floating, require_like, require_shape
from vikhr_kernels.dispatch import custom_op, runs_on_triton


def rope(q: Tensor, k: Tensor, positions: Tensor, theta: float) -> tuple[Tensor, Tensor]:
    """`reference.rope` with its arguments and results: queries and keys in one kernel.

    The kernel rotates in float32 by angles that aren't rounded to the dtype of `q`. On a GPU heads have at most 256
    elements. Heads may be slices of longer rows: where the elements of a head lie side by side, they are read without a
    copy. What is returned is contiguous.

    Raises:
        ValueError: an argument's shape, dtype or device doesn't fit; it is named.
    """
    require_floating("rope", "q", q)
    require(q.dim() == 3 and q.shape[-1] % 2 == 0, f"rope: q must be [T, Hq, D] with even D, not {list(q.shape)}")
    tokens, _, size = q.shape
    require(
        k.dim() == 3 and k.shape[0] == tokens and k.shape[2] == size,
        f"rope: k must be [{tokens}, Hkv, {size}] to fit q, not {list(k.shape)}",
    )
    require_like("rope", "k", k, "q", q)
    require_shape("rope", "positions", positions, (tokens,))
    require(
        positions.dtype in (torch.int32, torch.int64) and positions.device == q.device,
        f"rope: positions must be int32 or int64 on {q.device}, not {positions.dtype} on {positions.device}",
    )
    rotated_q, rotated_k = _rope(q, k, positions, theta, False)
    return rotated_q, rotated_k


@custom_op("vikhr::rope")
def _rope(q: Tensor, k: Tensor, positions: Tensor, theta: float, inverse: bool) -> tuple[Tensor, Tensor]:
    """The rotation by each position's angles, or by the opposite ones; results are contiguous."""
    if runs_on_triton(q):
        from vikhr_kernels.gpu import rope as gpu

        q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
        frequencies = _frequencies(q.shape[-1] // 2, theta, q.device)
        return gpu.rotate(q, k, positions.contiguous(), frequencies, inverse)
    rotated_q, rotated_k = reference.rope(q, k, -positions if inverse else positions, theta)
    return rotated_q.contiguous(), rotated_k.contiguous()


@functools.lru_cache(maxsize=32)
def _frequencies(half: int, theta: float, device: torch.device) -> Tensor:
    """Angle a position, [D/2] float32, by the very operations of the reference: it isn't made again at every call."""
    return 1 / theta ** (torch.arange(half, dtype=torch.float32, device=device) / half)


@_rope.register_fake
def _(q: Tensor, k: Tensor, positions: Tensor, theta: float, inverse: bool) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, positions, ctx.theta, ctx.inverse = inputs
    ctx.save_for_backward(positions)


def _backward(ctx: Any, d_q: Tensor, d_k: Tensor) -> tuple[Tensor | None, ...]:
    (positions,) = ctx.saved_tensors
    return *_rope(d_q, d_k, positions, ctx.theta, not ctx.inverse), None, None, None


_rope.register_autograd(_backward, setup_context=_setup_context)
