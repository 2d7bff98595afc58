# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: causal grouped-query attention over packed documents, forward (Dao 2023, arXiv 2307.08691, algorithm 1).

The scale holds a factor log2(e), so that the exponential has base 2, which is one instruction.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vikhr_kernels import attention_dispatch
from vikhr_kernels.attention_dispatch import Length
from vikhr_kernels.gpu.tiles import (
    add_product,
    load_parts,
    multiply_parts,
    scale_parts,
    source,
    store_parts,
    tiled,
    zero_parts,
)

# The maximum before any key: finite, so that a tile without a visible key leaves no NaN, and below every real score.
NOTHING_SEEN = tl.constexpr(-1.0e30)
LOG2_E = 1.4426950408889634


@triton.jit
def keys_seen(p_first, start, last, KEYS: tl.constexpr):
    """The keys of the queries from `start` to `last`, in tiles.

    Some query sees those from `first` on, every one those from `common` up to `diagonal`; `before` and `after` are the
    numbers of tiles in front of and behind these, which need a mask.
    """
    first = tl.load(p_first + start) // KEYS * KEYS
    diagonal = start // KEYS * KEYS
    common = tl.minimum(tl.cdiv(tl.load(p_first + last), KEYS) * KEYS, diagonal)
    return first, common, diagonal, (common - first) // KEYS, tl.cdiv(last + 1 - diagonal, KEYS)


@triton.jit
def _attend(
    b_q, k, v, key, o_query, b_first, b_largest, b_sum, b_out, column_k, column_v, stride_k, stride_v, T, scale,
    D: tl.constexpr, KEYS: tl.constexpr, PARTS: tl.constexpr, MASKED: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax: the keys from `key` on."""
    b_k = load_parts(k, key, column_k, T, stride_k, KEYS, D, PARTS, MASKED, DESCRIPTORS)  # [KEYS, D]
    b_zeros = tl.zeros([b_largest.shape[0], KEYS], dtype=tl.float32)
    b_scores = multiply_parts(b_q, b_k, b_zeros, PARTS)  # [QUERIES, KEYS]
    if MASKED:
        o_key = tl.arange(0, KEYS)[None, :]  # from `key` on: a constant of the program
        m_seen = ((b_first - key)[:, None] <= o_key) & (o_key <= (o_query - key)[:, None])
        b_scores = tl.where(m_seen, b_scores, float("-inf"))
    b_new_largest = tl.maximum(b_largest, tl.max(b_scores, 1))
    b_p = tl.exp2(b_scores * scale - (b_new_largest * scale)[:, None])
    b_decay = tl.exp2((b_largest - b_new_largest) * scale)
    b_v = load_parts(v, key, column_v, T, stride_v, KEYS, D, PARTS, MASKED, DESCRIPTORS)  # [KEYS, D]
    b_out = add_product(scale_parts(b_out, b_decay, PARTS), b_p, b_v, PARTS)  # [QUERIES, D]
    return b_new_largest, b_sum * b_decay + tl.sum(b_p, 1), b_out


@triton.jit(do_not_specialize=["T"])
def flash_attention_forward_kernel(
    q,
    k,
    v,
    p_first,
    p_out,
    p_lse,
    T,
    stride_row,
    scale,
    stride_q,
    stride_k,
    stride_v,
    head_q,
    head_k,
    head_v,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """A tile of queries of one head a program; all heads of a tile, then the tile before it, which mostly sees less."""
    start = (tl.cdiv(T, QUERIES) - 1 - tl.program_id(0) // HEADS) * QUERIES
    i_head = tl.program_id(0) % HEADS
    column_k, column_v = i_head // GROUP * head_k, i_head // GROUP * head_v
    o_query = start + tl.arange(0, QUERIES)
    m_query = o_query < T
    last = tl.minimum(start + QUERIES, T) - 1
    b_first = tl.load(p_first + o_query, mask=m_query, other=0)
    first, common, diagonal, before, after = keys_seen(p_first, start, last, KEYS)

    b_q = load_parts(q, start, i_head * head_q, T, stride_q, QUERIES, D, PARTS, True, DESCRIPTORS)  # [QUERIES, D]
    b_largest = tl.full([QUERIES], NOTHING_SEEN, dtype=tl.float32)
    b_sum = tl.zeros([QUERIES], dtype=tl.float32)
    b_out = zero_parts(QUERIES, D, PARTS)
    for i in range(before + after):
        key = tl.where(i < before, first + i * KEYS, diagonal + (i - before) * KEYS)
        b_largest, b_sum, b_out = _attend(
            b_q, k, v, key, o_query, b_first, b_largest, b_sum, b_out, column_k, column_v, stride_k, stride_v, T, scale,
            D, KEYS, PARTS, True, DESCRIPTORS,
        )  # fmt: skip
    for key in range(common, diagonal, KEYS):
        b_largest, b_sum, b_out = _attend(
            b_q, k, v, key, o_query, b_first, b_largest, b_sum, b_out, column_k, column_v, stride_k, stride_v, T, scale,
            D, KEYS, PARTS, False, DESCRIPTORS,
        )  # fmt: skip
    tl.store(p_lse + tl.cast(i_head, tl.int64) * stride_row + o_query, b_largest + tl.log2(b_sum) / scale, mask=m_query)
    p_rows = p_out + (tl.cast(o_query, tl.int64) * HEADS + i_head) * D
    store_parts(p_rows, m_query, scale_parts(b_out, 1 / b_sum, PARTS), 1.0, D, PARTS)


def forward(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor, length: Length, softmax_scale: float
) -> tuple[Tensor, Tensor]:
    """q [T, Hq, D], k and v [T, Hkv, D], first visible keys [T] -> attended [T, Hq, D], logsumexp [Hq, T'].

    The logsumexp is that of the scaled scores over the scale: near the largest score it has no rounding but its own.
    T' is T rounded up to a multiple of 128, so that the backward pass may load whole tiles of statistics.
    """
    tokens, heads, size = q.shape
    q, k, v = tiled(q), tiled(k), tiled(v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, triton.cdiv(tokens, 128) * 128, dtype=torch.float32, device=q.device)
    chosen = attention_dispatch.choose("flash_attention_forward_kernel", q.dtype, q.device, size, length)
    flash_attention_forward_kernel[(triton.cdiv(tokens, chosen.queries) * heads,)](
        source(q, chosen.queries, chosen),
        source(k, chosen.keys, chosen),
        source(v, chosen.keys, chosen),
        first,
        out,
        lse,
        tokens,
        lse.stride(0),
        softmax_scale * LOG2_E,
        *(x.stride(0) for x in (q, k, v)),
        *(x.stride(1) for x in (q, k, v)),
        HEADS=heads,
        GROUP=heads // k.shape[1],
        D=size,
        **chosen.constants,
    )
    return out, lse
