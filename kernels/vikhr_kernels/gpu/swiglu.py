# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: `silu(gate) * up`, forward and backward, over flat tensors."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vikhr_kernels import dispatch


@triton.jit
def swiglu_forward_kernel(p_gate, p_up, p_output, size, BLOCK: tl.constexpr):
    """A block of elements a program."""
    o_x = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < size
    b_gate = tl.load(p_gate + o_x, mask=m_x).to(tl.float32)
    b_up = tl.load(p_up + o_x, mask=m_x).to(tl.float32)
    tl.store(p_output + o_x, (b_gate * tl.sigmoid(b_gate) * b_up).to(p_output.dtype.element_ty), mask=m_x)


@triton.jit
def swiglu_backward_kernel(p_d_output, p_gate, p_up, p_d_gate, p_d_up, size, BLOCK: tl.constexpr):
    """A block of elements a program; the sigmoid is computed again, which costs less than reading it would."""
    o_x = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < size
    b_d_output = tl.load(p_d_output + o_x, mask=m_x).to(tl.float32)
    b_gate = tl.load(p_gate + o_x, mask=m_x).to(tl.float32)
    b_up = tl.load(p_up + o_x, mask=m_x).to(tl.float32)
    b_sigmoid = tl.sigmoid(b_gate)
    b_d_gate = b_d_output * b_up * b_sigmoid * (1 + b_gate * (1 - b_sigmoid))
    tl.store(p_d_gate + o_x, b_d_gate.to(p_d_gate.dtype.element_ty), mask=m_x)
    tl.store(p_d_up + o_x, (b_d_output * b_gate * b_sigmoid).to(p_d_up.dtype.element_ty), mask=m_x)


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """Contiguous gate and up -> output, of one shape."""
    output = torch.empty_like(gate)
    chosen = dispatch.choose("swiglu_forward_kernel", gate.dtype, gate.device, gate.numel(), loops=True)
    if programs := triton.cdiv(gate.numel(), chosen.block):
        swiglu_forward_kernel[(programs,)](
            gate, up, output, gate.numel(), BLOCK=chosen.block, num_warps=chosen.num_warps
        )
    return output


def backward(d_output: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Contiguous upstream gradient, gate and up -> their gradients."""
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
    chosen = dispatch.choose("swiglu_backward_kernel", gate.dtype, gate.device, gate.numel(), loops=True)
    if programs := triton.cdiv(gate.numel(), chosen.block):
        swiglu_backward_kernel[(programs,)](
            d_output, gate, up, d_gate, d_up, gate.numel(), BLOCK=chosen.block, num_warps=chosen.num_warps
        )
    return d_gate, d_up
