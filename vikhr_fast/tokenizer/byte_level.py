"""Byte-level BPE (of GPT-2, Llama 3, Qwen 2, SmolLM, Mistral-Nemo) in C++: what a `tokenizer.json` says, as its tables.

The kinds that the C++ encoder has are told by their steps. Whatever else a file has goes through `tokenizers`.
"""

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from vikhr_fast import _native
from vikhr_fast.data.native_texts import Texts, native_texts, strings
from vikhr_fast.io.guarded import parse_json

# Bytes that can't be shown have characters of their own, as GPT-2 began.
_PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {byte: byte for byte in _PRINTABLE} | {256 + place: byte for place, byte in enumerate(_OTHERS)}
_CHARACTER_OF = {byte: chr(code) for code, byte in _BYTE_OF.items()}
_BYTES = dict.fromkeys(_OTHERS, 256) | _BYTE_OF  # Latin-1 has no character 256

_OF_UTF8 = (*range(0xC0), *range(0xC2, 0xF5))

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_EXPRESSIONS = {
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_REST}": "llama3",
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_REST}": "qwen2",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_REST}": "tekken",
}
_OWN_WAY = ("single_word", "lstrip", "rstrip")  # flags of a token that looks at what is around it
_MADE_BY_NFC = frozenset(";K`")  # the ASCII characters that are what others are normalised to


def token_bytes(token: str) -> bytes | None:
    """The bytes that a token stands for; None for a text with characters of no byte, as added tokens may have."""
    try:
        return token.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return None


def token_text(content: bytes) -> str:
    """Bytes as a token spells them."""
    return "".join(map(_CHARACTER_OF.__getitem__, content))


def readable(token: str) -> str:
    """A token as SentencePiece spells it: the text with ▁ for each space, <0xD0> for bytes that are no whole text.

    Tokens that stand for no bytes stay as they are.
    """
    content = token_bytes(token)
    if content is None:
        return token
    try:
        return content.decode().replace(" ", "▁")
    except UnicodeDecodeError:
        return "".join(map("<0x{:02X}>".format, content))


def missing_bytes(tokenizer: Any) -> bytes:
    """Those of UTF-8 that a byte-level tokenizer of `tokenizers` has no token for (SmolLM2: eight).

    What it makes of them is nothing. Empty for other tokenizers, and where there is a token for what is unknown.
    """
    if not spells_bytes(tokenizer.pre_tokenizer) or tokenizer.model.unk_token is not None:
        return b""
    return bytes(byte for byte in _OF_UTF8 if tokenizer.model.token_to_id(token_text(bytes([byte]))) is None)


