"""SentencePiece-exact BPE encoding and decoding, in C++ on all cores."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vikhr_fast import _native
from vikhr_fast.data.native_texts import InvalidUtf8, Texts, as_int64, native_texts, replaces
from vikhr_fast.errors import InputError
from vikhr_fast.io.files import json_text
from vikhr_fast.tokenizer.added_tokens import AddedTokens, read_added_tokens, refuse_words
from vikhr_fast.tokenizer.model_file import read_model_bytes

Ids: TypeAlias = npt.NDArray[np.int32]
Offsets: TypeAlias = npt.NDArray[np.int64]
IdsLike: TypeAlias = Sequence[int] | npt.NDArray[np.integer]


class BpeEncoder:
    """Encodes text to exactly the ids of the `sentencepiece` package, for BPE models with identity normalisation.

    The text of a user-defined piece that is a control token stays text, see `model_file`.

    One encoder serves any number of Python threads; the GIL is released while it works.
    """

    def __init__(self, native: _native.BpeEncoder, sha256: str, added: AddedTokens | None = None):
        self._native = native
        self.sha256 = sha256
        """SHA-256 of the model as it is read, with the added tokens if there are any, in hexadecimal."""
        self.added = added.control if added else {}
        """Ids of control tokens that the files beside the model add to its pieces, by their text."""
        self.changing = added.changing if added else frozenset[str]()
        """Those of them that a chat can't have, see `AddedTokens`."""
        self.num_pieces = native.vocab_size
        """Number of the model's own pieces."""
        self.vocab_size = 1 + max([self.num_pieces - 1, *self.added.values()])
        """The number that all ids are below."""
        self.missing_bytes = b""
        """As that of `JsonEncoder`; what has no piece is spelt in bytes, or is the unknown piece."""
        self.unk_id, self.bos_id, self.eos_id, self.pad_id = native.unk_id, native.bos_id, native.eos_id, native.pad_id
        """Ids of the pieces for unknown text, that begin and end a text, and for padding; -1 where there is none."""

    @classmethod
    def from_file(cls, path: str | Path) -> "BpeEncoder":
        """Reads a SentencePiece `.model` file, and of files beside a tokenizer.model which control tokens they add.

        Raises:
            InputError: a file is damaged or of another kind; or words are added, which no encoder of the model finds.
        """
        try:
            data = read_model_bytes(Path(path))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; give a SentencePiece .model file") from error
        try:
            native = _native.BpeEncoder(data)
        except _native.ModelError as error:
            raise InputError(f"{path}: {error}") from error
        added = read_added_tokens(Path(path), [native.piece(index) for index in range(native.vocab_size)])
        refuse_words(Path(path), added)
        control = json_text(added.control, sort_keys=True).encode("utf-8") if added.control else b""
        return cls(native, hashlib.sha256(data + control).hexdigest(), added)

    def encode(self, text: str | bytes, errors: InvalidUtf8 = "strict") -> Ids:
        """Ids of one text, without BOS and EOS: int32 [tokens].

        ValueError with the byte offset where the text is not valid UTF-8; `errors="replace"` reads each such byte
        as U+FFFD instead, as SentencePiece does.
        """
        return self._native.encode_texts([text], replaces(errors), 1)[0]

    def encode_batch(self, texts: Texts, threads: int = 0, errors: InvalidUtf8 = "strict") -> tuple[Ids, Offsets]:
        """Ids of many texts: int32 [tokens] of all of them, int64 [texts + 1] where each starts.

        `texts` is a sequence of str or bytes, a pyarrow string or binary array, or a pair of one UTF-8 buffer and its
        integer offsets [texts + 1]; neither of the last two is copied. `threads=0` uses every core; the ids are the
        same for any number. ValueError names the document and byte where text is not valid UTF-8 (see `encode`).
        """
        return self._native.encode_held(native_texts(texts), replaces(errors), threads)

    def decode(self, ids: IdsLike) -> str:
        """The text of one sequence of ids [tokens], as SentencePiece decodes it; IndexError on ids of no piece.

        Added tokens have no text, as the model's own control pieces.
        """
        values = self._own(as_int64(ids, "ids"))
        return self._native.decode(values, np.array([0, values.size], dtype=np.int64))[0]

    def decode_batch(self, ids: IdsLike, offsets: IdsLike) -> list[str]:
        """The texts of many sequences: ids [tokens] of all of them, offsets [texts + 1], as `encode_batch` gives."""
        values, starts = as_int64(ids, "ids"), as_int64(offsets, "offsets")
        if self.added:
            return [self.decode(values[start:end]) for start, end in pairwise(starts)]
        return self._native.decode(values, starts)

    def _own(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return ids[~np.isin(ids, list(self.added.values()))] if self.added else ids

    def ids(self) -> set[int]:
        """The ids that have a piece or an added token."""
        return {*range(self.num_pieces), *self.added.values()}

    def piece(self, id: int) -> str:  # noqa: A002
        """The piece of an id; IndexError where there is none."""
        return next((text for text, index in self.added.items() if index == id), None) or self._native.piece(id)

    def piece_to_id(self, piece: str) -> int:
        """The id of a piece; KeyError where there is none."""
        found = self.added.get(piece, self._native.find(piece))
        if found < 0:
            raise KeyError(piece)
        return found
