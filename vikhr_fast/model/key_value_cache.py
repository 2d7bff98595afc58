"""Keys and values of what a model has read, so that it need not compute them again."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyValueCache:
    """What a model, run with `cache`, has read: rows of tokens of different lengths.

    A row's slot in the cache is its position. Slots behind a shorter row are zeros: they are masked, but 0 times what
    the tokens that fill rows up might leave there could be NaN. Those write to a slot behind all others.

    Args:
        rows: how many.
        positions: how many a row can have.

    Attributes:
        lengths: how many positions each row has read.
    """

    def __init__(self, rows: int, positions: int) -> None:
        self.lengths, self._ends = [0] * rows, [0] * rows
        self._room = positions
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def expect(self, counts: list[int]) -> None:
        """Says how many tokens each row will get; whatever `advance` adds beyond them fills rows up."""
        self._ends = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def advance(self, count: int, window: int | None, device: torch.device) -> Tensor:
        """Adds `count` tokens to every row and returns their positions, [T = rows * count] int64."""
        lengths, ends = (torch.tensor(x, device=device)[:, None] for x in (self.lengths, self._ends))
        self._positions = lengths + torch.arange(count, device=device)
        self._slots = self._positions.where(self._positions < ends, self._room)
        self.lengths = [min(length + count, end) for length, end in zip(self.lengths, self._ends, strict=True)]
        seen = torch.arange(max(self.lengths), device=device)
        self._mask = seen <= self._positions[..., None]  # [rows, count, S]
        if window is not None:
            self._mask &= seen > self._positions[..., None] - window
        return self._positions.flatten()

    def attend(self, layer: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What q [T, Hq, D] of the tokens last added sees, in its shape; k and v [T, Hkv, D] are kept for the layer."""
        q, k, v = (x.unflatten(0, self._positions.shape) for x in (q, k, v))
        if layer not in self._kept:
            shape = (len(k), self._room + 1, *k.shape[2:])
            self._kept[layer] = k.new_zeros(shape), v.new_zeros(shape)
        keys, values = self._kept[layer]
        rows = torch.arange(len(k), device=k.device)[:, None]
        keys[rows, self._slots], values[rows, self._slots] = k, v
        seen = self._mask.shape[-1]
        q, k, v = (x.transpose(1, 2) for x in (q, keys[:, :seen], values[:, :seen]))  # [rows, heads, tokens, D]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask[:, None], enable_gqa=True)
        return attended.transpose(1, 2).flatten(0, 1)

    def select(self, rows: list[int]) -> None:
        """Goes on with these rows alone, in this order; a row may come several times."""
        self._kept = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self._kept.items()}
        self.lengths = [self.lengths[row] for row in rows]
