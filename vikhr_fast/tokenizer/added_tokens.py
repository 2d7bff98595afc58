"""Tokens that the files beside a SentencePiece model add to it, as transformers' `add_tokens` writes them.

The C++ encoder knows the model's pieces alone. A control token that was added has its id, which goes in by id where a
chat template asks for it, and text that looks like it stays text, as with the model's own control pieces. A word that
was added can't be had: transformers would find it in text, so the encoder refuses such a tokenizer by name.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from vikhr_fast.errors import InputError
from vikhr_fast.io.guarded import read_json
from vikhr_fast.tokenizer.files import ADDED_TOKENS, SPECIAL_TOKENS, TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_JSON

# Control tokens are often added without being marked as special (OpenHermes' <|im_start|> is): their form tells.
CONTROL_FORM = re.compile(r"<[^<>\s]+>|\[[A-Z_/][A-Z0-9_/]*\]")
OWN_WAY = ("single_word", "lstrip", "rstrip", "normalized")
"""Flags of a token that changes the text around it."""
_SHOWN = 5
_MOST_IDS = 2**31
"""Ids are int32."""


@dataclass(frozen=True)
class AddedTokens:
    """What is added to the pieces of a tokenizer.model, by text."""

    control: dict[str, int] = field(default_factory=dict)
    """Control tokens: marked as special, or of the form of one, <...> or [...]."""
    changing: frozenset[str] = frozenset()
    """Those of them that change the text around them, so that a chat with one can't be encoded stretch by stretch."""
    words: dict[str, int] = field(default_factory=dict)
    """All others: transformers finds them in text."""
    without_row: dict[str, int] = field(default_factory=dict)
    """Tokens with an id for which the weights beside them have no row; nothing can be said with these."""

    def all(self) -> dict[str, int]:
        """Those that have a row, or may have."""
        return self.control | self.words


def read_added_tokens(model_file: Path, pieces: Sequence[str]) -> AddedTokens:
    """Reads what the files beside a tokenizer.model add to its pieces; nothing beside a file of another name.

    Args:
        model_file: its directory may hold tokenizer.json, added_tokens.json, tokenizer_config.json,
            special_tokens_map.json and config.json.
        pieces: of the model, by id.

    Raises:
        InputError: a file is damaged, or two of them disagree about an id.
    """
    if model_file.name != TOKENIZER:
        return AddedTokens()
    directory = model_file.parent
    ids: dict[str, int] = {}
    special, changing = set(named_as_special(directory)), set()
    for file, text, index, token in _stated(directory):
        if not is_text(text) or type(index) is not int or not 0 <= index < _MOST_IDS:
            raise InputError(f"{file}: token {text!r} has the id {index!r}; fetch the file again")
        if index < len(pieces) and pieces[index] == text:
            continue
        if ids.setdefault(text, index) != index:
            raise InputError(f"{file}: token {text!r} has the id {index}, but {ids[text]} in another file beside it")
        special |= {text} if token.get("special") else set()
        changing |= {text} if any(token.get(flag) for flag in OWN_WAY) else set()
    rows = read_json(directory / "config.json").get("vocab_size") if (directory / "config.json").is_file() else None
    added = AddedTokens(changing=frozenset(changing))
    for text, index in sorted(ids.items(), key=lambda item: item[1]):
        if isinstance(rows, int) and index >= rows:
            added.without_row[text] = index
        elif text in special or CONTROL_FORM.fullmatch(text):
            added.control[text] = index
        else:
            added.words[text] = index
    if clash := {text: index for text, index in added.control.items() if index < len(pieces)}:
        advice = f"give the {TOKENIZER} that the other files were made from"
        raise InputError(f"{directory}: {named_tokens(clash)}: another piece in {TOKENIZER}; {advice}")
    return added


def named_tokens(tokens: dict[str, int]) -> str:
    """Tokens for a message: all of them, or the first few."""
    shown = ", ".join(f"{text!r} ({index})" for text, index in list(tokens.items())[:_SHOWN])
    return shown if len(tokens) <= _SHOWN else f"{shown} and {len(tokens) - _SHOWN} more"


