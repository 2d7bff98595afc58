"""Bases whose tokenizer is no SentencePiece BPE (Llama 3's, for one), through Hugging Face's `tokenizers` library."""

import base64
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vikhr_fast.errors import InputError
from vikhr_fast.io.guarded import read_bytes, read_json
from vikhr_fast.tokenizer.added_tokens import MOST_IDS, is_text
from vikhr_fast.tokenizer.bpe import Ids, IdsLike, Offsets

_SHOWN_CHARACTERS = 300
_MOST_GROWTH = 128
"""Characters that a tokenizer may make of one.

Real ones stay below: Unicode's NFKC makes 18 of U+FDFA and the bytes of one make up to 5, while replacements, as of a
space by U+2581, add next to nothing. One file asks for as much as it likes, and a word fills the memory.
"""
_FACTORS = {"ByteLevel": 5, "BertNormalizer": 3, "Metaspace": 2}
"""By kind of step, what it may make of one character: four bytes and a space, two spaces around, one in front."""
_FORMS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Sequence"}
"""Steps after which the characters are, once folded, those before."""
_ATOM = r"(?:[^][(){}*+?.^$|\\]|\.|\\[dDsSwWnrtfv\][(){}*+?.^$|\\/-]|\\[pP]\{\^?\w+\}|\[(?:\\.|[^][\\])+\])"
_BRANCH = rf"(?:{_ATOM}(?:\+|\{{[1-9]\d*(?:,(?:[1-9]\d*)?)?\}})?)+"
_CONSUMES = re.compile(rf"{_BRANCH}(?:\|{_BRANCH})*", re.DOTALL)
"""Regular expressions, the usual ones among them, that match no empty string anywhere."""


