"""The cases of flash attention: causal at three lengths, packed documents, and sliding windows."""

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from measuring import Case, Forward, Inputs, Run, Sizes, What, measured
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vikhr_kernels import PackedDocuments, length_of, seen_pairs

PASSES: tuple[What, ...] = ("forward", "backward")
BACKWARD_FLOPS = 2.5  # of forward's: five products of tiles for two, as everybody counts


def attention_cases(sizes: Sizes) -> list[Case]:
    """Forward and backward apart, `sizes.attention_tokens` tokens a batch."""
    return [case(sizes, what) for case in (causal_case, packed_case, window_case) for what in PASSES]


def _make(sizes: Sizes, device: torch.device, dtype: torch.dtype, *rows: int) -> Inputs:
    q, k, v, upstream = (
        torch.randn(*rows, heads, sizes.head_size, device=device).to(dtype)
        for heads in (sizes.heads, sizes.key_heads, sizes.key_heads, sizes.heads)
    )
    return {"q": q.requires_grad_(), "k": k.requires_grad_(), "v": v.requires_grad_(), "upstream": [upstream]}


def _flops(sizes: Sizes, what: What, pairs: int) -> int:
    """Of attention between so many pairs of a query and a key."""
    return int(4 * sizes.head_size * sizes.heads * pairs * (BACKWARD_FLOPS if what == "backward" else 1))


def _sdpa(what: What, backend: SDPBackend) -> Callable[[], Run]:
    def forward(i: Inputs) -> Tensor:
        with sdpa_kernel(backend):
            q, k, v = (i[name].transpose(1, 2) for name in "qkv")
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)

    return lambda: measured(what, forward)


def _flex(what: What, mask: Callable[[Inputs], Any]) -> Callable[[], Run]:
    """FlexAttention on [T, heads, D]; the mask is made the first time, as it would be for all layers of a batch."""

    def make() -> Run:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        compiled, create = torch.compile(flex_attention, dynamic=False), torch.compile(create_block_mask, dynamic=False)

        def forward(i: Inputs) -> Tensor:
            q, k, v = (i[name].unsqueeze(0).transpose(1, 2) for name in "qkv")
            tokens = q.shape[2]
            if "block_mask" not in i:
                i["block_mask"] = create(mask(i), 1, 1, tokens, tokens, device=q.device)
            return compiled(q, k, v, block_mask=i["block_mask"], enable_gqa=True).transpose(1, 2).squeeze(0)

        return measured(what, forward)

    return make


def _varlen(what: What, window: Callable[[Inputs], int | None]) -> Callable[[], Run]:
    """PyTorch's FlashAttention-2 for packed documents."""

    def forward(i: Inputs) -> Tensor:
        size = window(i)
        return varlen(i["q"], i["k"], i["v"], i["cu_seqlens"], i["longest"], (-1 if size is None else size - 1, 0))

    return lambda: measured(what, forward)


def varlen(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, sides: tuple[int, int]) -> Tensor:
    """PyTorch's FlashAttention-2 for packed documents, [T, heads, D]."""
    from torch.nn.attention.varlen import varlen_attn

    # Before PyTorch had a flag for grouped queries it took them without one.
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    return varlen_attn(q, k, v, bounds, bounds, longest, longest, window_size=sides, **grouped)


