"""Preferences: of two answers to one prompt, which one is better."""

from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vikhr_fast.chat.conversation import HALF_CHARACTER
from vikhr_fast.data.read import read_objects
from vikhr_fast.data.sources import source_files
from vikhr_fast.errors import InputError
from vikhr_fast.instruct.rejected import Rejected
from vikhr_fast.instruct.schemas import Messages, nectar_prompt, ranked_answers, said, transcript


class Pair(NamedTuple):
    """Two answers to a prompt, of which one is preferred."""

    prompt: str
    chosen: str
    rejected: str


def read_pairs(patterns: Iterable[Path], columns: tuple[str, str, str], rejected: Rejected) -> Iterator[Pair]:
    """Streams pairs; what holds none goes to `rejected`.

    Each of a row's fields is text or a list of messages. The answers may repeat the prompt, or hold the whole chat as
    TRL, OpenRLHF and HH-RLHF have it, with or without a prompt beside them: what both of them begin with is the
    prompt. A row of Nectar gives every two answers of different ranks.

    Args:
        patterns: files, patterns, or raw files of the Hub.
        columns: the fields with the prompt, the better and the worse answer.
        rejected: gets each row, or pair of a row, that is no text, without a prompt or answer, or equal on both sides.

    Raises:
        InputError: a missing file or one of an unknown kind.
    """
    for file in (file for pattern in patterns for file in source_files(pattern)):
        for number, row in read_objects(file, rejected):
            try:
                pairs = _ranked_pairs(row) if "answers" in row else [_pair(row, *columns)]
            except InputError as error:
                rejected(file, number, error, row)
                continue
            for pair in pairs:
                if reason := _why_unusable(pair):
                    rejected(file, number, InputError(reason), pair)
                else:
                    yield pair


def _ranked_pairs(row: dict[str, Any]) -> list[Pair]:
    prompt = _joined(nectar_prompt(row))
    ranked = combinations(ranked_answers(row), 2)
    return [Pair(prompt, better, worse) for (rank, better), (other, worse) in ranked if rank < other]


def _pair(row: dict[str, Any], *columns: str) -> Pair:
    prompt, chosen, rejected = columns
    for name in (chosen, rejected):
        if row.get(name) is None:
            raise InputError(f"no text in field {name!r}; name the fields with --columns")
    texts = [row.get(name) for name in columns]
    if repeated := _after_the_prompt(*texts):
        return repeated
    asked = [] if row.get(prompt) is None else _chat(row, prompt, "user")
    better, worse = (_chat(row, name, "assistant") for name in (chosen, rejected))
    for name, chat in ((chosen, better), (rejected, worse)):
        if not chat or chat[-1]["role"] != "assistant":
            raise InputError(f"field {name!r} does not end with an answer")
    before = better[:-1] or worse[:-1]
    if (worse[:-1] or before) != before:
        raise InputError(f"{chosen!r} and {rejected!r} answer different messages")
    longer, shorter = (before, asked) if len(before) >= len(asked) else (asked, before)
    if not all(message in longer for message in shorter):
        raise InputError(f"{chosen!r} and {rejected!r} begin with other messages than {prompt!r}")
    if not longer:
        raise InputError(f"no prompt in field {prompt!r}, nor before the answers; name the fields with --columns")
    return Pair(_joined(longer), _joined(better[-1:]), _joined(worse[-1:]))


def _after_the_prompt(prompt: object, *answers: object) -> Pair | None:
    """The pair, where prompt and answers are text and both of these begin with the prompt, which is cut off."""
    if not isinstance(prompt, str) or not prompt.strip():
        return None
    after = []
    for answer in answers:
        rest = answer.removeprefix(prompt) if isinstance(answer, str) else None
        if rest is None or rest == answer or rest[:1].strip():  # a word that goes on is another word
            return None
        after.append(rest.lstrip())
    return Pair(prompt, *after)


def _chat(row: dict[str, Any], name: str, role: Literal["user", "assistant"]) -> Messages:
    """The messages of a field; where it is text, it is a transcript or what one role says."""
    value = row[name]
    messages = (transcript(value) if isinstance(value, str) else []) or said(row, name, role)
    return messages[:-1] if role == "user" and messages[-1:] == [{"role": "assistant", "content": ""}] else messages


def _joined(messages: Messages) -> str:
    contents = [message["content"] for message in messages]
    for content in contents:
        if not isinstance(content, str):
            raise InputError(f"a message that is {type(content).__name__}, not text")
    return "\n\n".join(contents)


def _why_unusable(pair: Pair) -> str | None:
    for name, text in pair._asdict().items():
        if not text.strip():
            return f"{name}: empty"
        if HALF_CHARACTER.search(text):
            return f"{name}: half of a surrogate pair"
    return "both answers are equal" if pair.chosen.strip() == pair.rejected.strip() else None
