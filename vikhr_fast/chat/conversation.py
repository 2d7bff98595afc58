"""The one schema of conversations: a line of JSON {id, source, language, messages: [{role, content}]}.

An answer that must not be learnt, but stays because a later one depends on it, has `"train": false` as well.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vikhr_fast.chat.template import Message
from vikhr_fast.data.read import read_objects, refuse
from vikhr_fast.data.text_lines import MAX_LINE, OnBad
from vikhr_fast.errors import InputError
from vikhr_fast.io.files import write_json_lines
from vikhr_fast.tokenizer.chat_template import ROLES

_Parsed = TypeVar("_Parsed")

_LONGEST_LINE = 1 << 30  # what `instruct convert --max-line` has let in is read again
_FIELDS = ("role", "content", "train")  # of a message
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""Of a surrogate pair: JSON can spell it, UTF-8 cannot."""


class Conversation(NamedTuple):
    """A system message or none, then user and assistant in turn; the last word is an answer to be trained on."""

    id: str
    source: str
    language: str
    """ISO 639 code; "und" where nothing tells."""
    messages: tuple[Message, ...]

    @property
    def prompt(self) -> str:
        """What the user says first."""
        return next(message.content for message in self.messages if message.role == "user")

    @property
    def answer(self) -> str:
        """What the assistant says last."""
        return self.messages[-1].content

    @property
    def text(self) -> str:
        """All that user and assistant say."""
        return "\n\n".join(message.content for message in self.messages if message.role != "system")

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {**self._asdict(), "messages": [message.record() for message in self.messages]}


def checked_messages(values: object) -> tuple[Message, ...]:
    """The messages of a conversation; InputError, with the reason alone, where they are none."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise InputError("no list of messages")
    messages = []
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict) or not value.keys() >= {"role", "content"}:
            raise InputError(f"message {number} has no role or no content")
        role, content = value["role"], value["content"]
        if role not in ROLES:
            raise InputError(f"message {number} is of an unknown role, {role!r}")
        if not isinstance(content, str):
            raise InputError(f"message {number} is {type(content).__name__}, not text")
        if not content.strip():
            raise InputError(f"message {number}, of the {role}, is empty")
        if HALF_CHARACTER.search(content):
            raise InputError(f"message {number} has half of a surrogate pair")
        if unknown := [name for name in value if name not in _FIELDS and value[name] is not None]:
            raise InputError(f"message {number} has {unknown[0]!r}, which a conversation can't hold")
        train = value.get("train")
        if not isinstance(train, bool | None):
            raise InputError(f"message {number}: 'train' is {train!r}, neither true nor false")
        messages.append(Message(role, content, role != "assistant" or train is not False))
    turns = [message.role for message in messages]
    if turns[:1] == ["system"]:
        del turns[0]
    if not turns:
        raise InputError("nobody says anything")
    for number, role in enumerate(turns, start=1):
        if role != ("user", "assistant")[(number - 1) % 2]:
            raise InputError(f"turn {number} is the {role}'s; user and assistant must take turns, the user first")
    if turns[-1] == "user":
        raise InputError("the last message has no answer")
    if not messages[-1].is_trained:
        raise InputError("the last answer is not to be trained on; leave it out")
    return tuple(messages)


def read_conversations(files: Iterable[Path]) -> Iterator[Conversation]:
    """Streams conversations.

    Raises:
        InputError: a file that cannot be read, a line that is none, or no conversation at all.
    """
    files = tuple(files)
    conversation = None
    for conversation in parsed_objects(files, _conversation, max_line=_LONGEST_LINE):
        yield conversation
    if conversation is None:
        raise InputError(f"{', '.join(map(str, files)) or 'no files'}: no conversations; give at least one")


def _conversation(row: Mapping[str, Any]) -> Conversation:
    try:
        for name in ("id", "source", "language"):
            if not isinstance(row.get(name), str):
                raise InputError(f"no text in field {name!r}")
            if HALF_CHARACTER.search(row[name]):
                raise InputError(f"field {name!r} has half of a surrogate pair")
        return Conversation(row["id"], row["source"], row["language"], checked_messages(row.get("messages")))
    except InputError as error:
        raise InputError(f"{error}; `vikhr-fast instruct convert` makes such lines") from None


def parsed_objects(
    files: Iterable[Path],
    parse: Callable[[Mapping[str, Any]], _Parsed],
    on_bad: OnBad = refuse,
    max_line: int = MAX_LINE,
) -> Iterator[_Parsed]:
    """What `parse` makes of the rows of files; its InputErrors, with the reason alone, get the place for `on_bad`."""
    for file in files:
        place = "line" if ".jsonl" in file.name.lower() else "row"
        for number, row in read_objects(file, max_line=max_line):
            try:
                parsed = parse(row)
            except InputError as error:
                on_bad(file, number, type(error)(f"{file}: {place} {number}: {error}"))
            else:
                yield parsed


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> int:
    """Writes a file, complete or not at all; returns how many there were."""
    return write_json_lines(path, (conversation.record() for conversation in conversations))
