# ruff: noqa: ARG001  (fake kernels and autograd contexts have the signature they are called with)
"""SwiGLU's elementwise half, `silu(gate) * up`, as a registered operation."""

from typing import Any

import torch
from torch import Tensor

from vikhr_kernels import reference
from vikhr_kernels.arguments import require_floating, require_like, require_shape
from vikhr_kernels.dispatch import runs_on_triton
from vikhr_kernels.reference import accumulation_dtype


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`reference.swiglu` with its arguments and result, in one kernel each way; computed in float32 and rounded once.

    Raises:
        ValueError: an argument's shape, dtype or device doesn't fit; it is named.
    """
    require_floating("swiglu", "gate", gate)
    require_shape("swiglu", "up", up, gate.shape)
    require_like("swiglu", "up", up, "gate", gate)
    output: Tensor = _swiglu(gate, up)
    return output


@torch.library.custom_op("vikhr::swiglu", mutates_args=())
def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    if runs_on_triton(gate):
        from vikhr_kernels.gpu import swiglu as gpu

        return gpu.forward(gate.contiguous(), up.contiguous())
    return reference.swiglu(gate, up).contiguous()


@_swiglu.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


@torch.library.custom_op("vikhr::swiglu_backward", mutates_args=())
def _swiglu_backward(d_output: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    if runs_on_triton(gate):
        from vikhr_kernels.gpu import swiglu as gpu

        return gpu.backward(d_output.contiguous(), gate.contiguous(), up.contiguous())
    wide = accumulation_dtype(gate.dtype)
    upstream, x, y = (t.to(wide) for t in (d_output, gate, up))
    sigmoid = x.sigmoid()
    d_gate = upstream * y * sigmoid * (1 + x * (1 - sigmoid))
    return tuple(t.to(gate.dtype).contiguous() for t in (d_gate, upstream * x * sigmoid))  # type: ignore[return-value]


@_swiglu_backward.register_fake
def _(d_output: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, d_output: Tensor) -> tuple[Tensor, Tensor]:
    d_gate, d_up = _swiglu_backward(d_output, *ctx.saved_tensors)
    return d_gate, d_up


_swiglu.register_autograd(_backward, setup_context=_setup_context)
