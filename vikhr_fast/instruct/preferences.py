"""Preferences: of two answers to one prompt, which one is better."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, combinations
from pathlib import Path
from typing import Any, NamedTuple

from vikhr_fast.chat.conversation import HALF_CHARACTER, parsed_objects
from vikhr_fast.data.sources import source_files
from vikhr_fast.errors import InputError
from vikhr_fast.instruct.schemas import nectar_prompt, ranked_answers


class Pair(NamedTuple):
    """Two answers to a prompt, of which one is preferred."""

    prompt: str
    chosen: str
    rejected: str


def read_pairs(patterns: Iterable[Path], columns: tuple[str, str, str]) -> Iterator[Pair]:
    """Streams pairs, whose fields `columns` names; a row of Nectar gives every two answers of different ranks.

    Raises:
        InputError: a file that cannot be read, or a row that holds no pair.
    """
    files = (file for pattern in patterns for file in source_files(pattern))
    return chain.from_iterable(parsed_objects(files, partial(_pairs, columns)))


def _pairs(columns: tuple[str, str, str], row: Mapping[str, Any]) -> list[Pair]:
    if "answers" in row:
        prompt = "\n\n".join(message["content"] for message in nectar_prompt(row))
        ranked = combinations(ranked_answers(row), 2)
        pairs = [Pair(prompt, better, worse) for (rank, better), (other, worse) in ranked if rank < other]
    else:
        pairs = [Pair(*(_text(row, name) for name in columns))]
    if any(HALF_CHARACTER.search("".join(pair)) for pair in pairs):
        raise InputError("half of a surrogate pair; mend or remove it")
    return pairs


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if isinstance(value, list):  # messages
        value = "\n\n".join(str(message.get("content", "")) for message in value if isinstance(message, dict))
    if not isinstance(value, str):
        raise InputError(f"no text in field {name!r}; name the fields with --columns")
    return value
