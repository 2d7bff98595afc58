# ruff: noqa: ARG001  (fake kernels and autograd contexts have the signature they are called with)
"""SwiGLU's elementwise half, `silu(gate) * up`, as a registered operation."""

from typing import Any

import torch
from torch import Tensor

from vikhr_kernels import reference
from vikhr_kernels.arguments import require, require_floating, require_like, require_shape
from vikhr_kernels.dispatch import custom_op, runs_on_triton
from vikhr_kernels.reference import accumulation_dtype


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`reference.swiglu` with its arguments and result, in one kernel each way; computed in float32 and rounded once.

    Gate and up may be slices of longer rows, as the halves of one product are: they are read, and kept for the backward
    pass, without a copy. Their gradients are always the two halves of one contiguous tensor [..., 2F].

    Raises:
        ValueError: an argument's shape, dtype or device doesn't fit; it is named.
    """
    require_floating("swiglu", "gate", gate)
    require(gate.dim() > 0, "swiglu: gate must be [..., F], not a scalar")
    require_shape("swiglu", "up", up, gate.shape)
    require_like("swiglu", "up", up, "gate", gate)
    output: Tensor = _swiglu(gate, up)
    return output


# Compiled graphs on a user's disk are found by this name alone: an operation whose backward returns other tensors than
# it did needs a new one.
@custom_op("vikhr::swiglu_rows")
def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    if runs_on_triton(gate):
        from vikhr_kernels.gpu import swiglu as gpu

        return gpu.forward(gate, up)
    return reference.swiglu(gate, up).contiguous()


@_swiglu.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


@custom_op("vikhr::swiglu_backward")
def _swiglu_backward(d_output: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """The gradients of gate and up [..., F] side by side, [..., 2F]."""
    if runs_on_triton(gate):
        from vikhr_kernels.gpu import swiglu as gpu

        return gpu.backward(d_output, gate, up)
    d_both = _both(gate)
    d_gate, d_up = d_both.chunk(2, -1)
    wide = accumulation_dtype(gate.dtype)
    upstream, x, y = (t.to(wide) for t in (d_output, gate, up))
    sigmoid = x.sigmoid()
    torch.mul(upstream * y * sigmoid, 1 + x * (1 - sigmoid), out=d_gate)
    torch.mul(upstream * x, sigmoid, out=d_up)
    return d_both


def _both(gate: Tensor) -> Tensor:
    *leading, size = gate.shape
    return gate.new_empty(*leading, 2 * size)


@_swiglu_backward.register_fake
def _(d_output: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    return _both(gate)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, d_output: Tensor) -> tuple[Tensor, Tensor]:
    d_gate, d_up = _swiglu_backward(d_output, *ctx.saved_tensors).chunk(2, -1)
    return d_gate, d_up


_swiglu.register_autograd(_backward, setup_context=_setup_context)
