# ruff: noqa: ARG001  (fake kernels and autograd contexts have the signature they are called with)
"""RMSNorm as a registered operation, with the residual addition before it fused in."""

from typing import Any, overload

import torch
from torch import Tensor

from vikhr_kernels import reference
from vikhr_kernels.arguments import require_floating, require_like, require_shape
from vikhr_kernels.dispatch import custom_op, runs_on_triton
from vikhr_kernels.reference import accumulation_dtype


@overload
def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: None = None) -> Tensor: ...
@overload
def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> tuple[Tensor, Tensor]: ...
def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """`reference.rms_norm` with its arguments and results, in one kernel forward and two backward.

    On a GPU rows are at most 8192 wide. The weight gradient is summed in a fixed order: equal bits every time.

    Raises:
        ValueError: an argument's shape, dtype or device doesn't fit; it is named.
    """
    require_floating("rms_norm", "x", x)
    require_shape("rms_norm", "weight", weight, x.shape[-1:])
    require_like("rms_norm", "weight", weight, "x", x)
    if residual is not None:
        require_shape("rms_norm", "residual", residual, x.shape)
        require_like("rms_norm", "residual", residual, "x", x)
    rows = (-1, x.shape[-1])
    normalised, summed, _ = _rms_norm(
        x.reshape(rows), weight, eps, None if residual is None else residual.reshape(rows)
    )
    if x.dim() != 2:  # FSDP2 warns of views where a module returns one
        normalised, summed = normalised.view(x.shape), summed.view(x.shape) if residual is not None else summed
    return normalised if residual is None else (normalised, summed)


@custom_op("vikhr::rms_norm")
def _rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """[N, H] -> normalised [N, H], x + residual [N, H] (empty without a residual), 1 / root mean square [N]."""
    if runs_on_triton(x):
        from vikhr_kernels.gpu import rms_norm as gpu

        return gpu.forward(
            x.contiguous(), weight.contiguous(), eps, None if residual is None else residual.contiguous()
        )
    summed = x if residual is None else (x + residual).contiguous()
    scale = torch.rsqrt(summed.to(accumulation_dtype(x.dtype)).square().mean(-1) + eps)
    normalised = reference.rms_norm(summed, weight, eps).contiguous()
    return normalised, x.new_empty(0, x.shape[1]) if residual is None else summed, scale


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = x.shape
    summed = x.new_empty(0 if residual is None else rows, width)
    return x.new_empty(rows, width), summed, x.new_empty(rows, dtype=accumulation_dtype(x.dtype))


@custom_op("vikhr::rms_norm_backward")
def _rms_norm_backward(
    d_normalised: Tensor, d_summed: Tensor | None, summed: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Upstream gradients and `summed` [N, H], weight [H], scale [N] -> gradients of `summed` and of the weight."""
    if runs_on_triton(summed):
        from vikhr_kernels.gpu import rms_norm as gpu

        d_summed = None if d_summed is None else d_summed.contiguous()
        return gpu.backward(d_normalised.contiguous(), d_summed, summed.contiguous(), weight.contiguous(), scale)
    normalised = summed * scale[:, None]  # in the accumulation dtype
    upstream = d_normalised.to(scale.dtype)
    d_weight = (upstream * normalised.to(summed.dtype)).sum(0).to(weight.dtype)
    upstream = upstream * weight
    d_x = scale[:, None] * (upstream - normalised * (upstream * normalised).mean(-1, keepdim=True))
    if d_summed is not None:
        d_x = d_x + d_summed
    return d_x.to(summed.dtype).contiguous(), d_weight


@_rms_norm_backward.register_fake
def _(
    d_normalised: Tensor, d_summed: Tensor | None, summed: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    return summed.new_empty(summed.shape), weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, _, residual = inputs
    _, summed, scale = output
    ctx.has_residual = residual is not None
    ctx.save_for_backward(summed if ctx.has_residual else x, weight, scale)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, d_normalised: Tensor | None, d_summed: Tensor | None, _: None
) -> tuple[Tensor | None, Tensor | None, None, Tensor | None]:
    summed, weight, scale = ctx.saved_tensors
    if d_normalised is None:  # only the sum was used
        return d_summed, None, None, d_summed
    d_x, d_weight = _rms_norm_backward(d_normalised, d_summed if ctx.has_residual else None, summed, weight, scale)
    return d_x, d_weight, None, d_x if ctx.has_residual else None


_rms_norm.register_autograd(_backward, setup_context=_setup_context)
