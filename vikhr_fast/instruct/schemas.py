"""The schemas that instruction sets come in, told apart by their fields.

Each reader gets a row and gives messages {role, content}; what cannot be read is an InputError with the reason alone.
Of the row's other fields those are kept that a conversation can hold: a system message, earlier turns, and which
answers are not to be trained on. With one that it cannot hold, and without which the rest means something else, the
row is refused. What is left, `fields_beside` names.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from vikhr_fast.data.read import readable_values
from vikhr_fast.errors import InputError

Row = Mapping[str, Any]
Messages = list[dict[str, Any]]

_ROLES = {**dict.fromkeys(("system", "developer"), "system"), **dict.fromkeys(("user", "human"), "user")}
_ROLES |= dict.fromkeys(("assistant", "gpt", "bot", "chatgpt"), "assistant")
_TURN = re.compile(r"\n\n(Human|Assistant):")
_SYSTEM, _HISTORY = ("system", "system_prompt", "system_message"), "history"
_ROLE, _CONTENT, _TRAIN = ("role", "from"), ("content", "value"), ("train", "weight", "loss")
_NOT_HELD = {"tools", "functions", "tool_calls", "function_call", "reasoning_content", "image", "images"}
_NOT_HELD |= {"audio", "audios", "video", "videos"}
_NOT_HELD_BY_ROW, _NOT_HELD_BY_MESSAGE = {*_NOT_HELD, "context", "documents"}, {*_NOT_HELD, "reasoning", "thinking"}

BESIDE_TURNS = (*_SYSTEM, _HISTORY, *sorted(_NOT_HELD_BY_ROW))
"""Fields of a row that `with_fields_beside` looks at."""


class FieldsBeside(NamedTuple):
    """The filled fields of a row that are not part of its schema."""

    kept: list[str]
    dropped: list[str]
    """Names; those of a message's fields as "messages.name"."""


def messages_of(row: Row) -> Messages:
    """The messages of a row of any known schema; `train` is False in answers that are not to be trained on."""
    schema = _schema_of(row)
    if any(_is_zero(row.get(name)) for name in ("train", "kto_tag", "weight")):
        raise InputError("marked as not to be trained on")
    return with_fields_beside(row, schema.read(row), schema.is_chat)


def with_fields_beside(row: Row, messages: Messages, is_chat: bool) -> Messages:
    """Messages after the system message and the history that stand in fields of their own.

    Args:
        row: what stands beside the messages, or more.
        messages: what the other fields say.
        is_chat: whether these are all turns, so that a history would be another one.
    """
    _refuse_fields(row, _NOT_HELD_BY_ROW, "the row")
    if history := _history(row):
        if is_chat:
            raise InputError(f"{_HISTORY!r} beside a whole chat")
        messages = [*history, *messages]
    told = [_text_of(row[name]) for name in _SYSTEM if _is_filled(row.get(name))]
    if messages and messages[0]["role"] == "system":
        first = messages.pop(0)["content"]
        told += [] if isinstance(first, str) and not first.strip() else [first]
    if any(one != told[0] for one in told):
        raise InputError("two system messages that differ")
    return [*({"role": "system", "content": one} for one in told[:1]), *messages]


def fields_beside(row: Row) -> FieldsBeside:
    """What there is in a row besides the fields of its schema; a cell that cannot be read is something."""
    schema = _schema_of(row)
    values, _ = readable_values(row)
    filled = [name for name in row if _is_filled(values.get(name, True))]
    kept = [name for name in filled if name in (*_SYSTEM, _HISTORY)]
    dropped = [name for name in filled if name not in {*kept, *schema.needed, *schema.more}]
    known = {*_ROLE, *_CONTENT, *_TRAIN, "answer", "rank"}
    for name in schema.needed:
        inner = _listed(row[name])
        messages = [one for one in inner if isinstance(one, dict)] if isinstance(inner, list) else []
        names = {own for one in messages for own in one if own not in known and _is_filled(one[own])}
        dropped += [f"{name}.{own}" for own in sorted(names)]
    return FieldsBeside(kept, dropped)


