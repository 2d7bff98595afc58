"""Packed documents with what attention needs to know of them: made once a forward pass, for all its layers."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vikhr_kernels.arguments import require
from vikhr_kernels.attention_dispatch import LENGTHS, Length

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
    """

    cu_seqlens: Tensor
    tokens: int
    window: int | None
    length: Length
    _made: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

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
        return cls(cu_seqlens, tokens, window, length)

    def require_fit(self, q: Tensor, cu_seqlens: Tensor | None, window: int | None) -> None:
        """Refuses queries of another shape, and what is said twice.

        Raises:
            ValueError: the argument is named.
        """
        require(cu_seqlens is None and window is None, "flash_attention: documents go without cu_seqlens and window")
        require(
            q.dim() == 3 and q.shape[0] == self.tokens,
            f"flash_attention: q must be [{self.tokens}, Hq, D] to fit the documents, not {list(q.shape)}",
        )

    @property
    def positions_seen(self) -> int:
        """The window, no wider than the row."""
        return min(self.window or self.tokens, max(self.tokens, 1))

    @property
    def ranges(self) -> tuple[Tensor, Tensor]:
        """First key that a query sees, and end of the queries that see a key, each [T] int32; kernels ask for them.

        Token i of a document sees its token j when 0 <= i - j < window: all j from first[i] to i, and j is seen by all
        i from j to end[j]. Both never fall along the packed tokens, so the keys of a whole tile of queries are an
        interval too: tiles need not begin where documents do, and many short documents share one.
        """
        if "first" not in self._made:  # functools.cached_property has a lock, which torch.compile doesn't take
            bounds = self.cu_seqlens.contiguous()
            token = torch.arange(self.tokens, dtype=torch.int32, device=bounds.device)
            following = torch.searchsorted(bounds, token, right=True)  # bound; the one before it is not above the token
            start, stop = bounds[following - 1], bounds[following]
            self._made["first"] = torch.maximum(start, token - self.positions_seen + 1)
            self._made["end"] = torch.minimum(stop, token + self.positions_seen)
        return self._made["first"], self._made["end"]

    @property
    def order(self) -> Tensor:
        """[T / BLOCK] int32 blocks of keys by falling distance to the end of the queries that see them.

        A program for keys works for a whole group of heads: few and long, a long one that starts late runs on alone.
        The last block, which may be cut short, has the shortest way anyhow, and comes last: it may have fewer tiles.
        """
        if "order" not in self._made:
            _, end = self.ranges
            starts = torch.arange(0, self.tokens, BLOCK, device=end.device)
            distances = end[starts[1:] - 1] - starts[:-1]
            longest_first = torch.cat((distances.argsort(descending=True), starts[-1:] // BLOCK))
            self._made["order"] = longest_first.int()
        return self._made["order"]
