"""The structure of a chat's template: which parts are control pieces, template text and messages.

The template is rendered with a placeholder for each message, and what it says is put in afterwards: control pieces are
looked for in the template's own text alone, and text that looks like one stays text. A template that looks at texts is
rendered with them, too, and a chat of which it then makes something else is refused.
What stands between `{% generation %}` and `{% endgeneration %}` is what the assistant says, and is trained on; in a
template without such a block, its message and the control piece behind it.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate, groupby, zip_longest
from typing import Any, Literal, NamedTuple

from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer.chat_template import BEGIN, END, NONCE, Role, named_roles, render_chats

# A template that changes case, lines or signs of markup would change this, and is found out; one that trims messages
# takes away the spaces at its ends, of a kind that no template has.
_SPACE = "\x1f"
_INNER = f"\x02aZ<&>\n{NONCE}:{{}}\x03"
_MESSAGE = f"{_SPACE}{_INNER}{_SPACE}"
_TRIMMED = f"{_SPACE}?{_INNER}{_SPACE}?"
_BLOCK = re.compile(r"\{%[-+]?\s*generation\b")
_MARKS = re.compile(f"{BEGIN}|{END}")
_NUMBERED = re.compile(f"({_SPACE}?){_INNER.format('([0-9]+)')}({_SPACE}?)")
_AT_ONCE = 1 << 20  # characters in chats that one process renders, far below its limits
_EACH = 100  # as many more for a message, which takes time even if it is short
_SHOWN = 40


class Message(NamedTuple):
    """What one side says."""

    role: Role
    content: str
    is_trained: bool = True
    """False of an answer that the model must not learn to give."""

    def record(self) -> dict[str, Any]:
        """As JSON values; `train` is there only where it is false."""
        return {"role": self.role, "content": self.content, **({} if self.is_trained else {"train": False})}


class Part(NamedTuple):
    """A piece of a rendered template."""

    kind: Literal["control", "text", "message"]
    value: str
    """The control piece, the template's text, or what the message says, trimmed where the template does so."""
    is_trained: bool
    """Whether the assistant says it."""


