# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: RMSNorm, with the residual addition before it, forward and backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vikhr_kernels import dispatch


@triton.jit
def rms_norm_forward_kernel(
    p_x, p_residual, p_weight, p_normalised, p_summed, p_scale, eps, H, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr
):
    """One row a program: sums, mean square, normalised row and its scale (1 / root mean square)."""
    i_row = tl.program_id(0).to(tl.int64)
    o_h = tl.arange(0, BLOCK)
    m_h = o_h < H
    o_x = i_row * H + o_h
    b_x = tl.load(p_x + o_x, mask=m_h, other=0.0).to(tl.float32)
    dtype = p_normalised.dtype.element_ty
    if HAS_RESIDUAL:
        b_residual = tl.load(p_residual + o_x, mask=m_h, other=0.0).to(tl.float32)
        b_sum = (b_x + b_residual).to(dtype)
        tl.store(p_summed + o_x, b_sum, mask=m_h)
        b_x = b_sum.to(tl.float32)  # as rounded: the next layer sees that value
    scale = tl.rsqrt(tl.sum(b_x * b_x, 0) / H + eps)
    tl.store(p_scale + i_row, scale)
    b_weight = tl.load(p_weight + o_h, mask=m_h, other=0.0).to(tl.float32)
    b_rounded = (b_x * scale).to(dtype).to(tl.float32)
    tl.store(p_normalised + o_x, (b_weight * b_rounded).to(dtype), mask=m_h)


@triton.jit
def rms_norm_backward_kernel(
    p_d_normalised,
    p_d_summed,
    p_summed,
    p_weight,
    p_scale,
    p_d_x,
    p_partial,
    N,
    H,
    rows_per_program,
    HAS_D_SUMMED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Consecutive rows a program: their input gradients, and their share of the weight gradient."""
    i_program = tl.program_id(0)
    o_h = tl.arange(0, BLOCK)
    m_h = o_h < H
    b_weight = tl.load(p_weight + o_h, mask=m_h, other=0.0).to(tl.float32)
    b_partial = tl.zeros([BLOCK], dtype=tl.float32)
    dtype = p_d_x.dtype.element_ty
    first = i_program * rows_per_program
    for i_row in range(first, tl.minimum(first + rows_per_program, N)):
        o_x = tl.cast(i_row, tl.int64) * H + o_h
        scale = tl.load(p_scale + i_row)
        b_normalised = tl.load(p_summed + o_x, mask=m_h, other=0.0).to(tl.float32) * scale
        b_upstream = tl.load(p_d_normalised + o_x, mask=m_h, other=0.0).to(tl.float32)
        b_partial += b_upstream * b_normalised.to(dtype).to(tl.float32)
        b_upstream *= b_weight
        mean = tl.sum(b_upstream * b_normalised, 0) / H
        b_d_x = scale * (b_upstream - b_normalised * mean)
        if HAS_D_SUMMED:
            b_d_x += tl.load(p_d_summed + o_x, mask=m_h, other=0.0).to(tl.float32)
        tl.store(p_d_x + o_x, b_d_x.to(dtype), mask=m_h)
    tl.store(p_partial + i_program.to(tl.int64) * H + o_h, b_partial, mask=m_h)


@triton.jit
def rms_norm_weight_gradient_kernel(p_partial, p_d_weight, P, H, BLOCK: tl.constexpr):
    """The sum of P partial weight gradients, a block of columns a program: no atomics, so the same bits every time."""
    o_h = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_sum = tl.zeros([BLOCK, BLOCK], dtype=tl.float32)
    for start in range(0, P, BLOCK):
        o_p = start + tl.arange(0, BLOCK)
        m_tile = (o_p[:, None] < P) & (o_h[None, :] < H)
        b_sum += tl.load(p_partial + o_p[:, None] * H + o_h[None, :], mask=m_tile, other=0.0)  # [programs, columns]
    tl.store(p_d_weight + o_h, tl.sum(b_sum, 0).to(p_d_weight.dtype.element_ty), mask=o_h < H)


def forward(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Contiguous x [N, H], weight [H], residual [N, H] or None -> normalised, sum (or empty) [N, H] and scale [N]."""
    rows, width = x.shape
    normalised, summed = x.new_empty(x.shape), x.new_empty(0 if residual is None else rows, width)
    scale = x.new_empty(rows, dtype=torch.float32)
    chosen = dispatch.choose("rms_norm_forward_kernel", x.dtype, x.device, width)
    if rows:
        rms_norm_forward_kernel[(rows,)](
            x,
            x if residual is None else residual,
            weight,
            normalised,
            summed,
            scale,
            eps,
            width,
            HAS_RESIDUAL=residual is not None,
            BLOCK=chosen.block,
            num_warps=chosen.num_warps,
        )
    return normalised, summed, scale


def backward(
    d_normalised: Tensor, d_summed: Tensor | None, summed: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Contiguous upstream gradients and what forward made -> gradient of the sum [N, H] and of the weight [H]."""
    rows, width = summed.shape
    d_x, d_weight = summed.new_empty(summed.shape), weight.new_empty(weight.shape)
    chosen = dispatch.choose("rms_norm_backward_kernel", summed.dtype, summed.device, width)
    programs = max(1, min(rows, dispatch.multiprocessors(summed.device) * chosen.programs))
    partial = weight.new_empty(programs, width, dtype=torch.float32)
    rms_norm_backward_kernel[(programs,)](
        d_normalised,
        d_normalised if d_summed is None else d_summed,
        summed,
        weight,
        scale,
        d_x,
        partial,
        rows,
        width,
        triton.cdiv(rows, programs),
        HAS_D_SUMMED=d_summed is not None,
        BLOCK=chosen.block,
        num_warps=chosen.num_warps,
    )
    columns = dispatch.choose("rms_norm_weight_gradient_kernel", weight.dtype, weight.device, width, loops=True)
    rms_norm_weight_gradient_kernel[(triton.cdiv(width, columns.block),)](
        partial, d_weight, programs, width, BLOCK=columns.block, num_warps=columns.num_warps
    )
    return d_x, d_weight
