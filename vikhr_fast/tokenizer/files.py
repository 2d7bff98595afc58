"""The files beside a model's weights: its tokenizer's, and generation's."""

from pathlib import Path

TOKENIZER, TOKENIZER_JSON = "tokenizer.model", "tokenizer.json"
TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_NAMES = (
    TOKENIZER,
    TOKENIZER_JSON,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS,
    ADDED_TOKENS,
    "chat_template.jinja",
    "generation_config.json",
)


def companions(model: Path) -> list[Path]:
    """Those there are in a model's directory."""
    return [path for name in _NAMES if (path := model / name).is_file()]


def tokenizer_file(model: Path) -> Path | None:
    """What its ids are made with: the SentencePiece model or, without one, tokenizer.json; None without both."""
    return next((path for name in (TOKENIZER, TOKENIZER_JSON) if (path := model / name).is_file()), None)
