"""What a reference with another vocabulary reads of a batch, and where both models can be compared.

It reads the same text in its own tokens. Where a token of either ends at the same byte, both models predict what comes
after the same text, and their predictions are compared; at other positions they aren't.

Of a window that begins or ends inside a document the reference reads from the first space to the last, so that words
are whole: inside of one, its tokens would be others than they are in the document. Where there is none within 64 bytes,
it reads from the first whole character, before which its tokenizer may add a space, or to the last, where nothing is
compared.
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

_LONGEST_WORD = 64  # bytes in which a space must be, or the text isn't one of words with spaces
_MULTIPLE = 128  # tokens that a batch of the reference is padded to: kernels are compiled for such lengths anyway


@dataclass(frozen=True)
class Side:
    """One of the two vocabularies."""

    spelling: Spelling
    bos: int  # begins a document; -1 for none
    eos: int  # ends it
    buckets: IntArray  # [V] of each token

    @property
    def described_ends(self) -> str:
        """Which tokens documents begin and end with, in words."""
        names = [self.spelling.encoder.piece(index) if index >= 0 else "no token" for index in (self.bos, self.eos)]
        return f"from {names[0]} to {names[1]}"


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


@dataclass(frozen=True)
class _Text:
    """What the reference reads of a passage."""

    ids: IntArray  # its own tokens, as far as they spell the passage and it has positions for them
    start: int  # byte that the first of them begins with
    ends: bool  # with the document
    num_cut: int  # tokens that it has no positions for
    is_spelt: bool  # to its end


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
        texts = self._encoded(passages)
        shared = _native.shared_boundaries(*_arrays(self.own, passages), *_arrays(self.ref, texts))
        rows = torch.full((len(batch.tokens),), -1)
        following = np.full(len(batch.tokens), -1)  # of the reference's tokens, where it is known
        first_own = first_ref = 0
        for passage, text in zip(passages, texts, strict=True):
            mine = shared[first_own : first_own + len(passage.ids)]
            if not passage.begins and self.ref.bos >= 0:
                mine[mine == first_ref] = -1  # it has read nothing of the text yet
            place = slice(passage.first, passage.first + len(mine))
            rows[place] = torch.from_numpy(mine)
            after = np.append(text.ids[1:], self.ref.eos if text.ends else -1)
            following[place] = np.where(mine >= 0, after[np.maximum(mine - first_ref, 0)], -1)
            first_own, first_ref = first_own + len(passage.ids), first_ref + len(text.ids)
        counts = (rows >= 0).numpy() & (following >= 0)
        apart = self.own.buckets[batch.targets.numpy()[counts]] != self.ref.buckets[following[counts]]
        reading = _packed(texts, rows, int(apart.sum()))
        return replace(batch, kl_factor=factors.where(rows >= 0, 0.0), reading=reading)

    def _passage(self, batch: Batch, start: int, end: int) -> _Passage | None:
        """What is read of a window, rows `start` to `end`; None where that is nothing."""
        lengths = self.own.spelling.lengths
        ids = batch.tokens[start:end].numpy()
        last = int(batch.targets[end - 1])
        begins, ends = bool(ids[0] == self.own.bos), last == self.own.eos
        inside = ids[int(begins) :] if ends else np.append(ids, last)[int(begins) :]
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

    def _encoded(self, passages: Sequence[_Passage]) -> list[_Text]:
        """What is read of each passage."""
        spelling = self.ref.spelling
        # A space that begins a text inside of a document is the one that would be added.
        spaces = [int(spelling.begins_with_another_space and _goes_on_with_space(passage)) for passage in passages]
        given = [passage.text[space:] for passage, space in zip(passages, spaces, strict=True)]
        ids, offsets = spelling.encoder.encode_batch([text.decode() for text in given], 1)
        return [
            self._text(passage, ids[start:end].astype(np.int64))
            for passage, start, end in zip(passages, offsets[:-1], offsets[1:], strict=True)
        ]

    def _text(self, passage: _Passage, ids: IntArray) -> _Text:
        """What is read of a passage with these tokens of the reference's."""
        spelling = self.ref.spelling
        spelt = spelling.spell(ids)
        added = int(_adds_space(spelling, passage))
        expected, ends = b" " * added + passage.text, spelling.lengths[ids].cumsum()
        is_right = (spelling.lengths[ids] > 0) & (ends <= _common(expected, spelt))
        kept = len(ids) if is_right.all() else int(is_right.argmin())
        is_all = kept == len(ids) and len(spelt) == len(expected)
        if is_all and not passage.is_whole:
            kept -= 1  # what follows is the rest of a word, or unknown
        tokens = ids[: max(kept, 0)] if self.ref.bos < 0 else np.append(self.ref.bos, ids[: max(kept, 0)])
        num_cut = max(len(tokens) - self._most_tokens, 0)
        is_read = passage.ends and is_all and num_cut == 0
        return _Text(tokens[: self._most_tokens], passage.at - added, is_read, num_cut, is_all)