def causal_case(sizes: Sizes, what: What) -> Case:
    """Whole batches of one length."""
    tokens = sizes.attention_tokens

    def make(length: int, device: torch.device, dtype: torch.dtype) -> Inputs:
        bounds = torch.arange(0, tokens + 1, length, dtype=torch.int32, device=device)
        documents = PackedDocuments.of(bounds, tokens, length=length_of(seen_pairs(length) / length))
        return _make(sizes, device, dtype, tokens // length, length) | {"documents": documents}

    def by(operations: Any) -> Forward:
        def forward(i: Inputs) -> Tensor:
            packed = (i[name].flatten(0, 1) for name in "qkv")
            return operations.flash_attention(*packed, documents=i["documents"]).view_as(i["q"])

        return forward

    peers = {
        "FlashAttention-2": _sdpa(what, SDPBackend.FLASH_ATTENTION),
        "cuDNN": _sdpa(what, SDPBackend.CUDNN_ATTENTION),
    }
    return Case(
        f"attention_{what}", make, by, sizes.lengths, peers, what=what, axis="sequence length", compiles=False,
        eager_sizes=sizes.lengths[:1],
        flops=lambda length: _flops(sizes, what, tokens // length * seen_pairs(length)),
    )  # fmt: skip


def document_lengths(tokens: int, mean: int) -> list[int]:
    """Exponentially distributed with this mean, as many as fill the tokens; the same every time."""
    generator = torch.Generator().manual_seed(mean)
    drawn = (torch.empty(tokens).exponential_(1 / mean, generator=generator).long() + 1).cumsum(0).tolist()
    ends = [*itertools.takewhile(lambda end: end < tokens, drawn), tokens]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def packed_case(sizes: Sizes, what: What) -> Case:
    """Documents of several mean lengths in one packed row; what is made once a batch is not in the times."""
    tokens = sizes.attention_tokens

    def make(mean: int, device: torch.device, dtype: torch.dtype) -> Inputs:
        lengths = document_lengths(tokens, mean)
        bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
        documents = PackedDocuments.of(bounds, tokens, length=length_of(sum(map(seen_pairs, lengths)) / tokens))
        return _make(sizes, device, dtype, tokens) | {
            "cu_seqlens": bounds, "documents": documents, "longest": max(lengths),
        }  # fmt: skip

    def by(operations: Any) -> Forward:
        return lambda i: operations.flash_attention(i["q"], i["k"], i["v"], documents=i["documents"])

    def mask(i: Inputs) -> Any:
        documents = torch.repeat_interleave(i["cu_seqlens"].diff())  # of each token
        return lambda b, h, q, k: (q >= k) & (documents[q] == documents[k])  # noqa: ARG005

    return Case(
        f"attention_packed_{what}", make, by, sizes.means,
        {"FlexAttention": _flex(what, mask), "FlashAttention-2": _varlen(what, lambda i: None)},  # noqa: ARG005
        what=what, axis="mean document length", compiles=False,
        flops=lambda mean: _flops(sizes, what, sum(map(seen_pairs, document_lengths(tokens, mean)))),
    )  # fmt: skip


def window_case(sizes: Sizes, what: What) -> Case:
    """One long document under windows of several sizes: the time should follow the window."""
    tokens = sizes.attention_tokens

    def make(window: int, device: torch.device, dtype: torch.dtype, tokens: int = sizes.attention_tokens) -> Inputs:
        bounds = torch.tensor([0, tokens], dtype=torch.int32, device=device)
        documents = PackedDocuments.of(bounds, tokens, window, length_of(seen_pairs(tokens, window) / tokens))
        return _make(sizes, device, dtype, tokens) | {
            "window": window, "cu_seqlens": bounds, "longest": tokens, "documents": documents,
        }  # fmt: skip

    def by(operations: Any) -> Forward:
        return lambda i: operations.flash_attention(i["q"], i["k"], i["v"], documents=i["documents"])

    def mask(i: Inputs) -> Any:
        window = i["window"]
        return lambda b, h, q, k: (q >= k) & (q - k < window)  # noqa: ARG005

    return Case(
        f"attention_window_{what}", make, by, sizes.lengths,
        {"FlexAttention": _flex(what, mask), "FlashAttention-2": _varlen(what, lambda i: i["window"])},
        what=what, axis="window", compiles=False, eager_sizes=(),
        make_checked=lambda device, dtype: make(sizes.lengths[0], device, dtype, min(tokens, 2048)),
        flops=lambda window: _flops(sizes, what, seen_pairs(tokens, window)),
    )  # fmt: skip