def said(row: Row, name: str, role: str) -> Messages:
    """The messages of a field that is either what one role says, as text, or a list of messages."""
    value = _listed(row.get(name))
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise InputError(f"field {name!r} is no text and no list of messages")
    return [_message(message) for message in value]


def asked_of(row: Row, name: str) -> str:
    """The text of a field; an instruction's with the input beside it."""
    question = _text(row, name)
    if name != "instruction" or not row.get("input") or _is_nan(row["input"]):
        return question
    return f"{question}\n\n{_text(row, 'input')}"


def transcript(text: str) -> Messages:
    """The messages of "Human: ... Assistant: ...", as HH-RLHF and Nectar have them; none where it is something else."""
    before, *parts = _TURN.split(text)
    if before.strip():
        return []
    return [
        {"role": "user" if role == "Human" else "assistant", "content": content.strip()}
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def nectar_prompt(row: Row) -> Messages:
    """The messages before the answers of a row of Nectar."""
    messages = transcript(_text(row, "prompt"))
    if len(messages) < 2 or messages[-1] != {"role": "assistant", "content": ""}:
        raise InputError('the prompt does not go from "Human:" to "Assistant:"')
    return messages[:-1]


def ranked_answers(row: Row) -> list[tuple[float, str]]:
    """The ranks and answers of a row of Nectar, the best first; equal ranks in their order."""
    answers = _list(row, "answers")
    if not all(isinstance(answer, dict) and isinstance(answer.get("rank"), int | float) for answer in answers):
        raise InputError("answers without a rank")
    ranked = [(answer["rank"], _text(answer, "answer")) for answer in answers]
    return sorted(ranked, key=lambda answer: answer[0])


def _chat(name: str, row: Row) -> Messages:
    """Veles-2.5, ShareGPT, the Saiga sets and plain chats: messages {from, value} or {role, content}."""
    return [_message(message) for message in _list(row, name)]


def _nectar(row: Row) -> Messages:
    """Nectar: a prompt "Human: ... Assistant: ...", and ranked answers, of which the best is taken."""
    if row.get("good_natured") is False:
        raise InputError("not good-natured")
    prompt, answers = nectar_prompt(row), ranked_answers(row)
    if not answers:
        raise InputError("answers without a rank")
    return [*prompt, {"role": "assistant", "content": answers[0][1]}]


def _instruction(row: Row) -> Messages:
    """Alpaca and ru_turbo_alpaca: instruction, input, output; of the latter's two outputs the alternative one."""
    if row.get("label") == "bad":
        raise InputError('labelled "bad" by those who looked at it')
    question = asked_of(row, "instruction")
    output = "alternative_output" if row.get("alternative_output") else "output"
    return _turn(question, _text(row, output))


def _exchange(question: str, answer: str, row: Row) -> Messages:
    """ruFLAN, OpenOrca, TRL and others: a question and an answer."""
    if _is_zero(row.get("label")):  # false, or 0 where a table has no truth values
        raise InputError("labelled as an answer that is not desired")
    return [*said(row, question, "user"), *said(row, answer, "assistant")]


def _turn(question: object, answer: object) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


class _Schema(NamedTuple):
    needed: tuple[str, ...]
    """Fields that it is known by."""
    read: Callable[[Row], Messages]
    more: tuple[str, ...] = ()
    """Fields that it may have, too."""
    is_chat: bool = False
    """Whether all turns are there already."""


_EXCHANGES = (
    ("inputs", "targets"),
    ("inputs", "target"),
    ("question", "response"),
    ("prompt", "response"),
    ("prompt", "completion"),
)
_SCHEMAS = (
    _Schema(("conversations",), partial(_chat, "conversations"), is_chat=True),
    _Schema(("messages",), partial(_chat, "messages"), is_chat=True),
    _Schema(("prompt", "answers"), _nectar, ("good_natured",), is_chat=True),
    _Schema(("instruction", "output"), _instruction, ("input", "alternative_output", "label")),
    *(_Schema(names, partial(_exchange, *names)) for names in _EXCHANGES),
)


def _schema_of(row: Row) -> _Schema:
    for schema in _SCHEMAS:
        if row.keys() >= set(schema.needed):
            return schema
    raise InputError(f"of no known schema; its fields are {', '.join(map(repr, row)) or 'none'}")


def _history(row: Row) -> Messages:
    """Earlier turns, [[question, answer], ...] as LLaMA-Factory has them, or messages."""
    if not _is_filled(row.get(_HISTORY)):
        return []
    messages: Messages = []
    for turn in _list(row, _HISTORY):
        if isinstance(turn, dict):
            messages.append(_message(turn))
        elif isinstance(turn, list) and len(turn) == 2:
            messages += _turn(*turn)
        else:
            raise InputError(f"field {_HISTORY!r} has a turn that is no pair of question and answer")
    return messages


def _message(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"a message that is {type(value).__name__}")
    role, content = (_first(value, names) for names in (_ROLE, _CONTENT))
    if role is None or content is None:
        raise InputError("a message without 'role' and 'content', or 'from' and 'value'")
    named = _ROLES.get(value[role].lower()) if isinstance(value[role], str) else None
    if named is None:
        raise InputError(f"a message of an unknown role, {value[role]!r}")
    _refuse_fields(value, _NOT_HELD_BY_MESSAGE, f"a message of the {named}")
    message = {"role": named, "content": _text_of(value[content])}
    return message if named != "assistant" or _is_trained(value) else {**message, "train": False}


def _first(value: Row, names: tuple[str, ...]) -> str | None:
    """Of two names for one thing the one that is there; Parquet has both, one of them without a value."""
    there = [name for name in names if name in value]
    return next((name for name in there if value[name] is not None), there[0] if there else None)


def _text_of(content: object) -> object:
    """A content as one text where it is in parts, [{"type": "text", "text": ...}]; otherwise as it is."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            kind = repr(part.get("type")) if isinstance(part, dict) else type(part).__name__
            raise InputError(f"a message with a part that is no text, but {kind}")
    return "\n".join(part["text"] for part in content)


def _is_trained(message: Row) -> bool:
    marks = {name: message[name] for name in _TRAIN if message.get(name) is not None}
    for name, mark in marks.items():
        if not isinstance(mark, int | float) or mark not in (0, 1):
            raise InputError(f"a message with {name!r} {mark!r}; all or nothing of it can be trained on: 1 or 0")
    return all(marks.values())


def _refuse_fields(value: Row, names: set[str], what: str) -> None:
    for name in value:
        if name in names and _is_filled(value[name]):
            raise InputError(f"{what} has {name!r}, which a conversation cannot hold")


def _is_filled(value: object) -> bool:
    if isinstance(value, str):
        return value.strip() not in ("", "[]", "{}", "null")
    return bool(value) and not _is_nan(value)


def _is_nan(value: object) -> bool:
    """Whether there is no value, as pandas writes it."""
    return isinstance(value, float) and math.isnan(value)


def _is_zero(value: object) -> bool:
    return isinstance(value, int | float) and value == 0


def _listed(value: object) -> object:
    """The rows of columns {role: [...], content: [...]}, as the Saiga sets have them; a message alone as a list."""
    if not isinstance(value, dict):
        return value
    if any(isinstance(value.get(name), str) for name in _ROLE):
        return [value]
    columns = {name: own for name, own in value.items() if isinstance(own, list)}
    lengths = {len(own) for own in columns.values()}
    if len(lengths) > 1:
        raise InputError(", but ".join(f"{len(own)} {name}s" for name, own in columns.items()))
    return [dict(zip(columns, own, strict=True)) for own in zip(*columns.values(), strict=True)]


def _list(row: Row, name: str) -> list[Any]:
    found = _listed(row.get(name))
    if not isinstance(found, list):
        raise InputError(f"field {name!r} is no list")
    return found


def _text(row: Row, name: str) -> str:
    if not isinstance(row.get(name), str):
        raise InputError(f"field {name!r} is no text")
    found: str = row[name]
    return found
