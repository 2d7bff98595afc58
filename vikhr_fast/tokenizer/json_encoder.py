"""Bases whose tokenizer is no SentencePiece BPE (Llama 3's, for one): a `tokenizer.json`.

The usual kinds of byte-level BPE are encoded in C++, all others by Hugging Face's `tokenizers` library.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from vikhr_fast.data.native_texts import Texts, strings
from vikhr_fast.errors import InputError
from vikhr_fast.io.guarded import read_bytes, read_json
from vikhr_fast.tokenizer.added_tokens import read_roles, refuse_beside
from vikhr_fast.tokenizer.bpe import Ids, IdsLike, Offsets
from vikhr_fast.tokenizer.byte_level import ByteLevelBpe, missing_bytes, token_text
from vikhr_fast.tokenizer.growth import MOST_GROWTH, growth_of

_SHOWN_CHARACTERS = 300
_MOST_IDS = 1 << 24  # vocabularies are listed by id, whatever gaps they have


class JsonEncoder:
    """Encodes with a `tokenizer.json`, as `BpeEncoder` does: text in, ids without BOS and EOS out.

    Text that looks like a special token stays text, as there. It releases the GIL.
    """

    def __init__(self, tokenizer: Any, path: Path, sha256: str, roles: dict[str, int], byte_level: ByteLevelBpe | None):
        self.tokenizer, self._path, self._byte_level = tokenizer, path, byte_level
        """The library's own."""
        self.sha256 = sha256
        """SHA-256 of tokenizer.json, in hexadecimal."""
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        """The number that all ids are below; those of some vocabularies have gaps."""
        self.missing_bytes = missing_bytes(tokenizer)
        """Bytes of a text that no token stands for, so that they are lost."""
        added = tokenizer.get_added_tokens_decoder().values()
        special = [token.content for token in added if token.special and token.content]
        self.control = {text: int(tokenizer.token_to_id(text)) for text in special}
        """Ids of the special tokens, by text."""
        self.words = frozenset(token.content for token in added if not token.special)
        """Added tokens that are found in text."""
        self.bos_id, self.eos_id = roles.get("bos", -1), roles.get("eos", -1)
        """Ids of the tokens that begin and end a text, -1 where there is none."""

    @classmethod
    def from_file(cls, path: str | Path) -> "JsonEncoder":
        """Reads a `tokenizer.json`; which tokens are BOS and EOS comes from `tokenizer_config.json` beside it.

        Raises:
            InputError: it cannot be read, is no BPE tokenizer, or one as `refuse_fatal` refuses.
        """
        import tokenizers

        path = Path(path)
        try:
            data = read_bytes(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; give a tokenizer.json") from error
        refuse_fatal(path)
        with library_errors(f"{path}: no tokenizer that can be read", "fetch it again"):
            tokenizer = tokenizers.Tokenizer.from_buffer(data)
        # A file may ask for texts to be cut or padded; and a document that spells a special token must not hold one.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        if (kind := type(tokenizer.model).__name__) != "BPE":
            raise InputError(f"{path}: a {kind} tokenizer, only BPE is supported; choose a base with a BPE tokenizer")
        if max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0) >= _MOST_IDS:
            raise InputError(f"{path}: an id of {_MOST_IDS:,} or more, beyond any model's; fetch it again")
        refuse_beside(path, tokenizer.get_vocab(with_added_tokens=True))
        byte_level = ByteLevelBpe.of(tokenizer, read_json(path))
        return cls(tokenizer, path, hashlib.sha256(data).hexdigest(), _roles(path, tokenizer), byte_level)

    def encode(self, text: str | bytes) -> Ids:
        """Ids of one text: int32 [tokens]."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Texts, threads: int = 0) -> tuple[Ids, Offsets]:
        """Ids of many texts: int32 [tokens] of all of them, int64 [texts + 1] where each starts.

        `texts` and `threads` are those of `BpeEncoder.encode_batch`; the library uses every core whatever it is told.
        ValueError, TypeError name the document that is no text, InputError the tokenizer.json that fails at one.
        """
        if self._byte_level is None:
            return self._encode_by_library(list(strings(texts)))
        return self._byte_level.encode_batch(texts, threads)

    def _encode_by_library(self, texts: list[str]) -> tuple[Ids, Offsets]:
        with library_errors(f"{self._path}: cannot encode a text", "fetch it again"):
            rows = [row.ids for row in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(offsets[-1])), offsets

    def merge(self, content: bytes) -> list[int]:
        """The ids that some bytes are merged to as one word, whatever they are: nothing splits them."""
        if self._byte_level is not None:
            return self._byte_level.merge(content)
        model, word = self.tokenizer.model, token_text(content)
        with library_errors(f"{self._path}: cannot encode {word!r}", "fetch it again"):
            return [token.id for token in model.tokenize(word)]

    def decode(self, ids: IdsLike) -> str:
        """The text of one sequence of ids [tokens]; special tokens are left out. IndexError on ids of no token."""
        values = [int(id_) for id_ in ids]
        for value in values:
            if not 0 <= value < self.vocab_size:
                raise IndexError(f"id {value} is not one of the vocabulary's {self.vocab_size}")
        return str(self.tokenizer.decode(values))

    def ids(self) -> set[int]:
        """The ids that have a token."""
        return set(self.tokenizer.get_vocab(with_added_tokens=True).values())

    def piece_to_id(self, piece: str) -> int:
        """The id of a token, given as it stands in the file or as the text that it spells; KeyError without one."""
        found = self.tokenizer.token_to_id(piece)
        if found is None and (found := self.tokenizer.token_to_id(token_text(piece.encode()))) is None:
            raise KeyError(piece)
        return int(found)

    def piece(self, id: int) -> str:  # noqa: A002
        """The token of an id; IndexError where there is none."""
        found = self.tokenizer.id_to_token(id) if id >= 0 else None
        if found is None:
            raise IndexError(f"id {id} is not one of the vocabulary's {self.vocab_size}")
        return str(found)


@contextmanager
def library_errors(what: str, advice: str) -> Iterator[None]:
    """Turns whatever `tokenizers` and transformers make of a file that may hold anything into one InputError.

    They raise plain Exception, and where Rust panics what is none. Memory that runs out is no fault of a file.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        kind = type(error).__name__
        # By name, as torch need not be imported here, and the class of panics cannot be.
        is_memory = isinstance(error, MemoryError) or kind == "OutOfMemoryError"
        if is_memory or not (isinstance(error, Exception) or kind == "PanicException"):
            raise
        said = f"KeyError: {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{what}: {' '.join(said.split())[:_SHOWN_CHARACTERS] or kind}; {advice}") from error


