"""How well tokenizers fit a text: tokens a word, characters a token, bytes, and where they differ from the first."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vikhr_fast.data.sources import read_texts
from vikhr_fast.tokenizer.byte_level import readable, token_bytes
from vikhr_fast.tokenizer.export import BYTE, read_model
from vikhr_fast.tokenizer.json_encoder import JsonEncoder
from vikhr_fast.tokenizer.load import Encoder, load_encoder

_BATCH = 4096  # documents


def measure(model_files: Sequence[Path], sources: Iterable[Path]) -> list[dict[str, float]]:
    """Encodes the documents of all sources (see `corpus.sources.read_texts`) with each tokenizer.

    Returns:
        Of each tokenizer, by name: `words`, which is what stands between white space, `characters` and `bytes` of the
        text; `tokens` without BOS and EOS, and `byte_tokens`, those of one byte each that spell what has no piece (the
        line ends inside documents are among them); `tokens_per_word` (fertility), `characters_per_token`,
        `bytes_per_token` and `byte_share`; `context_gain`, the text in a context as a multiple of the first
        tokenizer's; and `words_changed`, the share of words that fall into other pieces than the first tokenizer's.

    Raises:
        InputError: an unreadable model or source, or no text at all.
    """
    encoders = [load_encoder(file) for file in model_files]
    pieces, is_byte = zip(*map(_vocabulary, model_files, encoders), strict=True)
    words = characters = size = 0
    tokens, byte_tokens, changed = ([0] * len(encoders) for _ in range(3))
    texts = chain.from_iterable(map(read_texts, sources))
    while batch := list(islice(texts, _BATCH)):
        split = [word for text in batch for word in text.split()]
        words += len(split)
        characters += sum(map(len, batch))
        size += sum(len(text.encode()) for text in batch)
        before = list(_segmented(encoders[0], pieces[0], split)) if len(encoders) > 1 else []
        for number, encoder in enumerate(encoders):
            ids = encoder.encode_batch(batch)[0]
            tokens[number] += ids.size
            byte_tokens[number] += int(is_byte[number][ids].sum())
            after = _segmented(encoder, pieces[number], split) if number else before
            changed[number] += sum(old != new for old, new in zip(before, after, strict=True))
    return [
        {
            "words": words,
            "characters": characters,
            "bytes": size,
            "tokens": tokens[number],
            "byte_tokens": byte_tokens[number],
            "tokens_per_word": tokens[number] / words,
            "characters_per_token": characters / tokens[number],
            "bytes_per_token": size / tokens[number],
            "byte_share": byte_tokens[number] / tokens[number],
            "context_gain": tokens[0] / tokens[number],
            "words_changed": changed[number] / words,
        }
        for number in range(len(encoders))
    ]


def _vocabulary(file: Path, encoder: Encoder) -> tuple[list[str], npt.NDArray[np.bool_]]:
    """Pieces by id, "" where there is none, as SentencePiece spells them; and which are a byte of what has no piece."""
    if not isinstance(encoder, JsonEncoder):
        model = read_model(file)
        return [piece.piece for piece in model.pieces], np.array([piece.type == BYTE for piece in model.pieces])
    pieces, is_byte = [""] * encoder.vocab_size, np.zeros(encoder.vocab_size, bool)
    for token, index in encoder.tokenizer.get_vocab(with_added_tokens=True).items():
        content = token_bytes(token) or b""
        pieces[index], is_byte[index] = readable(token), len(content) == 1 and not content.isascii()
    return pieces, is_byte


def _segmented(encoder: Encoder, pieces: list[str], words: list[str]) -> Iterator[list[str]]:
    """The pieces of words behind a space, which SentencePiece puts there itself."""
    spaced = [f" {word}" for word in words] if isinstance(encoder, JsonEncoder) else words
    ids, offsets = encoder.encode_batch(spaced)
    for start, end in pairwise(offsets):
        yield [pieces[index] for index in ids[start:end]]
