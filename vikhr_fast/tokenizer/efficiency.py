"""How well a tokenizer fits a language: fertility, characters a token, bytes, and where two tokenizers differ."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path

import numpy as np

from vikhr_fast.corpus.sources import read_texts
from vikhr_fast.tokenizer.bpe import BpeEncoder, Ids
from vikhr_fast.tokenizer.export import BYTE, read_model

_BATCH = 4096  # documents


@dataclass(frozen=True)
class Efficiency:
    """One tokenizer on one text. Words are what stands between white space; BOS and EOS are not counted."""

    words: int
    characters: int
    bytes: int
    tokens: int
    byte_tokens: int
    """Tokens of one byte each, which spell what has no piece; the line ends inside documents are among them."""

    @property
    def tokens_per_word(self) -> float:
        """Fertility."""
        return self.tokens / self.words

    @property
    def characters_per_token(self) -> float:
        """Text in a token, in Unicode characters."""
        return self.characters / self.tokens

    @property
    def bytes_per_token(self) -> float:
        """Text in a token, in UTF-8 bytes."""
        return self.bytes / self.tokens

    @property
    def byte_share(self) -> float:
        """Tokens that are single bytes, among all."""
        return self.byte_tokens / self.tokens


def measure(model_file: Path, sources: Iterable[Path]) -> Efficiency:
    """Encodes the documents of all sources (see `corpus.sources.read_texts`) with one tokenizer.

    Raises:
        InputError: an unreadable model or source, or no text at all.
    """
    encoder = BpeEncoder.from_file(model_file)
    is_byte = np.array([piece.type == BYTE for piece in read_model(model_file).pieces])
    words = characters = size = tokens = byte_tokens = 0
    for batch in _batches(sources):
        ids, _ = encoder.encode_batch(batch)
        tokens += ids.size
        byte_tokens += int(is_byte[ids].sum())
        words += sum(len(text.split()) for text in batch)
        characters += sum(map(len, batch))
        size += sum(len(text.encode()) for text in batch)
    return Efficiency(words, characters, size, tokens, byte_tokens)


def segmentation_change(base_file: Path, new_file: Path, sources: Iterable[Path]) -> dict[str, float]:
    """How another tokenizer segments a text than the base does, word by word.

    Returns:
        `words`; `words_changed`, the share of them that fall into other pieces; `tokens_before` and `tokens_after`.

    Raises:
        InputError: as `measure`.
    """
    encoders = [BpeEncoder.from_file(file) for file in (base_file, new_file)]
    pieces = [[encoder.piece(index) for index in range(encoder.vocab_size)] for encoder in encoders]
    words = changed = 0
    tokens = [0, 0]
    for batch in _batches(sources):
        split = [word for text in batch for word in text.split()]
        before, after = (_pieces_of_words(*pair, split) for pair in zip(encoders, pieces, strict=True))
        words += len(split)
        changed += sum(old != new for old, new in zip(before, after, strict=True))
        for which, encoder in enumerate(encoders):
            tokens[which] += encoder.encode_batch(batch)[0].size
    return {
        "words": words,
        "words_changed": changed / words,
        "tokens_before": tokens[0],
        "tokens_after": tokens[1],
    }


def _pieces_of_words(encoder: BpeEncoder, pieces: list[str], words: list[str]) -> Iterator[list[str]]:
    ids, offsets = encoder.encode_batch(words)
    for start, end in pairwise(offsets):
        part: Ids = ids[start:end]
        yield [pieces[index] for index in part]


def _batches(sources: Iterable[Path]) -> Iterator[list[str]]:
    texts = chain.from_iterable(map(read_texts, sources))
    while batch := list(islice(texts, _BATCH)):
        yield batch
