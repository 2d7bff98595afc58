# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: the gradients of flash attention (arXiv 2307.08691, algorithm 2), without atomics: the same bits every time.

One kernel walks over the keys of a tile of queries and makes dQ, the other over the queries of a tile of keys, for
all query heads of its group, and makes dK and dV. Both make the probabilities again from the logsumexp: 7 products of
tiles where a kernel that adds up dQ in memory, in whatever order, needs 5.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vikhr_kernels import attention_dispatch
from vikhr_kernels.attention_dispatch import Length
from vikhr_kernels.gpu.flash_attention import LOG2_E, keys_seen
from vikhr_kernels.gpu.tiles import (
    add_product,
    load_parts,
    multiply_parts,
    source,
    store_parts,
    tiled,
    zero_parts,
)
from vikhr_kernels.packed_documents import BLOCK


@triton.jit
def _query_gradient_step(
    b_q, b_d_out, b_lse, b_delta, k, v, key, o_query, b_first, b_d_q, column_k, column_v, stride_k, stride_v, T, scale,
    D: tl.constexpr, KEYS: tl.constexpr, PARTS: tl.constexpr, MASKED: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """What the keys from `key` on add to dQ, but for the scale."""
    b_k = load_parts(k, key, column_k, T, stride_k, KEYS, D, PARTS, MASKED, DESCRIPTORS)  # [KEYS, D]
    b_v = load_parts(v, key, column_v, T, stride_v, KEYS, D, PARTS, MASKED, DESCRIPTORS)  # [KEYS, D]
    b_zeros = tl.zeros([b_lse.shape[0], KEYS], dtype=tl.float32)
    b_scores = multiply_parts(b_q, b_k, b_zeros, PARTS)  # [QUERIES, KEYS]
    b_d_p = multiply_parts(b_d_out, b_v, b_zeros, PARTS)  # [QUERIES, KEYS]
    b_p = tl.exp2(b_scores * scale - (b_lse * scale)[:, None])
    if MASKED:
        o_key = tl.arange(0, KEYS)[None, :]  # from `key` on: a constant of the program
        b_p = tl.where(((b_first - key)[:, None] <= o_key) & (o_key <= (o_query - key)[:, None]), b_p, 0.0)
    return add_product(b_d_q, b_p * (b_d_p - b_delta[:, None]), b_k, PARTS)  # [QUERIES, D]


@triton.jit(do_not_specialize=["T"])
def flash_attention_query_gradient_kernel(
    q,
    k,
    v,
    d_out,
    p_out,
    p_lse,
    p_first,
    p_delta,
    p_d_q,
    T,
    stride_row,
    softmax_scale,
    scale,
    stride_q,
    stride_k,
    stride_v,
    stride_d_out,
    head_q,
    head_k,
    head_v,
    head_d_out,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """A tile of queries of one head a program: dQ, and delta = rowsum(dOut * Out) for the other kernel."""
    start = (tl.cdiv(T, QUERIES) - 1 - tl.program_id(0) // HEADS) * QUERIES  # in the same order as forward
    i_head = tl.program_id(0) % HEADS
    column_k, column_v = i_head // GROUP * head_k, i_head // GROUP * head_v
    o_query = start + tl.arange(0, QUERIES)
    m_query = o_query < T
    last = tl.minimum(start + QUERIES, T) - 1
    b_first = tl.load(p_first + o_query, mask=m_query, other=0)
    first, common, diagonal, before, after = keys_seen(p_first, start, last, KEYS)

    b_d_out = load_parts(d_out, start, i_head * head_d_out, T, stride_d_out, QUERIES, D, PARTS, True, DESCRIPTORS)
    o_out = (tl.cast(o_query, tl.int64) * HEADS + i_head) * D
    b_delta = tl.zeros([QUERIES], dtype=tl.float32)
    for i in tl.static_range(PARTS):
        p_tile = p_out + o_out[:, None] + i * (D // PARTS) + tl.arange(0, D // PARTS)[None, :]
        b_delta += tl.sum(b_d_out[i].to(tl.float32) * tl.load(p_tile, mask=m_query[:, None], other=0.0), 1)
    o_row = tl.cast(i_head, tl.int64) * stride_row + o_query
    tl.store(p_delta + o_row, b_delta, mask=m_query)
    b_lse = tl.load(p_lse + o_row, mask=m_query, other=0.0)
    b_q = load_parts(q, start, i_head * head_q, T, stride_q, QUERIES, D, PARTS, True, DESCRIPTORS)  # [QUERIES, D]
    b_d_q = zero_parts(QUERIES, D, PARTS)
    for i in range(before + after):
        key = tl.where(i < before, first + i * KEYS, diagonal + (i - before) * KEYS)
        b_d_q = _query_gradient_step(
            b_q, b_d_out, b_lse, b_delta, k, v, key, o_query, b_first, b_d_q, column_k, column_v, stride_k, stride_v, T,
            scale, D, KEYS, PARTS, True, DESCRIPTORS,
        )  # fmt: skip
    for key in range(common, diagonal, KEYS):
        b_d_q = _query_gradient_step(
            b_q, b_d_out, b_lse, b_delta, k, v, key, o_query, b_first, b_d_q, column_k, column_v, stride_k, stride_v, T,
            scale, D, KEYS, PARTS, False, DESCRIPTORS,
        )  # fmt: skip
    store_parts(p_d_q + o_out, m_query, b_d_q, softmax_scale, D, PARTS)


@triton.jit
def _key_gradient_step(
    b_k, b_v, q, d_out, p_lse, p_delta, i_head, query, o_key, b_end, b_d_k, b_d_v, stride_q, stride_d_out, head_q,
    head_d_out, T, stride_row, scale, D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PARTS: tl.constexpr,
    MASKED: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """What one head's queries from `query` on add to dK, but for the scale, and to dV."""
    o_query = tl.arange(0, QUERIES)  # from `query` on: a constant of the program
    row = tl.cast(i_head, tl.int64) * stride_row + query
    b_q = load_parts(q, query, i_head * head_q, T, stride_q, QUERIES, D, PARTS, MASKED, DESCRIPTORS)  # [QUERIES, D]
    b_d_out = load_parts(d_out, query, i_head * head_d_out, T, stride_d_out, QUERIES, D, PARTS, MASKED, DESCRIPTORS)
    b_lse = tl.load(p_lse + row + o_query)  # from T on whatever was there: no key sees it
    b_delta = tl.load(p_delta + row + o_query)  # and 0
    b_zeros = tl.zeros([KEYS, QUERIES], dtype=tl.float32)
    if DESCRIPTORS:
        # dP is made while exponentials are; products that start at what is subtracted keep no row beside the tiles.
        b_scores = multiply_parts(b_k, b_q, b_zeros - b_lse[None, :], PARTS)  # [KEYS, QUERIES]
        b_d_p = multiply_parts(b_v, b_d_out, b_zeros - b_delta[None, :], PARTS)  # [KEYS, QUERIES]
        b_p = tl.exp2(b_scores * scale)
    else:
        b_scores = multiply_parts(b_k, b_q, b_zeros, PARTS)  # [KEYS, QUERIES]
        b_p = tl.exp2(b_scores * scale - (b_lse * scale)[None, :])
    if MASKED:
        m_seen = ((o_key - query)[:, None] <= o_query[None, :]) & (o_query[None, :] < (b_end - query)[:, None])
        b_p = tl.where(m_seen, b_p, 0.0)
    b_d_v = add_product(b_d_v, b_p, b_d_out, PARTS)  # [KEYS, D]
    if not DESCRIPTORS:
        b_d_p = multiply_parts(b_v, b_d_out, b_zeros, PARTS) - b_delta[None, :]  # [KEYS, QUERIES]
    b_d_k = add_product(b_d_k, b_p * b_d_p, b_q, PARTS)  # [KEYS, D]
    return b_d_k, b_d_v


@triton.jit(do_not_specialize=["T"])
def flash_attention_key_gradient_kernel(
    q,
    k,
    v,
    d_out,
    p_lse,
    p_delta,
    p_end,
    p_order,
    p_d_k,
    p_d_v,
    T,
    stride_row,
    softmax_scale,
    scale,
    stride_q,
    stride_k,
    stride_v,
    stride_d_out,
    head_q,
    head_k,
    head_v,
    head_d_out,
    KEY_HEADS: tl.constexpr,
    TILES: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """A tile of keys of one key/value head a program: dK and dV summed over the group's query heads in registers."""
    i_tile = tl.program_id(0) // KEY_HEADS
    start = (tl.load(p_order + i_tile // TILES) * TILES + i_tile % TILES) * KEYS
    i_key_head = tl.program_id(0) % KEY_HEADS
    o_key = start + tl.arange(0, KEYS)
    m_key = o_key < T
    last = tl.minimum(start + KEYS, T) - 1
    b_end = tl.load(p_end + o_key, mask=m_key, other=0)
    # Queries that see some key of the tile; from `common` to `leaving`, those that see all.
    first = start // QUERIES * QUERIES
    end = tl.cdiv(tl.load(p_end + last), QUERIES) * QUERIES
    common = tl.minimum(tl.cdiv(last, QUERIES) * QUERIES, end)
    leaving = tl.maximum(tl.load(p_end + start) // QUERIES * QUERIES, common)
    before, after = (common - first) // QUERIES, (end - leaving) // QUERIES
    some, all_ = before + after, (leaving - common) // QUERIES

    b_k = load_parts(k, start, i_key_head * head_k, T, stride_k, KEYS, D, PARTS, True, DESCRIPTORS)  # [KEYS, D]
    b_v = load_parts(v, start, i_key_head * head_v, T, stride_v, KEYS, D, PARTS, True, DESCRIPTORS)  # [KEYS, D]
    b_d_k, b_d_v = zero_parts(KEYS, D, PARTS), zero_parts(KEYS, D, PARTS)
    for i in range(GROUP * some):  # one loop over heads and tiles: the pipeline never drains between heads
        i_step = i % some
        query = tl.where(i_step < before, first + i_step * QUERIES, leaving + (i_step - before) * QUERIES)
        b_d_k, b_d_v = _key_gradient_step(
            b_k, b_v, q, d_out, p_lse, p_delta, i_key_head * GROUP + i // some, query, o_key, b_end, b_d_k, b_d_v,
            stride_q, stride_d_out, head_q, head_d_out, T, stride_row, scale, D,
            QUERIES, KEYS, PARTS, True, DESCRIPTORS,
        )  # fmt: skip
    for i in range(GROUP * all_):
        query = common + i % all_ * QUERIES
        b_d_k, b_d_v = _key_gradient_step(
            b_k, b_v, q, d_out, p_lse, p_delta, i_key_head * GROUP + i // all_, query, o_key, b_end, b_d_k, b_d_v,
            stride_q, stride_d_out, head_q, head_d_out, T, stride_row, scale, D,
            QUERIES, KEYS, PARTS, False, DESCRIPTORS,
        )  # fmt: skip
    o_out = (tl.cast(o_key, tl.int64) * KEY_HEADS + i_key_head) * D
    store_parts(p_d_k + o_out, m_key, b_d_k, softmax_scale, D, PARTS)
    store_parts(p_d_v + o_out, m_key, b_d_v, 1.0, D, PARTS)


def backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, first: Tensor, end: Tensor,
    order: Tensor, length: Length, softmax_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Upstream gradient and output [T, Hq, D], inputs, logsumexp [Hq, T'] and `PackedDocuments`' ranges -> dQ, dK, dV.

    Memory beyond the gradients: delta, [Hq, T'] float32.
    """
    tokens, heads, size = q.shape
    d_out, q, k, v = (tiled(x) for x in (d_out, q, k, v))
    d_q, d_k, d_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.zeros_like(lse)  # the other kernel reads whole tiles, and 0 times what was there may be NaN
    steps = [x.stride(dimension) for dimension in (0, 1) for x in (q, k, v, d_out)]
    scales = (softmax_scale, softmax_scale * LOG2_E)
    key_heads = k.shape[1]
    shape = {"GROUP": heads // key_heads, "D": size}
    chosen = attention_dispatch.choose("flash_attention_query_gradient_kernel", q.dtype, q.device, size, length)
    flash_attention_query_gradient_kernel[(triton.cdiv(tokens, chosen.queries) * heads,)](
        source(q, chosen.queries, chosen),
        source(k, chosen.keys, chosen),
        source(v, chosen.keys, chosen),
        source(d_out, chosen.queries, chosen),
        out,
        lse,
        first,
        delta,
        d_q,
        tokens,
        lse.stride(0),
        *scales,
        *steps,
        HEADS=heads,
        **shape,
        **chosen.constants,
    )
    chosen = attention_dispatch.choose("flash_attention_key_gradient_kernel", q.dtype, q.device, size, length)
    flash_attention_key_gradient_kernel[(triton.cdiv(tokens, chosen.keys) * key_heads,)](
        source(q, chosen.queries, chosen),
        source(k, chosen.keys, chosen),
        source(v, chosen.keys, chosen),
        source(d_out, chosen.queries, chosen),
        lse,
        delta,
        end,
        order,
        d_k,
        d_v,
        tokens,
        lse.stride(0),
        *scales,
        *steps,
        KEY_HEADS=key_heads,
        TILES=BLOCK // chosen.keys,
        **shape,
        **chosen.constants,
    )
    return d_q, d_k, d_v
