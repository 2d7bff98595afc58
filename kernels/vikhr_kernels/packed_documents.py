# ruff: noqa: ARG001  (fake kernels have the signature they are called with)
"""Packed documents with what attention needs to know of them: made once a batch, for all layers of all its models."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vikhr_kernels.arguments import require
from vikhr_kernels.attention_dispatch import LENGTHS, Length
from vikhr_kernels.dispatch import handles, require_current

BLOCK = 128  # tokens, a multiple of every tile: of which the order of keys is


@dataclass(frozen=True)
class PackedDocuments:
    """Documents one after another in a row of T tokens, made by `of`.

    Attributes:
        cu_seqlens: [documents + 1] int32 cumulative lengths, from 0 to T.
        tokens: T.
        window: number of visible positions, the token itself included; None is unlimited.
        length: which tiles attention takes. It decides speed, and bits as any change of tiles does: let it be the same
            throughout a run, `length_of` the keys that its queries see on average.
        first: [T] int32 first key that a query sees; empty, as are the next two, where no kernel runs.
        end: [T] int32 end of the queries that see a key.
        order: [T / BLOCK] int32 blocks of keys, longest work first.
    """

    cu_seqlens: Tensor
    tokens: int
    window: int | None
    length: Length
    first: Tensor
    end: Tensor
    order: Tensor

    @classmethod
    def of(
        cls, cu_seqlens: Tensor, tokens: int, window: int | None = None, length: Length = "short"
    ) -> "PackedDocuments":
        """The documents that `cu_seqlens` bounds; it is not looked into, which would wait for the GPU.

        Raises:
            ValueError: the shape, dtype, window or length doesn't fit; it is named.
        """
        require(
            cu_seqlens.dim() == 1 and cu_seqlens.dtype == torch.int32,
            f"documents: cu_seqlens must be [documents + 1] int32, not {list(cu_seqlens.shape)} {cu_seqlens.dtype}",
        )
        require(cu_seqlens.shape[0] >= 2, "documents: cu_seqlens has no document")
        require(window is None or window >= 1, f"documents: window must be at least 1, not {window}")
        require(length in LENGTHS, f"documents: length must be {' or '.join(LENGTHS)}, not {length}")
        ranges = _visible_range(cu_seqlens, tokens, min(window or tokens, max(tokens, 1)))
        return cls(cu_seqlens, tokens, window, length, *ranges)


@torch.library.custom_op("vikhr::visible_range", mutates_args=())
def _visible_range(cu_seqlens: Tensor, tokens: int, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """`PackedDocuments`' first, end and order."""
    if not (tokens and handles(cu_seqlens.device)):
        return _empty(cu_seqlens, 0)
    from vikhr_kernels.gpu.visible_range import visible_range

    require_current(cu_seqlens.device)
    first, end = visible_range(cu_seqlens.contiguous(), tokens, window)
    return first, end, longest_first(end)


def longest_first(end: Tensor) -> Tensor:
    """Blocks of keys by falling distance to the end of the queries that see them, [T] -> [T / BLOCK] int32.

    A program for keys works for a whole group of heads: few and long, a long one that starts late runs on alone. The
    last block, which may be cut short, has the shortest way anyhow, and comes last: it may have fewer tiles.
    """
    starts = torch.arange(0, end.numel(), BLOCK, device=end.device)
    distances = end[starts[1:] - 1] - starts[:-1]
    return torch.cat((distances.argsort(descending=True), starts[-1:] // BLOCK)).int()


@_visible_range.register_fake
def _(cu_seqlens: Tensor, tokens: int, window: int) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(cu_seqlens, tokens if handles(cu_seqlens.device) else 0)


def _empty(cu_seqlens: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    first, end = (cu_seqlens.new_empty(tokens) for _ in range(2))
    return first, end, cu_seqlens.new_empty(-(-tokens // BLOCK))
