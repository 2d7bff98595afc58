"""What each token of a tokenizer adds to a text, in bytes."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from vikhr_fast.data.native_texts import IntArray
from vikhr_fast.tokenizer.byte_level import spells_bytes, token_bytes
from vikhr_fast.tokenizer.export import BYTE, NORMAL, USER_DEFINED, read_model
from vikhr_fast.tokenizer.json_encoder import JsonEncoder
from vikhr_fast.tokenizer.load import Encoder, find_tokenizer, load_encoder


@dataclass(frozen=True)
class Spelling:
    """A tokenizer, and what its tokens stand for."""

    encoder: Encoder
    contents: list[bytes]
    """By id; empty for a token that isn't text, such as that which begins a document."""

    @classmethod
    def of(cls, path: Path) -> "Spelling":
        """That of a tokenizer: a file, or a directory with one; InputError as `load_encoder`."""
        file = find_tokenizer(path)
        encoder = load_encoder(file)
        contents = [b""] * encoder.vocab_size
        for index, content in _of_json(encoder) if isinstance(encoder, JsonEncoder) else _of_model(file):
            contents[index] = content
        return cls(encoder, contents)

    @cached_property
    def lengths(self) -> IntArray:
        """[ids] bytes of each."""
        return np.array([len(content) for content in self.contents], dtype=np.int64)

    @cached_property
    def begins_with_space(self) -> bool:
        """Whether a space is added before a text, as SentencePiece does."""
        return self._adds_space("")

    @cached_property
    def begins_with_another_space(self) -> bool:
        """Whether one is added before a text that begins with a space, too."""
        return self._adds_space(" ")

    def _adds_space(self, before: str) -> bool:
        """Whether one is added before a word, one of its tokens, with something before it."""
        word = next((text for content in self.contents if (text := content.decode(errors="ignore")).isalpha()), "a")
        text = before + word
        return self.spell(self.encoder.encode(text)) == f" {text}".encode()

    def of_documents(self, rows: int, *ends: int) -> "Spelling":
        """With nothing for the tokens that begin and end documents, nor for those that a model has no row for."""
        contents = [b"" if index in ends or index >= rows else content for index, content in enumerate(self.contents)]
        return Spelling(self.encoder, contents)

    def spell(self, ids: Iterable[int]) -> bytes:
        """The text of some tokens."""
        return b"".join([self.contents[index] for index in ids])


def _of_model(file: Path) -> Iterable[tuple[int, bytes]]:
    for index, piece in enumerate(read_model(file).pieces):
        if piece.type == BYTE:
            yield index, bytes([int(piece.piece[3:5], 16)])
        elif piece.type in (NORMAL, USER_DEFINED):
            yield index, piece.piece.replace("▁", " ").encode()


def _of_json(encoder: JsonEncoder) -> Iterable[tuple[int, bytes]]:
    library = encoder.tokenizer
    is_byte_level, has_bytes = spells_bytes(library.pre_tokenizer), library.model.byte_fallback
    contents = {}
    for text, index in library.get_vocab(with_added_tokens=False).items():
        contents[index] = (token_bytes(text) or b"") if is_byte_level else _of_sentencepiece(text, has_bytes)
    for index, token in library.get_added_tokens_decoder().items():
        contents[index] = b"" if token.special else contents.get(index) or token.content.encode()
    return contents.items()


def _of_sentencepiece(text: str, has_bytes: bool) -> bytes:
    if has_bytes and re.fullmatch("<0x[0-9A-F]{2}>", text):
        return bytes([int(text[3:5], 16)])
    return text.replace("▁", " ").encode()
