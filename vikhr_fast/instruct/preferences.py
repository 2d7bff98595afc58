"""Preferences: of two answers to one prompt, which one is better."""

from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from vikhr_fast.corpus.read import read_objects
from vikhr_fast.corpus.sources import source_files
from vikhr_fast.errors import InputError
from vikhr_fast.instruct.conversation import HALF_CHARACTER
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
    for pattern in patterns:
        for file in source_files(pattern):
            for number, row in read_objects(file):
                try:
                    for pair in _nectar_pairs(row) if "answers" in row else [_pair(row, columns)]:
                        if HALF_CHARACTER.search("".join(pair)):
                            raise InputError("half of a surrogate pair; mend or remove it")
                        yield pair
                except InputError as error:
                    raise InputError(f"{file}: row {number}: {error}") from None


def _pair(row: dict[str, Any], columns: tuple[str, str, str]) -> Pair:
    values = []
    for name in columns:
        value = row.get(name)
        if isinstance(value, list):  # messages
            value = "\n\n".join(str(message.get("content", "")) for message in value if isinstance(message, dict))
        if not isinstance(value, str):
            raise InputError(f"no text in field {name!r}; name the fields with --columns")
        values.append(value)
    return Pair(*values)


def _nectar_pairs(row: dict[str, Any]) -> Iterator[Pair]:
    prompt = "\n\n".join(message["content"] for message in nectar_prompt(row))
    for (rank, better), (other, worse) in combinations(ranked_answers(row), 2):
        if rank < other:
            yield Pair(prompt, better, worse)