class ChatTemplate:
    """A chat template. It is rendered once for each sequence of roles; once for each chat where it looks at texts.

    Args:
        source: in Jinja.
        name: for messages: the file it is from.
        control: the vocabulary's control pieces.
        roles: what bos_token, eos_token and so on stand for.
    """

    def __init__(self, source: str, name: str, control: Collection[str], roles: dict[str, str]) -> None:
        self._source, self._name, self._roles, self._control = source, name, roles, frozenset(control)
        pieces = map(re.escape, sorted(control, key=len, reverse=True))
        self._cut = re.compile(f"({'|'.join([_TRIMMED.format('[0-9]+'), BEGIN, END, *pieces])})")
        self.has_generation_block = _BLOCK.search(source) is not None
        self._end: str | None = None  # of an answer, in a template without blocks
        self._rendered: dict[tuple[tuple[Role, ...], bool], str | InputError] = {}
        self._looking: set[tuple[tuple[Role, ...], bool]] = set()
        self._parts: dict[tuple[tuple[Role, ...], bool, frozenset[int]], list[Part] | InputError] = {}

    def parts(self, chats: Sequence[Sequence[Message]], add_generation_prompt: bool) -> list[list[Part] | InputError]:
        """The parts of chats, each as the template makes it of what its messages say; or why a chat has none.

        That is: not a template, or one that takes too much time or memory, doesn't tell what the assistant says,
        refuses the chat, or changes a message, leaves it out or says otherwise for what is in it.

        A process starts if a sequence of roles is new, and for many chats together if the template looks at texts.

        Args:
            chats: messages of each.
            add_generation_prompt: end with what makes the model answer.
        """
        self._render(chats, add_generation_prompt)
        found = [self._filled(chat, add_generation_prompt) for chat in chats]
        self._compare(chats, add_generation_prompt, found)
        return found

    def _render(self, chats: Sequence[Sequence[Message]], add_generation_prompt: bool) -> None:
        """Renders what is new with placeholders: as texts, and opaque, which fails if the template looks at them."""
        keys = dict.fromkeys((_roles(chat), add_generation_prompt) for chat in chats)
        if not (new := [key for key in keys if key not in self._rendered]):
            return
        values = []
        for key in new:
            places = [_MESSAGE.format(number) for number in range(len(key[0]))]
            values += [self._values(*key, places), self._values(*key, [{"opaque": place} for place in places])]
        rendered = render_chats(self._source, self._name, values)
        self._rendered.update(zip(new, rendered[::2], strict=True))
        self._looking.update(key for key, one in zip(new, rendered[1::2], strict=True) if isinstance(one, InputError))

    def _values(
        self, roles: Sequence[Role], add_generation_prompt: bool, contents: Sequence[str | dict[str, str]]
    ) -> dict[str, Any]:
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        return {"messages": messages, "add_generation_prompt": add_generation_prompt, **self._roles}

    def _filled(self, chat: Sequence[Message], add_generation_prompt: bool) -> list[Part] | InputError:
        contents = [message.content for message in chat]
        untrained = frozenset(number for number, message in enumerate(chat) if not message.is_trained)
        key = (_roles(chat), add_generation_prompt, untrained)
        if key not in self._parts:
            try:
                self._parts[key] = self._split(*key)
            except InputError as error:
                self._parts[key] = InputError(str(error))  # without the frames, which hold chats
        parts = self._parts[key]
        if isinstance(parts, InputError):
            return parts
        return [
            part._replace(value=_filled_in(part.value, contents)) if part.kind == "message" else part for part in parts
        ]

    def _compare(
        self, chats: Sequence[Sequence[Message]], add_generation_prompt: bool, parts: list[list[Part] | InputError]
    ) -> None:
        """Takes away the parts of chats of which the template makes something else than of placeholders."""
        looking = [
            (number, _roles(chat), [message.content for message in chat])
            for number, chat in enumerate(chats)
            if (_roles(chat), add_generation_prompt) in self._looking and not isinstance(parts[number], InputError)
        ]
        sizes = accumulate(sum(len(content) + _EACH for content in contents) for _, _, contents in looking)
        for _, group in groupby(zip(sizes, looking, strict=True), key=lambda sized: sized[0] // _AT_ONCE):
            batch = [chat for _, chat in group]
            values = [self._values(roles, add_generation_prompt, contents) for _, roles, contents in batch]
            rendered = render_chats(self._source, self._name, values)
            for (number, roles, contents), found in zip(batch, rendered, strict=True):
                expected = _filled_in(str(self._rendered[roles, add_generation_prompt]), contents)
                if isinstance(found, InputError):
                    parts[number] = found
                elif found != expected:
                    reason = f"looks at what is said in {named_roles(roles)}, and makes {_difference(found, expected)}"
                    parts[number] = InputError(f"{self._name}: {reason}; take another template, or leave this chat out")

    def _split(self, roles: tuple[Role, ...], add_generation_prompt: bool, untrained: frozenset[int]) -> list[Part]:
        rendered = self._rendered[roles, add_generation_prompt]
        if isinstance(rendered, InputError):
            raise rendered
        parts: list[Part] = []
        is_trained, begin = False, 0
        for piece in filter(None, self._cut.split(rendered)):
            if piece == BEGIN:
                is_trained, begin = True, len(parts)
            elif piece == END:
                is_trained, block = False, parts[begin:]
                if any(part.kind == "message" and _number(part) in untrained for part in block):
                    parts[begin:] = [part._replace(is_trained=False) for part in block]
            elif piece in self._control:
                parts.append(Part("control", piece, is_trained))
            elif _NUMBERED.fullmatch(piece):
                parts.append(Part("message", piece, is_trained))
            else:
                parts.append(Part("text", piece, is_trained))
        if [_number(part) for part in parts if part.kind == "message"] != list(range(len(roles))):
            raise InputError(f"{self._name}: changes, moves or leaves out messages of {named_roles(roles)}; mend it")
        return parts if self.has_generation_block else list(self._with_answers(parts, roles, untrained))

    def _with_answers(self, parts: list[Part], roles: tuple[Role, ...], untrained: frozenset[int]) -> Iterator[Part]:
        """The parts of a template without generation blocks: an answer goes from its message to the control behind it.

        Raises:
            InputError: something else than space stands between, or another control piece than behind other answers.
        """
        answer: int | None = None
        for part in parts:
            if part.kind == "message":
                self._require(answer is None, "none")
                answer = _number(part) if roles[_number(part)] == "assistant" else None
            elif part.kind == "text" and answer is not None:
                self._require(not part.value.strip(), f"{part.value.strip()[:_SHOWN]!r}")
            elif answer is not None:
                self._end = self._end or part.value
                self._require(part.value == self._end, f"{part.value!r}, behind another {self._end!r}")
            yield part._replace(is_trained=answer is not None and answer not in untrained)
            answer = None if part.kind == "control" else answer
        self._require(answer is None, "none")

    def _require(self, is_certain: bool, found: str) -> None:
        """Refuses to guess what the assistant says."""
        if not is_certain:
            reason = "has no generation block, and no control piece, always the same, stands right behind each answer"
            raise InputError(f"{self._name}: {reason}, but {found}; put such blocks around answers with their ends")


def _number(part: Part) -> int:
    """Of a message, in its placeholder."""
    found = _NUMBERED.fullmatch(part.value)
    assert found is not None
    return int(found[2])


def _filled_in(rendered: str, contents: Sequence[str]) -> str:
    """What messages say in their placeholders, trimmed at the ends where these are."""

    def said(place: re.Match[str]) -> str:
        content = contents[int(place[2])]
        content = content if place[1] else content.lstrip()
        return content if place[3] else content.rstrip()

    return _NUMBERED.sub(said, rendered)


def _difference(found: str, expected: str) -> str:
    """Where two renderings begin to differ, without their marks."""
    found, expected = (_MARKS.sub("", text) for text in (found, expected))
    pairs = enumerate(zip_longest(found, expected))
    begin = max(0, next((at for at, (one, two) in pairs if one != two), len(found)) - _SHOWN)
    found, expected = (text[begin : begin + 2 * _SHOWN] for text in (found, expected))
    return f"{found!r} where it should be {expected!r}"


def _roles(chat: Sequence[Message]) -> tuple[Role, ...]:
    return tuple(message.role for message in chat)
