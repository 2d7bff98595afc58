"""Preferences: of two answers to one prompt, which one is better."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vikhr_fast.chat.conversation import HALF_CHARACTER
from vikhr_fast.data.read import read_objects
from vikhr_fast.data.sources import source_files
from vikhr_fast.errors import InputError
from vikhr_fast.instruct.rejected import Rejected
from vikhr_fast.instruct.schemas import (
    BESIDE_TURNS,
    Messages,
    asked_of,
    nectar_prompt,
    ranked_answers,
    said,
    transcript,
    with_fields_beside,
)


class Pair(NamedTuple):
    """Two answers to a prompt, of which one is preferred."""

    prompt: str
    chosen: str
    rejected: str


def read_pairs(patterns: Iterable[Path], columns: tuple[str, str, str], rejected: Rejected) -> Iterator[Pair]:
    """Streams pairs; what holds none goes to `rejected`.

    Each of a row's fields is text or a list of messages. The answers may repeat the prompt, or hold the whole chat as
    TRL, OpenRLHF and HH-RLHF have it, with or without a prompt beside them: what both of them begin with is the
    prompt. A system message and a history in fields of their own belong to it. A row of Nectar gives every two answers
    of different ranks.

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


def _ranked_pairs(row: Mapping[str, Any]) -> list[Pair]:
    prompt = _joined(with_fields_beside(row, nectar_prompt(row), is_chat=True))
    ranked = combinations(ranked_answers(row), 2)
    return [Pair(prompt, better, worse) for (rank, better), (other, worse) in ranked if rank < other]


def _pair(row: Mapping[str, Any], *columns: str) -> Pair:
    prompt, chosen, rejected = columns
    for name in (chosen, rejected):
        if row.get(name) is None:
            raise InputError(f"no text in field {name!r}; name the fields with --columns")
    question = row.get(prompt)
    if isinstance(question, str):
        question = asked_of(row, prompt)
    answers = _without_the_prompt(question, {name: row[name] for name in (chosen, rejected)})
    asked = [] if question is None else _chat({prompt: question}, prompt, "user")
    better, worse = (_chat(answers, name, "assistant") for name in (chosen, rejected))
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
    beside = {name: row[name] for name in BESIDE_TURNS if name in row and name not in columns}
    before = with_fields_beside(beside, longer, is_chat=len(longer) > 1)
    return Pair(_joined(before), _joined(better[-1:]), _joined(worse[-1:]))


def _without_the_prompt(prompt: object, answers: dict[str, Any]) -> dict[str, Any]:
    """The answers without the prompt where all are text and both begin with it; otherwise as they are."""
    if not isinstance(prompt, str) or not prompt.strip() or not all(isinstance(own, str) for own in answers.values()):
        return answers
    after = {name: own.removeprefix(prompt) for name, own in answers.items()}
    # What goes on without a space is another word.
    is_word = not prompt[-1].isspace()
    is_repeated = all(after[name] != own and not (is_word and after[name][:1].strip()) for name, own in answers.items())
    return {name: own.lstrip() for name, own in after.items()} if is_repeated else answers


def _chat(row: Mapping[str, Any], name: str, role: Literal["user", "assistant"]) -> Messages:
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
