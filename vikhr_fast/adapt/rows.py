"""The rows of a new vocabulary, made of the rows of an old one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vikhr_fast.adapt.shares import Shares
from vikhr_fast.adapt.vocabularies import Vocabulary
from vikhr_fast.data.sources import read_texts
from vikhr_fast.model.weights import HEAD
from vikhr_fast.tokenizer.load import load_encoder

Init = Literal["mean", "mean-and-share", "random", "global-mean", "frequency-weighted-mean"]

_WORST = 20
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class RowSources:
    """Where each row of the new vocabulary comes from."""

    pieces: list[list[int]]
    """For each new piece the base ids that spell it; one id alone may be a copy, see `base_ids`."""
    base_ids: list[int | None]
    """For each new piece the id of the base that it continues, or None for a new row."""
    by_role: int
    """How many of these were matched by role (unknown, BOS, EOS, padding)."""
    with_bytes: int
    """New rows whose text the base spells in bytes, at least in part."""
    unspelt: list[str]
    """Of these, those with bytes for which the base has no token."""
    first_ids: list[int | None]
    """The base ids with which texts of the new pieces begin; None where the base spells nothing of them."""

    def report(self, new: Vocabulary) -> dict[str, Any]:
        """Counts, and the new rows that tell the least: those that are the mean of most."""
        averaged = [index for index, base_id in enumerate(self.base_ids) if base_id is None]
        worst = sorted(averaged, key=lambda index: (-len(self.pieces[index]), index))[:_WORST]
        return {
            "by_role": self.by_role,
            "copied": len(self.base_ids) - len(averaged) - self.by_role,
            "averaged": len(averaged),
            "averaged_with_bytes": self.with_bytes,
            "unspelt": self.unspelt,
            "worst": [
                {"id": i, "piece": token.text if (token := new.tokens[i]) else None, "base_pieces": len(self.pieces[i])}
                for i in worst
            ],
        }


def find_sources(base: Vocabulary, new: Vocabulary) -> RowSources:
    """Matches the tokens of two vocabularies.

    Special ones are matched by role, whatever they are called; others by kind and text. What the base has no token for
    is spelt, and bytes that it can't spell are the mean of all that it has.
    """
    by_role = {index: base.roles[role] for role, index in new.roles.items() if role in base.roles}
    pieces: list[list[int]] = []
    base_ids: list[int | None] = []
    unspelt: list[str] = []
    first_ids: list[int | None] = []
    with_bytes = 0
    for index, token in enumerate(new.tokens):
        base_id = None if token is None else by_role.get(index, base.find(token))
        base_ids.append(base_id)
        spelt = [base_id] if base_id is not None else base.spell(token) if token is not None else []
        pieces.append(spelt or list(base.byte_ids.values()))
        first_ids.append(spelt[0] if spelt else None)
        if token is not None and base_id is None:
            with_bytes += any((part := base.tokens[own]) is not None and part.is_byte for own in pieces[-1])
            unspelt += [token.text] if any(byte not in base.byte_ids for byte in token.content) else []
    return RowSources(pieces, base_ids, len(by_role), with_bytes, unspelt, first_ids)


def piece_frequencies(base_file: Path, texts: tuple[Path, ...]) -> npt.NDArray[np.int64]:
    """How often each piece of the base occurs in the texts, plus one."""
    encoder = load_encoder(base_file)
    counts = np.ones(encoder.vocab_size, dtype=np.int64)
    for source in texts:
        for text in read_texts(source):
            counts += np.bincount(encoder.encode(text), minlength=encoder.vocab_size)
    return counts


@dataclass(frozen=True)
class RowMaker:
    """Makes a matrix of the new vocabulary out of the base's, block by block."""

    sources: RowSources
    init: Init
    frequencies: npt.NDArray[np.int64] | None
    """Of the base's pieces; for "frequency-weighted-mean" alone."""
    shares: Shares | None
    """What rows of the head get besides; for "mean-and-share" alone."""
    padding: int
    """Rows after those of the vocabulary. Each is the mean of all before it: its logit is the mean logit, so that it
    is never the largest, and its probability is below the average one, whatever the hidden state."""
    seed: int

    @property
    def rows(self) -> int:
        """Number of rows, padding included."""
        return len(self.sources.base_ids) + self.padding

    def blocks(self, old: Tensor, name: str) -> Iterator[Tensor]:
        """The new rows in order, in blocks: [rows of the block, H], in the dtype of `old`.

        Kept rows are copies, but for what shares add to a head's. A mean is taken in float32 and rounded once (float64
        weights, which only tests have, are averaged in float64).

        Args:
            old: the base's matrix, [base pieces, H].
            name: of the matrix; random rows of different matrices differ.
        """
        wide = torch.promote_types(old.dtype, torch.float32)
        new_row = self._initialiser(old, name, wide)
        total = torch.zeros(old.shape[1], dtype=torch.float64)
        count = len(self.sources.base_ids)
        for start in range(0, count, _BLOCK_ROWS):
            block = torch.empty(min(_BLOCK_ROWS, count - start), old.shape[1], dtype=old.dtype)
            for place, base_id in enumerate(self.sources.base_ids[start : start + _BLOCK_ROWS]):
                row = old[base_id] if base_id is not None else new_row(self.sources.pieces[start + place])
                if name == HEAD and self.shares is not None:
                    row = row + self.shares.added_to(start + place)
                block[place] = row
            if self.padding:
                total += block.double().sum(0)
            yield block
        if self.padding:
            yield (total / count).to(wide).to(old.dtype).expand(self.padding, -1)

    def _initialiser(self, old: Tensor, name: str, wide: torch.dtype) -> Callable[[list[int]], Tensor]:
        """What makes new rows of `old` out of the base ids that spell their pieces, in the order of the rows."""
        if self.init in ("mean", "mean-and-share"):
            return lambda ids: old[ids].to(wide).mean(0)
        if self.frequencies is not None:
            frequencies = torch.from_numpy(self.frequencies).to(wide)
            return lambda ids: (old[ids].to(wide) * (frequencies[ids] / frequencies[ids].sum())[:, None]).sum(0)
        total, squares = torch.zeros(old.shape[1], dtype=torch.float64), 0.0
        for block in old.split(_BLOCK_ROWS):
            total += block.double().sum(0)
            squares += float(block.double().square().sum())
        if self.init == "global-mean":
            mean = (total / len(old)).to(wide)
            return lambda _ids: mean
        deviation = (squares / old.numel() - (float(total.sum()) / old.numel()) ** 2) ** 0.5
        generator = torch.Generator().manual_seed(self.seed + sum(name.encode()))
        return lambda _ids: torch.empty(old.shape[1], dtype=wide).normal_(0, deviation, generator=generator)