def refuse_fatal(path: Path) -> None:
    """Refuses a tokenizer.json, if there is one, with which `tokenizers` would end the process or fill the memory.

    Raises:
        InputError: its merges lack the prefix that it says they have, its steps make too much of a text, or it can't be
            read.
    """
    if not path.is_file():
        return
    content = read_json(path, "fetch it again")
    model = content.get("model")
    _refuse_merges(path, model if isinstance(model, dict) else {})
    _refuse_growth(path, content)


def _refuse_merges(path: Path, model: dict[str, Any]) -> None:
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    for merge in merges if isinstance(merges, list) and prefix else ():
        pair = merge.split(" ") if isinstance(merge, str) else merge if isinstance(merge, list) else []
        if not str(pair[-1] if pair else "").startswith(str(prefix)):
            raise InputError(f"{path}: the merge {merge!r} lacks the continuing_subword_prefix; fetch it again")


def _refuse_growth(path: Path, content: dict[str, Any]) -> None:
    for names in (("normalizer", "pre_tokenizer"), ("decoder",)):
        with library_errors(f"{path}: no tokenizer that can be read", "fetch it again"):
            growth = growth_of({name: content.get(name) for name in names})
        if growth > MOST_GROWTH:
            reason = f"its {' and '.join(names)} may make more than {MOST_GROWTH} characters of one"
            raise InputError(f"{path}: {reason}; take another tokenizer")


def _roles(path: Path, tokenizer: Any) -> dict[str, int]:
    """Ids of the tokens that begin and end a text, "bos" and "eos", as the files beside a tokenizer.json name them."""
    named = read_roles(path.parent)
    ids = {role: tokenizer.token_to_id(named[f"{role}_token"]) for role in ("bos", "eos") if f"{role}_token" in named}
    return {role: int(found) for role, found in ids.items() if found is not None}
