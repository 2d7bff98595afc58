"""How much longer a `tokenizer.json` makes a text: a file asks for as much as it likes, and a word fills the memory."""

import base64
import re
import unicodedata
from typing import Any

from vikhr_fast.io.files import json_text
from vikhr_fast.io.guarded import parse_json

MOST_GROWTH = 128
"""Characters that a tokenizer may make of one.

Real ones stay below: Unicode's NFKC makes 18 of U+FDFA and the bytes of one make up to 5, while replacements, as of a
space by U+2581, add next to nothing.
"""
_FACTORS = {"ByteLevel": 5, "BertNormalizer": 3, "Metaspace": 2}
"""By kind of step, what it may make of one character: four bytes and a space, two spaces around, one in front."""
_FORMS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Sequence"}
"""Steps after which the characters are, once folded, those before."""
_ATOM = r"(?:[^][(){}*+?.^$|\\]|\.|\\[dDsSwWnrtfv\][(){}*+?.^$|\\/-]|\\[pP]\{\^?\w+\}|\[(?:\\.|[^][\\])+\])"
_BRANCH = rf"(?:{_ATOM}(?:\+|\{{[1-9]\d*(?:,(?:[1-9]\d*)?)?\}})?)+"
_CONSUMES = re.compile(rf"{_BRANCH}(?:\|{_BRANCH})*", re.DOTALL)
"""Regular expressions, the usual ones among them, that match no empty string anywhere."""


def growth_of(steps: dict[str, Any]) -> float:
    """The most characters that some steps of a tokenizer.json, one after another, make of one.

    Args:
        steps: by name (`normalizer`, `pre_tokenizer`, `decoder`), as they stand in the file.

    Raises:
        Exception: of `tokenizers`, which can't read them.
    """
    import tokenizers

    # Forms of older versions are many; the library writes the one that it reads all of them as.
    model = {"type": "BPE", "vocab": {}, "merges": []}
    written = {"version": "1.0", "added_tokens": [], **steps, "model": model}
    read = parse_json(tokenizers.Tokenizer.from_str(json_text(written)).to_str())
    length, made = 1.0, set[str]()
    for name in steps:
        length = _grown(length, made, read[name] or {})
    return length


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
