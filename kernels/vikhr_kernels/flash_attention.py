# ruff: noqa: ARG001  (fake kernels and autograd contexts have the signature they are called with)
"""Flash attention as a registered operation: its output is what selective activation checkpointing saves."""

import itertools
import math
from typing import Any, cast

import torch
from torch import Tensor

from vikhr_kernels import reference
from vikhr_kernels.arguments import require, require_floating, require_like, require_shape
from vikhr_kernels.attention_dispatch import HEAD_SIZES, Length, length_of, seen_pairs
from vikhr_kernels.dispatch import custom_op, is_for_triton, runs_on_triton
from vikhr_kernels.packed_documents import PackedDocuments
from vikhr_kernels.reference import accumulation_dtype

MOST_TOKENS = 2**30  # positions, and positions a window further on, are int32


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    window: int | None = None,
    documents: PackedDocuments | None = None,
    softmax_scale: float | None = None,
) -> Tensor:
    """`reference.flash_attention` with its arguments and results, in one kernel forward and two backward.

    Tiles of queries are cut from the packed row as it is, so thousands of short documents cost what their lengths
    cost; keys out of every query's sight are never loaded. Beyond inputs and gradients it keeps one float32 a query
    and head for the backward pass, which takes another. Sums are made in a fixed order: equal bits every time.

    q, k and v may be slices of longer rows, as those of one product are: where rows and heads start at multiples of 16
    bytes and of 16 elements, they are read, and kept for the backward pass, without a copy; else each pass copies. What
    is returned is contiguous, the gradients too.

    `documents` are made once for all layers; from `cu_seqlens` and `window` each call makes its own, short ones where
    packed, and of whole rows by their length. `cu_seqlens` is not looked into, which would wait for the GPU: it must
    rise from 0 to T. On a GPU heads have 64 or 128 elements.

    Raises:
        ValueError: an argument's shape, dtype, device or value doesn't fit; it is named.
    """
    require_floating("flash_attention", "q", q)
    require(q.dim() in (3, 4), f"flash_attention: q must be [T, Hq, D] or [B, S, Hq, D], not {list(q.shape)}")
    *rows, heads, size = q.shape
    require(
        k.dim() == q.dim() and [*k.shape[:-2], k.shape[-1]] == [*rows, size],
        f"flash_attention: k must be {[*rows, 'Hkv', size]} to fit q, not {list(k.shape)}",
    )
    require(
        k.shape[-2] > 0 and heads % k.shape[-2] == 0,
        f"flash_attention: k has {k.shape[-2]} heads, which don't divide the {heads} of q",
    )
    require_shape("flash_attention", "v", v, k.shape)
    for name, tensor in (("k", k), ("v", v)):
        require_like("flash_attention", name, tensor, "q", q)
    softmax_scale = 1 / math.sqrt(size) if softmax_scale is None else softmax_scale
    require(
        math.isfinite(softmax_scale) and softmax_scale > 0,
        f"flash_attention: softmax_scale must be positive, not {softmax_scale}",
    )
    tokens = math.prod(rows)
    require(tokens <= MOST_TOKENS, f"flash_attention: q has {tokens} tokens, more than {MOST_TOKENS}")
    if documents is None:
        documents = _documents(q, cu_seqlens, window)
    else:
        documents.require_fit(q, cu_seqlens, window)
    bounds = documents.cu_seqlens
    require(bounds.device == q.device, f"flash_attention: cu_seqlens is on {bounds.device}, q on {q.device}")
    first = end = order = bounds[:0]  # which only kernels ask for
    if is_for_triton(q) and q.numel():
        first, end = documents.ranges
        if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
            order = documents.order
    attended: Tensor = _flash_attention(
        *(x.flatten(0, -3) for x in (q, k, v)), bounds, first, end, order, documents.positions_seen, documents.length,
        softmax_scale,
    )[0]  # fmt: skip
    return attended.view_as(q)


