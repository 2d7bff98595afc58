# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: rotary position embedding of queries and keys in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vikhr_kernels import dispatch

MOST_HEADS = 96  # whose elements the configuration's threads hold in registers; more need more threads


@triton.jit
def _heads(HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """Heads and elements of their first halves, [BLOCK_HEADS, 1] and [1, BLOCK], and which of these there are."""
    o_head, o_half = tl.arange(0, BLOCK_HEADS)[:, None], tl.arange(0, BLOCK)[None, :]
    return o_head, o_half, (o_head < HEADS) & (o_half < HALF)


@triton.jit
def _load_halves(
    p_x, stride_head, HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK: tl.constexpr
):
    """The halves of one token's heads, each [BLOCK_HEADS, BLOCK]."""
    o_head, o_half, m_x = _heads(HEADS, HALF, BLOCK_HEADS, BLOCK)
    p_first = p_x + o_head * stride_head + o_half
    return tl.load(p_first, mask=m_x), tl.load(p_first + HALF, mask=m_x)


@triton.jit
def _store_rotated(
    p_rotated, b_first, b_second, b_cos, b_sin, HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes them rotated by the angles of the token's position, heads side by side."""
    o_head, o_half, m_x = _heads(HEADS, HALF, BLOCK_HEADS, BLOCK)
    p_first = p_rotated + o_head * (2 * HALF) + o_half
    dtype = p_rotated.dtype.element_ty
    b_first, b_second = b_first.to(tl.float32), b_second.to(tl.float32)
    tl.store(p_first, (b_first * b_cos - b_second * b_sin).to(dtype), mask=m_x)
    tl.store(p_first + HALF, (b_second * b_cos + b_first * b_sin).to(dtype), mask=m_x)


@triton.jit
def rope_kernel(
    p_q,
    p_k,
    p_positions,
    p_frequencies,
    p_rotated_q,
    p_rotated_k,
    stride_q_token,
    stride_q_head,
    stride_k_token,
    stride_k_head,
    INVERSE: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_QUERY_HEADS: tl.constexpr,
    BLOCK_KEY_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token a program: its angles once, for all heads, while these are on their way from memory."""
    i_token = tl.program_id(0).to(tl.int64)
    p_q += i_token * stride_q_token
    p_k += i_token * stride_k_token
    b_q_first, b_q_second = _load_halves(p_q, stride_q_head, QUERY_HEADS, HALF, BLOCK_QUERY_HEADS, BLOCK)
    b_k_first, b_k_second = _load_halves(p_k, stride_k_head, KEY_HEADS, HALF, BLOCK_KEY_HEADS, BLOCK)
    o_half = tl.arange(0, BLOCK)
    b_frequency = tl.load(p_frequencies + o_half, mask=o_half < HALF, other=0.0)
    b_angle = tl.load(p_positions + i_token).to(tl.float32) * b_frequency
    b_cos, b_sin = tl.cos(b_angle)[None, :], tl.sin(b_angle)[None, :]  # [1, BLOCK]
    if INVERSE:
        b_sin = -b_sin
    p_rotated_q += i_token * (QUERY_HEADS * 2 * HALF)
    p_rotated_k += i_token * (KEY_HEADS * 2 * HALF)
    _store_rotated(p_rotated_q, b_q_first, b_q_second, b_cos, b_sin, QUERY_HEADS, HALF, BLOCK_QUERY_HEADS, BLOCK)
    _store_rotated(p_rotated_k, b_k_first, b_k_second, b_cos, b_sin, KEY_HEADS, HALF, BLOCK_KEY_HEADS, BLOCK)


def rotate(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """q [T, Hq, D] and k [T, Hkv, D] with contiguous heads, positions [T], frequencies [D/2] -> rotated q and k."""
    tokens, query_heads, size = q.shape
    key_heads = k.shape[1]
    rotated_q, rotated_k = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    chosen = dispatch.choose("rope_kernel", q.dtype, q.device, size // 2)
    if tokens:
        rope_kernel[(tokens,)](
            q,
            k,
            positions,
            frequencies,
            rotated_q,
            rotated_k,
            *q.stride()[:2],
            *k.stride()[:2],
            INVERSE=inverse,
            QUERY_HEADS=query_heads,
            KEY_HEADS=key_heads,
            HALF=size // 2,
            BLOCK_QUERY_HEADS=triton.next_power_of_2(query_heads),
            BLOCK_KEY_HEADS=triton.next_power_of_2(key_heads),
            BLOCK=chosen.block,
            num_warps=chosen.num_warps * (1 if query_heads + key_heads <= MOST_HEADS else 4),
        )
    return rotated_q, rotated_k
