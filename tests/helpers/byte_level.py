"""Small byte-level BPE tokenizers, of the kinds that GPT-2, SmolLM, Llama 3, Qwen 2 and Mistral-Nemo have."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _split(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {**_GPT2, "use_regex": False}]}


STEPS: dict[str, dict[str, Any]] = {
    "gpt-2": {"pre_tokenizer": _GPT2},
    "smollm": {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2]}
    },
    "llama-bpe": {"pre_tokenizer": _split(rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}")},
    "qwen2": {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": _split(rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_REST}"),
    },
    "tekken": {"pre_tokenizer": _split(_TEKKEN)},
}
"""Steps of a tokenizer.json by what llama.cpp calls the pre-tokenizer, as the models that have them write them."""
HARD_PARTS = [
    *["a", "B", "ab", "Ab", "aB", "я", "Я", "é", "ß", "ﬆ", "ǅ", "ʰ", "ª", "中", "ա", "ᏸ", "𝐀", "𐐨", "𐐀", "𠀀"],
    *["1", "12", "123", "２", "½", "Ⅷ", "٣", "一", "𝟘", "²", "〇"],
    *[" ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\n\n", "\x0b", "\x85", "\u00a0", "\u2028", "\u3000", "\u200b"],
    *["'", "'s", "'S", "'ſ", "'t", "'LL", "'l", "'re", "'vE", "'M", "'d", "’s", "K", "ſ"],
    *[
        "\u0301",
        "\u0903",
        "\u20dd",
        "\u200d",
        "\ufe0f",
        "\0",
        "/",
        "//",
        "!",
        "-",
        "_",
        "…",
        "😀",
        "👩‍👧",
        "\U0010ffff",
    ],
]
"""What the expressions treat apart: letters of all cases, numbers, spaces, contractions, marks, signs."""
NATIVE_KINDS = {"gpt-2": "gpt2", "smollm": "digits_gpt2", "llama-bpe": "llama3", "qwen2": "qwen2", "tekken": "tekken"}
"""The C++ code's names of them."""


def of_kind(kind: str) -> tokenizers.Tokenizer:
    """A tokenizer of some of STEPS without a vocabulary."""
    content = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    return tokenizers.Tokenizer.from_str(json.dumps(content | STEPS[kind]))


def make_tokenizer(directory: Path, texts: Iterable[str], vocab_size: int = 400, kind: str = "gpt-2") -> Path:
    """Writes `tokenizer.json` and `tokenizer_config.json` into the directory, made if missing; returns the former."""
    tokenizer = of_kind(kind)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "tokenizer.json"
    tokenizer.save(str(path))
    config = {"bos_token": {"content": "<|begin|>"}, "eos_token": "<|end|>", "pad_token": None}
    path.with_name("tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path