def refuse_words(model_file: Path, added: AddedTokens) -> None:
    """Raises InputError if other tools would find an added word in text."""
    if added.words:
        count = f"{len(added.words)} tokens that {TOKENIZER} doesn't have"
        raise InputError(
            f"{model_file.parent}: the files beside {TOKENIZER} add {count}: {named_tokens(added.words)}; transformers "
            f"finds them in text, {TOKENIZER} can't. Give a directory without them, or `vikhr-fast adapt` the model"
        )


def refuse_added(model_file: Path, pieces: Sequence[str]) -> None:
    """Raises InputError if files beside a tokenizer.model add tokens that its own pieces can't restate."""
    added = read_added_tokens(model_file, pieces)
    if tokens := added.all():
        raise InputError(
            f"{model_file.parent}: the files beside {TOKENIZER} add {len(tokens)} tokens: {named_tokens(tokens)}; they "
            "would be lost. `vikhr-fast tokenizer extend` makes control tokens pieces; or give a directory without them"
        )


def refuse_beside(tokenizer_json: Path, ids: Mapping[str, int]) -> None:
    """Raises InputError if files beside a tokenizer.json give a token an id that it hasn't there: transformers adds it.

    Args:
        tokenizer_json: the file.
        ids: of its tokens, by text.
    """
    other = {
        str(text): index
        for file, text, index, _ in _stated(tokenizer_json.parent)
        if file.name != TOKENIZER_JSON and ids.get(text) != index
    }
    if other:
        reason = f"the files beside {TOKENIZER_JSON} have tokens under other ids than it: {named_tokens(other)}"
        advice = "transformers adds them. Fetch the files anew, or take these tokens out"
        raise InputError(f"{tokenizer_json.parent}: {reason}; {advice}")


def read_roles(directory: Path) -> dict[str, str]:
    """The tokens that have a role to transformers: bos_token, eos_token and so on, by role.

    special_tokens_map.json counts for more than tokenizer_config.json where the latter doesn't list added tokens.
    """
    values: dict[str, Any] = {}
    for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
        found = read_json(directory / name) if (directory / name).is_file() else {}
        values |= {key: value for key, value in found.items() if key.endswith("_token")}
        if "added_tokens_decoder" in found:
            break
    texts = {role: _text(value) for role, value in values.items()}
    return {role: text for role, text in texts.items() if text is not None}


def _stated(directory: Path) -> Iterator[tuple[Path, Any, Any, dict[str, Any]]]:
    """Each token that a file gives an id: the file, the token's text, its id, and its flags."""
    if (file := directory / TOKENIZER_JSON).is_file():
        values = read_json(file)
        model, tokens = values.get("model"), values.get("added_tokens")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        for text, index in vocabulary.items() if isinstance(vocabulary, dict) else ():
            yield file, text, index, {}
        for token in tokens if isinstance(tokens, list) else ():
            if isinstance(token, dict):
                yield file, token.get("content"), token.get("id"), token
    if (file := directory / TOKENIZER_CONFIG).is_file():
        decoder = read_json(file).get("added_tokens_decoder")
        for index, token in decoder.items() if isinstance(decoder, dict) else ():
            if isinstance(token, dict):
                yield file, token.get("content"), int(index) if re.fullmatch("[0-9]{1,10}", index) else index, token
    if (file := directory / ADDED_TOKENS).is_file():
        for text, index in read_json(file).items():
            yield file, text, index, {}


def named_as_special(directory: Path) -> Iterator[str]:
    """The tokens that the files beside a tokenizer give a role, or list as special."""
    for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
        values = read_json(directory / name) if (directory / name).is_file() else {}
        for key, value in values.items():
            if key.endswith("_token"):
                listed = [value]
            elif key in ("additional_special_tokens", "extra_special_tokens"):
                listed = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
            else:
                continue
            yield from filter(None, map(_text, listed))


def _text(token: object) -> str | None:
    """The text of a token as the files spell it: a string, or an object with its content."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if is_text(text) else None


def is_text(value: object) -> TypeGuard[str]:
    """Whether a value is text: JSON can spell halves of surrogate pairs, which are none."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)
