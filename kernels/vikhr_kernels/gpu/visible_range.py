# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: which keys each query sees, and which queries see each key, as one interval a token.

Causality, documents and the sliding window are one condition, `first[i] <= j <= i`, or seen from the key,
`j <= i < end[j]`. Both bounds never decrease along the packed tokens, so the keys of a whole tile of queries are an
interval too: tiles need not begin where documents do, and many short documents share one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vikhr_kernels import dispatch


@triton.jit(do_not_specialize=["T", "documents", "steps", "window"])  # they change with every batch
def visible_range_kernel(p_cu_seqlens, p_first, p_end, T, documents, steps, window, BLOCK: tl.constexpr):
    """A block of tokens a program: each finds its document by bisection."""
    o_token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_token = o_token < T
    b_document = tl.zeros([BLOCK], dtype=tl.int32)
    b_next = b_document + documents
    for _ in range(steps):  # cu_seqlens[document] <= token < cu_seqlens[next] holds throughout
        b_middle = (b_document + b_next) // 2
        m_after = tl.load(p_cu_seqlens + b_middle) <= o_token
        b_document = tl.where(m_after, b_middle, b_document)
        b_next = tl.where(m_after, b_next, b_middle)
    b_start = tl.load(p_cu_seqlens + b_document)
    b_stop = tl.load(p_cu_seqlens + b_document + 1)
    tl.store(p_first + o_token, tl.maximum(b_start, o_token - window + 1), mask=m_token)
    tl.store(p_end + o_token, tl.minimum(b_stop, o_token + window), mask=m_token)


def visible_range(cu_seqlens: Tensor, tokens: int, window: int) -> tuple[Tensor, Tensor]:
    """cu_seqlens [documents + 1] int32 -> first key a query sees, and end of the queries that see a key, [T] int32."""
    first, end = (torch.empty(tokens, dtype=torch.int32, device=cu_seqlens.device) for _ in range(2))
    documents = cu_seqlens.numel() - 1
    chosen = dispatch.choose("visible_range_kernel", torch.int32, cu_seqlens.device, tokens, loops=True)
    visible_range_kernel[(triton.cdiv(tokens, chosen.block),)](
        cu_seqlens,
        first,
        end,
        tokens,
        documents,
        documents.bit_length(),
        window,
        BLOCK=chosen.block,
        num_warps=chosen.num_warps,
    )
    return first, end
