"""Mistral's tekken.json (Mistral-Nemo and later) as a tokenizer.json that gives the same ids.

Both are BPE on bytes, within the words that a pattern cuts a text into; a word that is a token is taken whole. Tekken,
as tiktoken, joins the adjacent pair whose result has the lowest rank, leftmost first; Hugging Face's BPE joins the pair
that stands first in a list. They agree when the list holds every split of every token into two, in the order of the
results. Of one token no two splits ever stand side by side: what is joined inside a stretch of text doesn't depend on
what surrounds it, so that a token is always joined from the two parts that its own bytes alone come to.

Ids begin with the special tokens, which mistral-common never finds in text. The pattern must match every character, as
Mistral's does: what it leaves out, mistral-common loses and the tokenizer.json keeps.
"""

import base64
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vikhr_fast.errors import InputError
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import write_json
from vikhr_fast.io.guarded import read_json
from vikhr_fast.tokenizer.added_tokens import is_text
from vikhr_fast.tokenizer.byte_level import token_text
from vikhr_fast.tokenizer.files import TEKKEN, TOKENIZER, TOKENIZER_JSON
from vikhr_fast.tokenizer.json_encoder import JsonEncoder, library_errors
from vikhr_fast.tokenizer.special_tokens import added_tokens, begins_with, write_configuration

_ADVICE = "fetch it again"
_BYTES = 256
_MOST_SPECIAL = 100_000
_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
# The special tokens of versions whose files don't list them; ids that are left are fillers.
_UNLISTED_VERSIONS = ("v1", "v2", "v3", "v7")
_UNLISTED = [
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
]  # fmt: skip
_FILLER = "<SPECIAL_{}>"


@dataclass(frozen=True)
class Tekken:
    """What a tekken.json says."""

    pattern: str
    """The regular expression whose matches are words."""
    special: list[str]
    """The special tokens, by id."""
    tokens: list[bytes]
    """All other tokens, by rank: the first 256 are the bytes; ids follow those of the special tokens."""


def tekken_file(path: Path) -> Path | None:
    """The tekken.json that is to be exported, if `path` is one, or a directory with one and no tokenizer.model."""
    if path.is_dir():
        return path / TEKKEN if (path / TEKKEN).is_file() and not (path / TOKENIZER).is_file() else None
    return path if path.suffix == ".json" else None


def export_tekken(file: Path, directory: Path, chat_template: str | None = None) -> None:
    """Writes `tokenizer.json`, the configuration beside it and, if a template is given, `chat_template.jinja`.

    Args:
        file: a tekken.json.
        directory: made if absent; wrap the call in `atomic_directory` for a result that is complete or absent.
        chat_template: in Jinja.

    Raises:
        InputError: the file is damaged or no tekken.json, or a tokenizer.json can't say what it says.
    """
    import tokenizers

    tekken = read_tekken(file)
    with library_errors(f"{file}: config: pattern", _ADVICE):
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(tekken.pattern), "isolated")
    special = {token: index for index, token in enumerate(tekken.special)}
    roles = {role: token for role, token in _ROLES.items() if token in special}
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / TOKENIZER_JSON, _tokenizer_json(tekken, file, special, roles.get("bos_token")))
    write_configuration(directory, special, roles, chat_template)

    ids, offsets = JsonEncoder.from_file(directory / TOKENIZER_JSON).encode_batch(tekken.special)
    for token, start, end in zip(tekken.special, offsets[:-1], offsets[1:], strict=True):
        if (ids[start:end] < len(special)).any():
            reason = f"the text of the special token {token!r} would be encoded to its id"
            raise InputError(f"{file}: {reason}, which mistral-common never does; keep to mistral-common with this one")


