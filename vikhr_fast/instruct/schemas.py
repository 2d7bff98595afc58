"""The schemas that instruction sets come in, told apart by their fields.

Each reader gets a row and gives messages {role, content}; what cannot be read is an InputError with the reason alone.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from vikhr_fast.errors import InputError

Row = Mapping[str, Any]
Messages = list[dict[str, Any]]

_ROLES = {"system": "system", **dict.fromkeys(("user", "human"), "user")}
_ROLES |= dict.fromkeys(("assistant", "gpt", "bot", "chatgpt"), "assistant")
_NECTAR_TURN = re.compile(r"\n\n(Human|Assistant):")


def messages_of(row: Row) -> Messages:
    """The messages of a row of any known schema."""
    for fields, read in _SCHEMAS:
        if fields <= row.keys():
            return read(row)
    raise InputError(f"of no known schema; its fields are {', '.join(map(repr, row)) or 'none'}")


def _turns(row: Row) -> Messages:
    """Veles-2.5 and ShareGPT: conversations [{from, value}]."""
    return [_message(turn, "from", "value") for turn in _list(row, "conversations")]


def _plain(row: Row) -> Messages:
    """messages [{role, content}], or as the Saiga sets have it in columns: {role: [...], content: [...]}."""
    if isinstance(columns := row["messages"], dict):
        roles, contents = _list(columns, "role"), _list(columns, "content")
        if len(roles) != len(contents):
            raise InputError(f"{len(roles)} roles, but {len(contents)} contents")
        row = {"messages": [{"role": role, "content": own} for role, own in zip(roles, contents, strict=True)]}
    return [_message(message, "role", "content") for message in _list(row, "messages")]


def _nectar(row: Row) -> Messages:
    """Nectar: a prompt "Human: ... Assistant: ...", and ranked answers, of which the best is taken."""
    if row.get("good_natured") is False:
        raise InputError("not good-natured")
    prompt, answers = nectar_prompt(row), ranked_answers(row)
    if not answers:
        raise InputError("answers without a rank")
    return [*prompt, {"role": "assistant", "content": answers[0][1]}]


def nectar_prompt(row: Row) -> Messages:
    """The messages before the answers of a row of Nectar."""
    before, *parts = _NECTAR_TURN.split(_text(row, "prompt"))
    if before.strip() or len(parts) < 4 or parts[-2] != "Assistant" or parts[-1].strip():
        raise InputError('the prompt does not go from "Human:" to "Assistant:"')
    return [
        {"role": "user" if role == "Human" else "assistant", "content": text.strip()}
        for role, text in zip(parts[:-2:2], parts[1:-2:2], strict=True)
    ]


def ranked_answers(row: Row) -> list[tuple[float, str]]:
    """The ranks and answers of a row of Nectar, the best first; equal ranks in their order."""
    answers = _list(row, "answers")
    if not all(isinstance(answer, dict) and isinstance(answer.get("rank"), int | float) for answer in answers):
        raise InputError("answers without a rank")
    ranked = [(float(answer["rank"]), _text(answer, "answer")) for answer in answers]
    return sorted(ranked, key=lambda answer: answer[0])


def _instruction(row: Row) -> Messages:
    """Alpaca and ru_turbo_alpaca: instruction, input, output; of the latter's two outputs the alternative one."""
    if row.get("label") == "bad":
        raise InputError('labelled "bad" by those who looked at it')
    question = _text(row, "instruction")
    if row.get("input"):
        question = f"{question}\n\n{_text(row, 'input')}"
    output = "alternative_output" if row.get("alternative_output") else "output"
    return _exchange(question, _text(row, output))


def _flan(target: str, row: Row) -> Messages:
    """ruFLAN: inputs and targets."""
    return _exchange(_text(row, "inputs"), _text(row, target))


def _exchange(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


_SCHEMAS: tuple[tuple[set[str], Callable[[Row], Messages]], ...] = (
    ({"conversations"}, _turns),
    ({"messages"}, _plain),
    ({"prompt", "answers"}, _nectar),
    ({"instruction", "output"}, _instruction),
    ({"inputs", "targets"}, partial(_flan, "targets")),
    ({"inputs", "target"}, partial(_flan, "target")),
)


def _message(value: object, role: str, content: str) -> dict[str, Any]:
    if not isinstance(value, dict) or role not in value or content not in value:
        raise InputError(f"a message without {role!r} or {content!r}")
    if not isinstance(value[role], str) or value[role] not in _ROLES:
        raise InputError(f"a message of an unknown role, {value[role]!r}")
    return {"role": _ROLES[value[role]], "content": value[content]}


def _list(row: Row, name: str) -> list[Any]:
    if not isinstance(row.get(name), list):
        raise InputError(f"field {name!r} is no list")
    found: list[Any] = row[name]
    return found


def _text(row: Row, name: str) -> str:
    if not isinstance(row.get(name), str):
        raise InputError(f"field {name!r} is no text")
    found: str = row[name]
    return found
