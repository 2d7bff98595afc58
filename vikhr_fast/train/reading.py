"""What a reference with another vocabulary reads of a batch, and where both models can be compared.

It reads the same text in its own tokens. Where a token of either ends at the same byte, both models predict what comes
after the same text, and their predictions are compared; at other positions they aren't.

Of a window that begins or ends inside a document the reference reads from the first space to the last, so that words
are whole: inside of one, its tokens would be others than they are in the document. Where there is no space, it reads
all whole characters, and the end isn't compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np
import torch

from vikhr_fast import _native
from vikhr_fast.data.native_texts import IntArray
from vikhr_fast.data.packing import IGNORED, Batch, Reading
from vikhr_fast.tokenizer.spelling import Spelling

_MULTIPLE = 128  # tokens that a batch of the reference is padded to: kernels are compiled for such lengths anyway


@dataclass(frozen=True)
class Side:
    """One of the two vocabularies."""

    spelling: Spelling
    bos: int  # begins a document; -1 for none
    eos: int  # ends it
    buckets: IntArray  # [V] of each token


@dataclass(frozen=True)
class _Passage:
    """The text of a window that the reference reads, and the tokens of the model up to its end."""

    text: bytes
    at: int  # of the text's first byte, counted from the first of the document's or window's
    first: int  # row of the batch that the window begins with
    ids: IntArray  # the model's
    start: int  # byte that the first of them begins with: -1 where that is an added space
    begins: bool  # with the document
    ends: bool  # with the document
    is_whole: bool  # so that what follows the text isn't inside a word


class Reader:
    """Reads batches for the reference.

    Args:
        own: the model's vocabulary.
        ref: the reference's.
        most_tokens: of a text, that the reference has positions for.
    """

    def __init__(self, own: Side, ref: Side, most_tokens: int) -> None:
        self.own, self.ref, self._most_tokens = own, ref, most_tokens

    @property
    def num_buckets(self) -> int:
        """How many there are, each with tokens of both vocabularies."""
        return int(self.own.buckets.max()) + 1

    def read(self, batch: Batch) -> Batch:
        """The batch with what the reference reads of it; its KL counts where both can be compared, and nowhere else."""
        factors = torch.as_tensor(batch.kl_factor, dtype=torch.float64).expand(len(batch.tokens))
        bounds = batch.cu_seqlens.tolist()
        passages = [
            passage
            for start, end in pairwise(bounds)
            if bool(((factors[start:end] > 0) & (batch.targets[start:end] != IGNORED)).any())
            if (passage := self._passage(batch, start, end)) is not None
        ]
        texts, num_cut = self._encoded(passages)
        own = [passage.ids for passage in passages]
        shared = _native.shared_boundaries(
            *_lengths(self.own, own), np.array([passage.start for passage in passages], dtype=np.int64),
            *_lengths(self.ref, [ids for ids, _ in texts]), np.array([start for _, start in texts], dtype=np.int64),
        )  # fmt: skip
        rows = torch.full((len(batch.tokens),), -1)
        following = np.full(len(batch.tokens), -1)  # of the reference's tokens, where it is known
        first_own = first_ref = 0
        for passage, (ids, _) in zip(passages, texts, strict=True):
            mine = shared[first_own : first_own + len(passage.ids)]
            if not passage.begins:
                mine[mine == first_ref] = -1  # it has read nothing of the text yet
            place = slice(passage.first, passage.first + len(mine))
            rows[place] = torch.from_numpy(mine)
            after = np.append(ids[1:], self.ref.eos if passage.ends else -1)
            following[place] = np.where(mine >= 0, after[np.maximum(mine - first_ref, 0)], -1)
            first_own, first_ref = first_own + len(passage.ids), first_ref + len(ids)
        rows[batch.targets == IGNORED] = -1
        counts = (rows >= 0).numpy() & (following >= 0)
        apart = self.own.buckets[batch.targets.numpy()[counts]] != self.ref.buckets[following[counts]]
        reading = _packed([ids for ids, _ in texts], rows, num_cut, int(apart.sum()))
        return replace(batch, kl_factor=factors.where(rows >= 0, 0.0), reading=reading)

    def _passage(self, batch: Batch, start: int, end: int) -> _Passage | None:
        """What is read of a window, rows `start` to `end`; None where that is nothing."""
        lengths = self.own.spelling.lengths
        ids = batch.tokens[start:end].numpy()
        last = int(batch.targets[end - 1])
        begins, ends = bool(ids[0] == self.own.bos), last == self.own.eos
        inside = np.append(ids, last)[int(begins) :] if last != IGNORED and not ends else ids[int(begins) :]
        if (not_text := np.flatnonzero(lengths[inside] == 0)).size:
            inside, ends = inside[: not_text[0]], False
            ids = ids[: int(begins) + len(inside)]
        text = self.own.spelling.spell(inside)
        has_space = begins and self.own.spelling.begins_with_space and text.startswith(b" ")
        text = text[int(has_space) :]
        first, stop = (0 if begins else _first_whole(text)), (len(text) if ends else _last_whole(text))
        is_whole = ends or text[stop : stop + 1] == b" "
        if first >= stop and not begins:
            return None
        try:
            text[first:stop].decode()
        except UnicodeDecodeError as error:
            stop, is_whole, ends = first + error.start, False, False
        return _Passage(text[first:stop], first, start, ids, -int(has_space), begins, ends, is_whole)

    def _encoded(self, passages: Sequence[_Passage]) -> tuple[list[tuple[IntArray, int]], int]:
        """The reference's tokens of each text, as far as they spell it, and the byte that they begin with.

        And how many of all these it has no positions for.
        """
        spelling, has_bos = self.ref.spelling, self.ref.bos >= 0
        given = []
        for passage in passages:  # a space that begins a text inside of a document is the one that would be added
            skipped = spelling.begins_with_space and not passage.begins and passage.text.startswith(b" ")
            given.append(passage.text[int(skipped) :])
        ids, offsets = spelling.encoder.encode_batch([text.decode() for text in given], 1)
        texts, num_cut = [], 0
        for passage, start, end in zip(passages, offsets[:-1], offsets[1:], strict=True):
            own = ids[start:end].astype(np.int64)
            spelt = spelling.spell(own)
            added = int(spelling.begins_with_space and len(spelt) > len(passage.text))
            spelt_right = _common(b" " * added + passage.text, spelt)
            kept = int(np.searchsorted(spelling.lengths[own].cumsum(), spelt_right, "right"))
            is_all = kept == len(own) and len(spelt) == len(passage.text) + added
            if is_all and not passage.is_whole:
                kept -= 1  # what follows is the rest of a word, or unknown
            tokens = np.append(self.ref.bos, own[: max(kept, 0)]) if has_bos else own[: max(kept, 0)]
            texts.append((tokens[: self._most_tokens], passage.at - added))
            num_cut += max(len(tokens) - self._most_tokens, 0)
        return texts, num_cut


def _first_whole(text: bytes) -> int:
    """Where the first space is, or else the first character that is whole."""
    found = text.find(b" ")
    return found if found >= 0 else next((i for i in range(min(4, len(text))) if text[i] & 0xC0 != 0x80), len(text))


def _last_whole(text: bytes) -> int:
    """Where the last space is, or else the end."""
    found = text.rfind(b" ")
    return found if found > 0 else len(text)


def _common(first: bytes, second: bytes) -> int:
    """How many bytes both begin with."""
    if first == second:
        return len(first)
    length = min(len(first), len(second))
    differs = np.frombuffer(first, np.uint8, length) != np.frombuffer(second, np.uint8, length)
    return int(differs.argmax()) if differs.any() else length


def _lengths(side: Side, texts: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    """The lengths of all tokens of some texts, and where each text's begin."""
    ids = np.concatenate([np.empty(0, dtype=np.int64), *texts])
    return side.spelling.lengths[ids], np.array([*accumulate(map(len, texts), initial=0)], dtype=np.int64)


def _packed(texts: Sequence[IntArray], rows: torch.Tensor, num_cut: int, num_apart: int) -> Reading:
    """The texts one after another, padded to a multiple; never none, as ranks run the reference together."""
    count = sum(map(len, texts))
    padding = -count % _MULTIPLE or (_MULTIPLE if count == 0 else 0)
    bounds = [*accumulate(map(len, texts), initial=0)]
    tokens = np.concatenate([*texts, np.zeros(padding, dtype=np.int64)])
    cu_seqlens = torch.tensor([*bounds, count + padding] if padding else bounds, dtype=torch.int32)
    return Reading(torch.from_numpy(tokens), cu_seqlens, rows, count, num_cut, num_apart)