def read_tekken(file: Path) -> Tekken:
    """Reads a tekken.json; tokens past its `default_vocab_size` are left out, and counted.

    Raises:
        InputError: it is damaged, or no tekken.json.
    """
    values = read_json(file, _ADVICE)
    config, vocabulary = values.get("config"), values.get("vocab")
    if not isinstance(config, dict) or not isinstance(vocabulary, list):
        raise InputError(f"{file}: no tekken vocabulary: it must have `config` and `vocab`; give a {TEKKEN}")
    pattern, size = config.get("pattern"), config.get("default_vocab_size")
    num_special = config.get("default_num_special_tokens")
    if not is_text(pattern) or type(size) is not int or type(num_special) is not int:
        names = "pattern, default_vocab_size and default_num_special_tokens"
        raise InputError(f"{file}: config: {names} must be a text and two numbers; {_ADVICE}")
    used = size - num_special
    if not 0 <= num_special <= _MOST_SPECIAL or not _BYTES <= used <= len(vocabulary):
        counts = f"{size} ids less {num_special} special tokens are no number of tokens from {_BYTES}"
        raise InputError(f"{file}: config: {counts} to the {len(vocabulary)} in vocab; {_ADVICE}")
    if used < len(vocabulary):
        logger.info(f"{file}: the first {used:,} of its {len(vocabulary):,} tokens, as its default_vocab_size says")
    special = _special(values.get("special_tokens"), config.get("version"), num_special, file)
    return Tekken(pattern, special, _tokens(vocabulary[:used], file))


def _tokens(vocabulary: list[Any], file: Path) -> list[bytes]:
    ranks: dict[bytes, int] = {}
    for rank, entry in enumerate(vocabulary):
        where = f"{file}: vocab: token {rank}"
        stated = entry.get("rank") if isinstance(entry, dict) else None
        if type(stated) is not int or stated != rank:
            raise InputError(f"{where}: its rank is {stated!r}, must be {rank}; {_ADVICE}")
        try:
            token = base64.b64decode(entry["token_bytes"], validate=True)
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{where}: its token_bytes are not base64; {_ADVICE}") from None
        if not token or (rank < _BYTES and token != bytes([rank])):
            expected = f"the byte {rank}" if rank < _BYTES else "some bytes"
            raise InputError(f"{where}: is {token!r}, must be {expected}; {_ADVICE}")
        if (earlier := ranks.setdefault(token, rank)) != rank:
            raise InputError(f"{where}: the same bytes as token {earlier}: {token!r}; {_ADVICE}")
    return list(ranks)


def _special(listed: Any, version: Any, count: int, file: Path) -> list[str]:
    tokens = _UNLISTED if listed is None and version in _UNLISTED_VERSIONS else _listed(listed, file)
    if len(tokens) > count:
        raise InputError(f"{file}: {len(tokens)} special tokens, but default_num_special_tokens is {count}; {_ADVICE}")
    tokens = [*tokens, *map(_FILLER.format, range(len(tokens), count))]
    if twice := next((token for token, times in Counter(tokens).items() if times > 1), None):
        raise InputError(f"{file}: special_tokens: {twice!r} is there twice; {_ADVICE}")
    return tokens


def _listed(listed: Any, file: Path) -> list[str]:
    tokens: list[str] = []
    for index, entry in enumerate(listed if isinstance(listed, list) else [None]):
        rank, token = (entry.get("rank"), entry.get("token_str")) if isinstance(entry, dict) else (None, None)
        if not is_text(token) or not token or type(rank) is not int or rank != index:
            stated = f"token {index} is {token!r} with the rank {rank!r}"
            raise InputError(f"{file}: special_tokens: {stated}, must be a text with the rank {index}; {_ADVICE}")
        tokens.append(token)
    return tokens


def _tokenizer_json(tekken: Tekken, file: Path, special: dict[str, int], bos: str | None) -> dict[str, Any]:
    words = list(map(token_text, tekken.tokens))
    if clash := next((word for word in words if word in special), None):
        raise InputError(f"{file}: {clash!r} is a special token and another one, which no tokenizer.json can have")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": tekken.pattern}, "behavior": "Isolated", "invert": False}
    known = set(words)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(special),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": begins_with(bos, special),
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a word that is a token is taken whole
            "vocab": special | {word: len(special) + rank for rank, word in enumerate(words)},
            "merges": [
                (word[:cut], word[cut:])
                for word in words
                for cut in range(1, len(word))
                if word[:cut] in known and word[cut:] in known
            ],
        },
    }
