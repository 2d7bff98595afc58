"""What llama.cpp calls the pre-tokenizers that it has.

Its converter knows a byte-level tokenizer by a hash of the ids of a text, which no vocabulary but the original gives.
"""

from typing import Any

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _split(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return _sequence(split, _byte_level(use_regex=False))


_NAMES = {
    "gpt-2": _byte_level(use_regex=True),
    "smollm": _sequence({"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)),
    "llama-bpe": _split(_LLAMA),
    "qwen2": _split(_LLAMA.replace("{1,3}", "")),
    "tekken": _split(_TEKKEN),
}


def pre_tokenizer_name(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """llama.cpp's name of a pre-tokenizer, given in the form that `tokenizers` writes; None for an unknown one."""
    plain = _without_offsets(pre_tokenizer)
    return next((name for name, known in _NAMES.items() if known == plain), None)


def _without_offsets(value: Any) -> Any:
    """Without the settings that change the offsets of tokens, and no tokens."""
    if isinstance(value, list):
        return [_without_offsets(own) for own in value]
    if isinstance(value, dict):
        return {name: _without_offsets(own) for name, own in value.items() if name != "trim_offsets"}
    return value