class JsonEncoder:
    """Encodes with a `tokenizer.json`, as `BpeEncoder` does: text in, ids without BOS and EOS out.

    Text that looks like a special token stays text, as there; threads are the library's own.
    """

    def __init__(self, tokenizer: Any, path: Path, sha256: str, roles: dict[str, int]):
        self._tokenizer, self._path = tokenizer, path
        self.sha256 = sha256
        """SHA-256 of tokenizer.json, in hexadecimal."""
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        """The number that all ids are below; those of some vocabularies have gaps."""
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
        if max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0) >= MOST_IDS:
            raise InputError(f"{path}: an id of {MOST_IDS:,} or more; fetch it again")
        return cls(tokenizer, path, hashlib.sha256(data).hexdigest(), _roles(path, tokenizer))

    def encode(self, text: str | bytes) -> Ids:
        """Ids of one text: int32 [tokens]."""
        return self.encode_batch([text])[0]

    def encode_batch(
        self, texts: Sequence[str | bytes] | pa.Array | pa.ChunkedArray, threads: int = 0
    ) -> tuple[Ids, Offsets]:
        """Ids of many texts: int32 [tokens] of all of them, int64 [texts + 1] where each starts.

        ValueError, TypeError name the document that is no text, InputError the tokenizer.json that fails at one.
        """
        del threads
        values = texts.to_pylist() if isinstance(texts, (pa.Array, pa.ChunkedArray)) else texts
        strings = [_string(value, index) for index, value in enumerate(values)]
        with library_errors(f"{self._path}: cannot encode a text", "fetch it again"):
            rows = [row.ids for row in self._tokenizer.encode_batch_fast(strings, add_special_tokens=False)]
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(offsets[-1])), offsets

    def decode(self, ids: IdsLike) -> str:
        """The text of one sequence of ids [tokens]; special tokens are left out. IndexError on ids of no token."""
        values = [int(id_) for id_ in ids]
        for value in values:
            if not 0 <= value < self.vocab_size:
                raise IndexError(f"id {value} is not one of the vocabulary's {self.vocab_size}")
        return str(self._tokenizer.decode(values))

    def piece(self, id: int) -> str:  # noqa: A002
        """The token of an id; IndexError where there is none."""
        found = self._tokenizer.id_to_token(id) if id >= 0 else None
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
    _refuse_growth(path, {name: content.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")})


def _refuse_merges(path: Path, model: dict[str, Any]) -> None:
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    for merge in merges if isinstance(merges, list) and prefix else ():
        pair = merge.split(" ") if isinstance(merge, str) else merge if isinstance(merge, list) else []
        if not str(pair[-1] if pair else "").startswith(str(prefix)):
            raise InputError(f"{path}: the merge {merge!r} lacks the continuing_subword_prefix; fetch it again")


def _refuse_growth(path: Path, steps: dict[str, Any]) -> None:
    import tokenizers

    model = {"type": "BPE", "vocab": {}, "merges": []}
    with library_errors(f"{path}: no tokenizer that can be read", "fetch it again"):
        # Forms of older versions are many; the library writes the one that it reads all of them as.
        text = json.dumps({"version": "1.0", "added_tokens": [], **steps, "model": model})
        steps = json.loads(tokenizers.Tokenizer.from_str(text).to_str())
    for names in (("normalizer", "pre_tokenizer"), ("decoder",)):
        length, made = 1.0, set[str]()
        for name in names:
            length = _grown(length, made, steps[name] or {})
        if length > _MOST_GROWTH:
            what = " and ".join(names)
            raise InputError(
                f"{path}: its {what} may make more than {_MOST_GROWTH} characters of one; take another tokenizer"
            )


def _grown(length: float, made: set[str], step: dict[str, Any]) -> float:
    """The most characters that a normalizer, pre-tokenizer or decoder makes of as many as `length`.

    Those that Unicode's forms make are counted where a character comes from, as their result stays what it is.
    To `made` go the characters, folded, that steps put in, and "" where they may be any.
    """
    for own in step.get("normalizers") or step.get("pretokenizers") or step.get("decoders") or ():
        length = _grown(length, made, own)
    match kind := step.get("type", "Sequence"):
        case "Replace":
            return _replaced(length, made, step["pattern"], step["content"])
        case "BPEDecoder":
            return _replaced(length, made, {"String": step["suffix"]}, " ")
        case "CTC":
            return _replaced(length, made, {"String": step["word_delimiter_token"]}, " ")
        case "Prepend":
            made |= _folded(step["prepend"])
            return length + _decomposed(step["prepend"])
    if kind not in _FORMS:
        made.add("")
    if kind == "WordPiece":
        return length + 1
    if kind == "Precompiled":  # the size of a trie, the trie, and what its entries become, each with a NUL behind it
        data = base64.b64decode(step["precompiled_charsmap"])
        texts = data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")
        return length * max(1, *(_decomposed(text.decode(errors="ignore")) for text in texts))
    return length * _FACTORS.get(kind, 1)


def _replaced(length: float, made: set[str], pattern: dict[str, str], content: str) -> float:
    added, text = _decomposed(content), pattern.get("String", "")
    # What no step has put in stands in the text itself, and is replaced once: such steps add up, others multiply.
    is_once = text and "" not in made and made.isdisjoint(_folded(text))
    made |= _folded(content)
    if shortest := len(text) or bool(_CONSUMES.fullmatch(pattern.get("Regex", ""))):
        factor = max(1, added / shortest)
        return length + factor - 1 if is_once else length * factor
    return length * (1 + added) + added  # an empty match before each character, and at the end


def _decomposed(text: str) -> int:
    return len(unicodedata.normalize("NFKD", text))


def _folded(text: str) -> set[str]:
    """Characters that one case and Unicode's forms make of a text."""
    return {own for one in unicodedata.normalize("NFKD", text) for own in unicodedata.normalize("NFKD", one.lower())}


def _string(text: object, index: int) -> str:
    if isinstance(text, bytes):
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"document {index}: byte {error.start}: not valid UTF-8") from error
    if text is None:
        raise ValueError(f"document {index} is null; drop or fill it")
    if not isinstance(text, str):
        raise TypeError(f"document {index} is neither str nor bytes")
    return text


def _roles(path: Path, tokenizer: Any) -> dict[str, int]:
    """Ids of the tokens that `tokenizer_config.json` gives a role."""
    config_path = path.with_name("tokenizer_config.json")
    config = read_json(config_path, "fetch it again") if config_path.is_file() else {}
    tokens = {role: config.get(f"{role}_token") for role in ("bos", "eos")}
    names = {role: token.get("content") if isinstance(token, dict) else token for role, token in tokens.items()}
    ids = {role: tokenizer.token_to_id(name) for role, name in names.items() if is_text(name)}
    return {role: int(found) for role, found in ids.items() if found is not None}
