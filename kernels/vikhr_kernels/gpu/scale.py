# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: a tensor times a number, rounded to another dtype or added to what is there."""

import triton
import triton.language as tl
from torch import Tensor

from vikhr_kernels import dispatch


@triton.jit
def scale_kernel(p_out, p_x, p_factor, size, ACCUMULATE: tl.constexpr, BLOCK: tl.constexpr):
    """A block of elements a program."""
    o_x = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < size
    b_scaled = tl.load(p_x + o_x, mask=m_x).to(tl.float32) * tl.load(p_factor)
    if ACCUMULATE:
        b_scaled += tl.load(p_out + o_x, mask=m_x)
    tl.store(p_out + o_x, b_scaled.to(p_out.dtype.element_ty), mask=m_x)


def scale_into(out: Tensor, x: Tensor, factor: Tensor, accumulate: bool) -> None:
    """Contiguous out and x of one shape, float32 factor []; out is x * factor, or that is added to it."""
    chosen = dispatch.choose("scale_kernel", x.dtype, x.device, x.numel(), loops=True)
    if programs := triton.cdiv(x.numel(), chosen.block):
        scale_kernel[(programs,)](
            out, x, factor, x.numel(), ACCUMULATE=accumulate, BLOCK=chosen.block, num_warps=chosen.num_warps
        )
