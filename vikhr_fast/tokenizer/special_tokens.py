"""What the files that transformers reads say of special tokens, whatever the vocabulary is."""

from pathlib import Path
from typing import Any

from vikhr_fast.io.files import write_json, write_text
from vikhr_fast.tokenizer.files import SPECIAL_TOKENS, TOKENIZER_CONFIG

TOKENIZER_CLASS = "PreTrainedTokenizerFast"
"""What transformers takes a `tokenizer.json` as it is with."""


def added_tokens(specials: dict[str, int]) -> list[dict[str, Any]]:
    """Special tokens, ids by text, as `tokenizer.json` lists them."""
    return [{"id": index, **_added_token(token)} for token, index in specials.items()]


def begins_with(bos: str | None, specials: dict[str, int]) -> dict[str, Any]:
    """The step of `tokenizer.json` that puts BOS, if there is one, before each sequence."""
    tokens = [] if bos is None else [bos]
    first, second = (
        [{"SpecialToken": {"id": token, "type_id": kind}} for token in tokens]
        + [{"Sequence": {"id": name, "type_id": kind}}]
        for kind, name in enumerate("AB")
    )
    known = {token: {"id": token, "ids": [specials[token]], "tokens": [token]} for token in tokens}
    return {"type": "TemplateProcessing", "single": first, "pair": first + second, "special_tokens": known}


def write_configuration(
    directory: Path, specials: dict[str, int], roles: dict[str, str], chat_template: str | None
) -> None:
    """Writes `tokenizer_config.json`, `special_tokens_map.json` and, with a template, `chat_template.jinja`.

    Args:
        directory: exists.
        specials: ids of the special tokens, by text.
        roles: which of them are `bos_token`, `eos_token` and so on.
        chat_template: in Jinja.
    """
    config: dict[str, Any] = {
        "tokenizer_class": TOKENIZER_CLASS,
        **roles,
        "add_bos_token": "bos_token" in roles,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(index): _added_token(token) for token, index in specials.items()},
    }
    if extra := [token for token in specials if token not in roles.values()]:
        config["additional_special_tokens"] = extra
    if chat_template is not None:
        config["chat_template"] = chat_template
        write_text(directory / "chat_template.jinja", chat_template)
    write_json(directory / TOKENIZER_CONFIG, config)
    write_json(directory / SPECIAL_TOKENS, roles)


def _added_token(content: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content, **flags}