def merge_pairs(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of a tokenizer.json's model, which stand there as pairs or as texts with a space."""
    pairs = [
        merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"] if not _is_version(merge)
    ]
    return [(left, right) for left, right in pairs]


def _is_version(merge: str | list[str]) -> bool:
    """Whether it is no merge but the first line of the file that the merges were once in."""
    return isinstance(merge, str) and merge.startswith("#version")


def spells_bytes(pre_tokenizer: Any) -> bool:
    """Whether a pre-tokenizer of `tokenizers`, or None, spells words by their bytes."""
    return any(step["type"] == "ByteLevel" for step in _steps(pre_tokenizer, "pretokenizers"))


def split_kind(pre_tokenizer: Any) -> str | None:
    """How texts are split, by the name that the C++ code has for it; None for another way.

    Args:
        pre_tokenizer: of `tokenizers`, or None.
    """
    match _steps(pre_tokenizer, "pretokenizers"):
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return "gpt2"
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        ]:
            return "digits_gpt2"
        case [
            {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return _EXPRESSIONS.get(expression)
    return None


def normalises_to_nfc(normalizer: Any) -> bool | None:
    """Whether texts are normalised to NFC, or not at all; None for another normalisation."""
    match _steps(normalizer, "normalizers"):
        case []:
            return False
        case [{"type": "NFC"}]:
            return True
    return None


class ByteLevelBpe:
    """Encodes with the merges of a tokenizer.json to the ids of the library."""

    def __init__(self, native: _native.ByteEncoder, normalizer: Any, added: list[tuple[str, int]]):
        self._native, self._normalizer = native, normalizer
        longest_first = sorted(added, key=lambda token: -len(token[0]))
        self._added, self._ids = re.compile("|".join(re.escape(text) for text, _ in longest_first)), dict(added)

    @classmethod
    def of(cls, tokenizer: Any, content: dict[str, Any]) -> "ByteLevelBpe | None":
        """Of a tokenizer of the library and the content of its file; None where the C++ code has no such."""
        kind, nfc = split_kind(tokenizer.pre_tokenizer), normalises_to_nfc(tokenizer.normalizer)
        model, added = content["model"], _added(tokenizer.get_added_tokens_decoder(), bool(nfc))
        changed = model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
        names = [token["content"] for token in content.get("added_tokens") or ()]
        is_odd = changed or len(set(names)) < len(names)  # the library remembers both of two that are called the same
        if kind is None or nfc is None or added is None or is_odd:
            return None
        vocabulary: dict[str, int] = model["vocab"]
        tokens = [(data, index) for token, index in vocabulary.items() if (data := token_bytes(token)) is not None]
        has_all_bytes = sum(len(data) == 1 for data, _ in tokens) == len(_BYTE_OF)
        if not has_all_bytes and (model.get("unk_token") is not None or model.get("byte_fallback")):
            return None
        merges = [(vocabulary[left], vocabulary[right], vocabulary[left + right]) for left, right in merge_pairs(model)]
        try:
            native = _native.ByteEncoder(tokens, merges, bool(model.get("ignore_merges")), kind, added)
        except _native.ModelError:  # it has no room for them
            return None
        return cls(native, tokenizer.normalizer if nfc else None, added)

    def encode_batch(self, texts: Texts, threads: int = 0) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """As `BpeEncoder.encode_batch`."""
        held = native_texts(texts)
        if self._normalizer is not None and (numbers := _native.may_compose(held)):
            normalised = list(strings(texts))
            for number in numbers:
                normalised[number] = self._normalise(normalised[number])
            held = native_texts(normalised)
        return self._native.encode_held(held, False, threads)

    def merge(self, word: bytes) -> list[int]:
        """The ids that one word is merged to, whatever it is: nothing splits it."""
        return list(map(int, self._native.merge(word)))

    def _normalise(self, text: str) -> str:
        """What is between added tokens is normalised apart, as the library does it."""
        parts, start = [], 0
        for found in self._added.finditer(text) if self._ids else ():
            if self._ids[found[0]] >= 0:
                parts += [self._normalizer.normalize_str(text[start : found.start()]), found[0]]
                start = found.end()
        return "".join([*parts, self._normalizer.normalize_str(text[start:])])


def _steps(step: Any, parts: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, as the library writes them."""
    if step is None:
        return []
    written = parse_json(step.__getstate__())
    return list(written[parts]) if written.get("type") == "Sequence" else [written]


def _added(tokens: dict[int, Any], nfc: bool) -> list[tuple[str, int]] | None:
    """The added tokens that are found in text, and, with the id -1, the special ones, which stay text.

    None where the C++ code can't find them as the library does.

    Those that are found before the text is normalised come first there, and those after it in what is left.

    Args:
        tokens: the library's own, which may have other ids than the file says.
    """
    found = [token for token in tokens.values() if not token.special]
    normalized = {token.normalized for token in found}
    if any(getattr(token, flag) for token in found for flag in _OWN_WAY):
        return None
    if len(normalized) > 1 or (nfc and True in normalized):
        return None
    same = {index: token for index, token in tokens.items() if token.normalized in normalized and token.content}
    if nfc and not _stays_as_found(list(same.values())):
        return None
    return [(token.content, -1 if token.special else index) for index, token in same.items()]


def _stays_as_found(tokens: list[Any]) -> bool:
    """Whether normalising to NFC gives no text a token to find that it had not.

    It could spell one, or change the end of a special one that holds another.
    """
    found = [token.content for token in tokens if not token.special]
    return not any(
        not token.content.isascii()
        or not _MADE_BY_NFC.isdisjoint(token.content)
        or (token.special and any(text in token.content[:-1] for text in found))
        for token in tokens
    )