def _documents(q: Tensor, cu_seqlens: Tensor | None, window: int | None) -> PackedDocuments:
    """Of one call."""
    if cu_seqlens is not None:
        require(q.dim() == 3, "flash_attention: cu_seqlens is for packed documents, q [T, Hq, D]")
        return PackedDocuments.of(cu_seqlens, q.shape[0], window)
    count, tokens = q.shape[:2] if q.dim() == 4 else (1, q.shape[0])
    length = length_of(seen_pairs(tokens, window) / max(tokens, 1))
    bounds = torch.arange(count + 1, dtype=torch.int32, device=q.device) * tokens
    return PackedDocuments.of(bounds, count * tokens, window, length)


@custom_op("vikhr::flash_attention")
def _flash_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, first: Tensor, end: Tensor, order: Tensor, window: int,
    length: str, softmax_scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """[T, H, D] -> attended [T, Hq, D] and what backward needs of the softmax, see `gpu.flash_attention.forward`."""
    if runs_on_triton(q) and q.numel():
        from vikhr_kernels.gpu import flash_attention as gpu

        require(
            q.shape[-1] in HEAD_SIZES,
            f"flash_attention: q has heads of {q.shape[-1]} elements; the kernels are for "
            f"{' and '.join(map(str, HEAD_SIZES))}",
        )
        return gpu.forward(q, k, v, first, cast(Length, length), softmax_scale)
    out = reference.flash_attention(q, k, v, cu_seqlens=cu_seqlens, window=window, softmax_scale=softmax_scale)
    return out.contiguous(), _empty_statistics(q)


def _empty_statistics(q: Tensor) -> Tensor:
    shape = (q.shape[1], -(-q.shape[0] // 128) * 128) if is_for_triton(q) else (0, 0)  # the reference needs none
    return q.new_empty(shape, dtype=torch.float32)


@_flash_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, first: Tensor, end: Tensor, order: Tensor, window: int,
    length: str, softmax_scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), _empty_statistics(q)


@custom_op("vikhr::flash_attention_backward")
def _flash_attention_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, first: Tensor, end: Tensor, order: Tensor,
    out: Tensor, logsumexp: Tensor, window: int, length: str, softmax_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v, contiguous."""
    if runs_on_triton(q) and q.numel():
        from vikhr_kernels.gpu import flash_attention_backward as gpu

        ranges = (first, end, order)
        return gpu.backward(d_out, q, k, v, out, logsumexp, *ranges, cast(Length, length), softmax_scale)
    return _eager_backward(d_out, q, k, v, cu_seqlens, window, softmax_scale)


@_flash_attention_backward.register_fake
def _(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, first: Tensor, end: Tensor, order: Tensor,
    out: Tensor, logsumexp: Tensor, window: int, length: str, softmax_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _eager_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, window: int, softmax_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What autograd makes of the reference, written out: inside a registered operation it records nothing."""
    d_q, d_k, d_v = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    wide = accumulation_dtype(q.dtype)
    for start, end in itertools.pairwise(cu_seqlens.tolist()):
        queries, upstream = (x[start:end].to(wide).unflatten(1, (-1, group)) for x in (q, d_out))  # [L, Hkv, G, D]
        keys, values = (x[start:end].to(wide) for x in (k, v))  # [L, Hkv, D]
        scores = torch.einsum("ihgd,jhd->hgij", queries, keys) * softmax_scale
        p = scores.masked_fill(~reference.visible(end - start, window, q.device), -torch.inf).softmax(-1)
        d_p = torch.einsum("ihgd,jhd->hgij", upstream, values)
        d_scores = p * (d_p - (p * d_p).sum(-1, keepdim=True)) * softmax_scale
        d_q[start:end] = torch.einsum("hgij,jhd->ihgd", d_scores, keys).flatten(1, 2)
        d_k[start:end] = torch.einsum("hgij,ihgd->jhd", d_scores, queries)
        d_v[start:end] = torch.einsum("hgij,ihgd->jhd", p, upstream)
    return d_q, d_k, d_v


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window, ctx.length, ctx.softmax_scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    no_gradients = (None,) * 7
    if d_out is None:
        return None, None, None, *no_gradients
    arguments = (ctx.window, ctx.length, ctx.softmax_scale)
    return *_flash_attention_backward(d_out, *ctx.saved_tensors, *arguments), *no_gradients


_flash_attention.register_autograd(_backward, setup_context=_setup_context)
