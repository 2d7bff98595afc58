# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: causal grouped-query attention over packed documents, forward (Dao 2023, arXiv 2307.08691, algorithm 1).

The scale holds a factor log2(e), so that the exponential has base 2, which is one instruction. Tiles are loaded
through tensor descriptors (the copy engine of Hopper) or through pointers (Ampere); only `load_tile` knows which.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from vikhr_kernels import attention_dispatch

# The maximum before any key: finite, so that a tile without a visible key leaves no NaN, and below every real score.
NOTHING_SEEN = tl.constexpr(-1.0e30)
LOG2_E = 1.4426950408889634


@triton.jit
def load_tile(
    source, row, column, T, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BOUNDED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """[ROWS, COLUMNS] of a [T, ...] tensor from a row and column on; rows from T on are zero where BOUNDED."""
    if DESCRIPTORS:
        b_tile = source.load([row, column])
    else:
        o_row = tl.arange(0, ROWS)
        p_row = source + tl.cast(row, tl.int64) * stride + column
        p_tile = p_row + o_row[:, None] * stride + tl.arange(0, COLUMNS)[None, :]
        if BOUNDED:
            b_tile = tl.load(p_tile, mask=(row + o_row < T)[:, None], other=0.0)
        else:
            b_tile = tl.load(p_tile)
    return b_tile


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
def _scores(
    b_q, b_q_rest, k, key, column, T, stride, D: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Queries times keys, [QUERIES, KEYS]; on Ampere in two halves, as 128 columns whole would fill 128 registers."""
    if DESCRIPTORS or D == 64:
        b_k = load_tile(k, key, column, T, stride, KEYS, D, MASKED, DESCRIPTORS)  # [KEYS, D]
        b_scores = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
    else:
        b_k = load_tile(k, key, column, T, stride, KEYS, D // 2, MASKED, DESCRIPTORS)  # [KEYS, D / 2]
        b_scores = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
        b_k = load_tile(k, key, column + D // 2, T, stride, KEYS, D // 2, MASKED, DESCRIPTORS)  # [KEYS, D / 2]
        b_scores = tl.dot(b_q_rest, tl.trans(b_k), b_scores, input_precision="ieee")
    return b_scores


@triton.jit
def _attend(
    b_q, b_q_rest, k, v, key, o_query, b_first, b_largest, b_sum, b_out, column_k, column_v, stride_k, stride_v, T,
    scale, D: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax: the keys from `key` on."""
    b_scores = _scores(b_q, b_q_rest, k, key, column_k, T, stride_k, D, KEYS, MASKED, DESCRIPTORS)
    if MASKED:
        o_key = key + tl.arange(0, KEYS)[None, :]
        b_scores = tl.where((b_first[:, None] <= o_key) & (o_key <= o_query[:, None]), b_scores, float("-inf"))
    b_new_largest = tl.maximum(b_largest, tl.max(b_scores, 1))
    b_p = tl.exp2(b_scores * scale - (b_new_largest * scale)[:, None])
    b_decay = tl.exp2((b_largest - b_new_largest) * scale)
    b_v = load_tile(v, key, column_v, T, stride_v, KEYS, D, MASKED, DESCRIPTORS)  # [KEYS, D]
    b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out * b_decay[:, None], input_precision="ieee")  # [QUERIES, D]
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

    if DESCRIPTORS or D == 64:  # see _scores
        b_q = load_tile(q, start, i_head * head_q, T, stride_q, QUERIES, D, True, DESCRIPTORS)  # [QUERIES, D]
        b_q_rest = b_q
    else:
        b_q = load_tile(q, start, i_head * head_q, T, stride_q, QUERIES, D // 2, True, DESCRIPTORS)
        b_q_rest = load_tile(q, start, i_head * head_q + D // 2, T, stride_q, QUERIES, D // 2, True, DESCRIPTORS)
    b_largest = tl.full([QUERIES], NOTHING_SEEN, dtype=tl.float32)
    b_sum = tl.zeros([QUERIES], dtype=tl.float32)
    b_out = tl.zeros([QUERIES, D], dtype=tl.float32)
    for i in range(before + after):
        key = tl.where(i < before, first + i * KEYS, diagonal + (i - before) * KEYS)
        b_largest, b_sum, b_out = _attend(
            b_q, b_q_rest, k, v, key, o_query, b_first, b_largest, b_sum, b_out, column_k, column_v, stride_k, stride_v,
            T, scale, D, KEYS, True, DESCRIPTORS,
        )  # fmt: skip
    for key in range(common, diagonal, KEYS):
        b_largest, b_sum, b_out = _attend(
            b_q, b_q_rest, k, v, key, o_query, b_first, b_largest, b_sum, b_out, column_k, column_v, stride_k, stride_v,
            T, scale, D, KEYS, False, DESCRIPTORS,
        )  # fmt: skip
    tl.store(p_lse + tl.cast(i_head, tl.int64) * stride_row + o_query, b_largest + tl.log2(b_sum) / scale, mask=m_query)
    o_out = (tl.cast(o_query, tl.int64) * HEADS + i_head)[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(p_out + o_out, (b_out / b_sum[:, None]).to(p_out.dtype.element_ty), mask=m_query[:, None])


def tiled(x: Tensor) -> Tensor:
    """[T, H, D] as tiles can be loaded from it: heads side by side in a row, rows that don't overlap, all aligned.

    Descriptors want steps of 16 bytes and even a single row longer than what is in it; Triton loads more than one
    element at once where it knows that steps are multiples of 16 elements.
    """
    _, heads, size = x.shape
    token, head, element = x.stride()
    apart = token >= (heads - 1) * head + size
    aligned = token % 16 == 0 and head % 16 == 0 and x.data_ptr() % 16 == 0
    if element == 1 and apart and aligned and (heads < 2 or head >= size):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def source(x: Tensor, rows: int, descriptors: bool) -> Tensor | TensorDescriptor:
    """What `load_tile` reads tiles of so many rows and one head from."""
    if not descriptors:
        return x
    tokens, heads, size = x.shape
    return TensorDescriptor(x, [tokens, (heads - 1) * x.stride(1) + size], [x.stride(0), 1], [rows, size])


def forward(q: Tensor, k: Tensor, v: Tensor, first: Tensor, softmax_scale: float) -> tuple[Tensor, Tensor]:
    """q [T, Hq, D], k and v [T, Hkv, D], first visible keys [T] -> attended [T, Hq, D], logsumexp [Hq, T'].

    The logsumexp is that of the scaled scores over the scale: near the largest score it has no rounding but its own.
    T' is T rounded up to a multiple of 128, so that the backward pass may load whole tiles of statistics.
    """
    tokens, heads, size = q.shape
    q, k, v = tiled(q), tiled(k), tiled(v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, triton.cdiv(tokens, 128) * 128, dtype=torch.float32, device=q.device)
    chosen = attention_dispatch.choose("flash_attention_forward_kernel", q.dtype, q.device, size)
    flash_attention_forward_kernel[(triton.cdiv(tokens, chosen.queries) * heads,)](
        source(q, chosen.queries, chosen.descriptors),
        source(k, chosen.keys, chosen.descriptors),
        source(v, chosen.keys, chosen.descriptors),
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
