"""The files beside a model's weights: its tokenizer's, and generation's."""

from pathlib import Path

from vikhr_fast.io.files import sha256_of

TOKENIZER, TOKENIZER_JSON = "tokenizer.model", "tokenizer.json"
_NAMES = (
    TOKENIZER,
    TOKENIZER_JSON,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


def companions(model: Path) -> list[Path]:
    """Those there are in a model's directory."""
    return [path for name in _NAMES if (path := model / name).is_file()]


def tokenizer_file(model: Path) -> Path | None:
    """What its ids are made with: the SentencePiece model or, without one, tokenizer.json; None without both."""
    return next((path for name in (TOKENIZER, TOKENIZER_JSON) if (path := model / name).is_file()), None)


def same_tokenizer(first: Path, second: Path) -> bool | None:
    """Whether two models have one, by the first kind of file that is in both directories; None without such a kind."""
    for name in (TOKENIZER, TOKENIZER_JSON):
        files = [directory / name for directory in (first, second)]
        if all(file.is_file() for file in files):
            return sha256_of(files[0]) == sha256_of(files[1])
    return None
