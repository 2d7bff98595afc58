# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: `silu(gate) * up`, forward and backward, over rows that may be slices of longer ones."""

import triton
import triton.language as tl
from torch import Tensor

from vikhr_kernels import dispatch


@triton.jit
def swiglu_forward_kernel(p_gate, p_up, p_output, size, stride_gate, stride_up, BLOCK: tl.constexpr):
    """A block of a row a program."""
    i_row = (tl.program_id(0) // tl.cdiv(size, BLOCK)).to(tl.int64)
    o_x = tl.program_id(0) % tl.cdiv(size, BLOCK) * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < size
    b_gate = tl.load(p_gate + i_row * stride_gate + o_x, mask=m_x).to(tl.float32)
    b_up = tl.load(p_up + i_row * stride_up + o_x, mask=m_x).to(tl.float32)
    b_output = b_gate * tl.sigmoid(b_gate) * b_up
    tl.store(p_output + i_row * size + o_x, b_output.to(p_output.dtype.element_ty), mask=m_x)


@triton.jit
def swiglu_backward_kernel(
    p_d_output, p_gate, p_up, p_d_both, size, stride_d_output, stride_gate, stride_up, BLOCK: tl.constexpr
):
    """A block of a row a program; the sigmoid is computed again, which costs less than reading it would."""
    i_row = (tl.program_id(0) // tl.cdiv(size, BLOCK)).to(tl.int64)
    o_x = tl.program_id(0) % tl.cdiv(size, BLOCK) * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < size
    b_d_output = tl.load(p_d_output + i_row * stride_d_output + o_x, mask=m_x).to(tl.float32)
    b_gate = tl.load(p_gate + i_row * stride_gate + o_x, mask=m_x).to(tl.float32)
    b_up = tl.load(p_up + i_row * stride_up + o_x, mask=m_x).to(tl.float32)
    b_sigmoid = tl.sigmoid(b_gate)
    b_d_gate = b_d_output * b_up * b_sigmoid * (1 + b_gate * (1 - b_sigmoid))
    b_d_up = b_d_output * b_gate * b_sigmoid
    p_d_both += i_row * (2 * size)
    tl.store(p_d_both + o_x, b_d_gate.to(p_d_both.dtype.element_ty), mask=m_x)
    tl.store(p_d_both + size + o_x, b_d_up.to(p_d_both.dtype.element_ty), mask=m_x)


def in_rows(x: Tensor) -> Tensor:
    """[..., F] as [N, F] with elements side by side: a view where the rows lie evenly apart, else a copy."""
    rows = x.flatten(0, -2) if x.dim() > 1 else x[None]
    return rows if rows.stride(1) == 1 else rows.contiguous()


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """Gate and up [..., F], possibly slices of longer rows -> output [..., F]."""
    output = gate.new_empty(gate.shape)
    gate, up = in_rows(gate), in_rows(up)
    rows, size = gate.shape
    chosen = dispatch.choose("swiglu_forward_kernel", gate.dtype, gate.device, size, loops=True)
    if programs := rows * triton.cdiv(size, chosen.block):
        swiglu_forward_kernel[(programs,)](
            gate, up, output, size, gate.stride(0), up.stride(0), BLOCK=chosen.block, num_warps=chosen.num_warps
        )
    return output


def backward(d_output: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """Upstream gradient, gate and up [..., F], possibly slices of longer rows -> their gradients as one [..., 2F]."""
    *leading, size = gate.shape
    d_both = gate.new_empty(*leading, 2 * size)
    d_output, gate, up = in_rows(d_output), in_rows(gate), in_rows(up)
    chosen = dispatch.choose("swiglu_backward_kernel", gate.dtype, gate.device, size, loops=True)
    if programs := gate.shape[0] * triton.cdiv(size, chosen.block):
        swiglu_backward_kernel[(programs,)](
            d_output,
            gate,
            up,
            d_both,
            size,
            *(x.stride(0) for x in (d_output, gate, up)),
            BLOCK=chosen.block,
            num_warps=chosen.num_warps,
        )
    return d_both
