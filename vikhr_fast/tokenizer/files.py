"""The files beside a model's weights: its tokenizer's, and generation's."""

from pathlib import Path

from vikhr_fast.errors import InputError

TOKENIZER, TOKENIZER_JSON, TEKKEN = "tokenizer.model", "tokenizer.json", "tekken.json"
TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
CHAT_TEMPLATE = "chat_template.jinja"
_NAMES = (
    TOKENIZER,
    TOKENIZER_JSON,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS,
    ADDED_TOKENS,
    CHAT_TEMPLATE,
    "generation_config.json",
)


def companions(model: Path) -> list[Path]:
    """Those there are in a model's directory."""
    return [path for name in _NAMES if (path := model / name).is_file()]


def tokenizer_file(model: Path) -> Path | None:
    """What its ids are made with: the SentencePiece model or, without one, tokenizer.json; None without both."""
    return next((path for name in (TOKENIZER, TOKENIZER_JSON) if (path := model / name).is_file()), None)


def refuse_tekken(model: Path) -> None:
    """Raises InputError where the one tokenizer in a model's directory is tekken.json, which has to be restated."""
    if tokenizer_file(model) is None and (model / TEKKEN).is_file():
        command = f"`vikhr-fast tokenizer export {model} --output OUTPUT`"
        raise InputError(f"{model}: its one tokenizer is {TEKKEN}; put the files beside it that {command} writes")