def _adds_space(spelling: Spelling, passage: _Passage) -> bool:
    """Whether the passage's own first byte comes after a space that the tokenizer adds."""
    if passage.text[:1] == b" ":
        return spelling.begins_with_another_space and passage.begins
    return spelling.begins_with_space and passage.text != b""


def _goes_on_with_space(passage: _Passage) -> bool:
    return not passage.begins and passage.text[:1] == b" "


def _first_whole(text: bytes) -> int:
    """Where the first space is, if it is near, or else the first character that is whole."""
    found = text.find(b" ", 0, _LONGEST_WORD)
    return found if found >= 0 else next((i for i in range(min(4, len(text))) if text[i] & 0xC0 != 0x80), len(text))


def _last_whole(text: bytes) -> int:
    """Where the last space is, if it is near, or else the end."""
    found = text.rfind(b" ", max(len(text) - _LONGEST_WORD, 1))
    return found if found > 0 else len(text)


def _common(first: bytes, second: bytes) -> int:
    """How many bytes both begin with."""
    if first == second:
        return len(first)
    length = min(len(first), len(second))
    differs = np.frombuffer(first, np.uint8, length) != np.frombuffer(second, np.uint8, length)
    return int(differs.argmax()) if differs.any() else length


def _arrays(side: Side, texts: Sequence[_Passage] | Sequence[_Text]) -> tuple[IntArray, IntArray, IntArray]:
    """The lengths of all tokens of some texts, where each text's begin, and its first byte."""
    ids = np.concatenate([np.empty(0, dtype=np.int64), *(text.ids for text in texts)])
    starts = np.array([text.start for text in texts], dtype=np.int64)
    return side.spelling.lengths[ids], np.array(_offsets(texts), dtype=np.int64), starts


def _offsets(texts: Sequence[_Passage] | Sequence[_Text]) -> list[int]:
    """Where the tokens of each begin among all of them, and the end."""
    return [*accumulate((len(text.ids) for text in texts), initial=0)]


def _packed(texts: Sequence[_Text], rows: torch.Tensor, num_apart: int) -> Reading:
    """The texts one after another, padded to a multiple; never none, as ranks run the reference together."""
    bounds = _offsets(texts)
    count = bounds[-1]
    padding = -count % _MULTIPLE or (_MULTIPLE if count == 0 else 0)
    tokens = np.concatenate([*(text.ids for text in texts), np.zeros(padding, dtype=np.int64)])
    cu_seqlens = torch.tensor([*bounds, count + padding] if padding else bounds, dtype=torch.int32)
    num_cut, num_unspelt = sum(text.num_cut for text in texts), sum(not text.is_spelt for text in texts)
    return Reading(torch.from_numpy(tokens), cu_seqlens, rows, count, num_cut, num_apart, num_unspelt)
