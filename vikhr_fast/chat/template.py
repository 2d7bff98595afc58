"""The structure of a chat's template: which parts are control pieces, template text and messages.

A message's text never goes through Jinja. The template is rendered with a placeholder for each message, so that
control pieces are looked for in the template's own text alone, and text that looks like one stays text.
What stands between `{% generation %}` and `{% endgeneration %}` is what the assistant says, and is trained on.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer.chat_template import BEGIN, END, Role, named_roles, render_chats

# With spaces around: a template that trims messages would change them, and is found out.
_MESSAGE = " \x02{}\x03 "
_MESSAGE_PATTERN = r" \x02\d+\x03 "


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
    """The control piece, the template's text, or the number of the message."""
    is_trained: bool
    """Whether the assistant says it."""


class ChatTemplate:
    """A chat template. It is rendered once for each sequence of roles, whatever their messages say.

    Args:
        source: in Jinja.
        name: for messages: the file it is from.
        control: the vocabulary's control pieces.
        roles: what bos_token, eos_token and so on stand for.
    """

    def __init__(self, source: str, name: str, control: Collection[str], roles: dict[str, str]) -> None:
        self._source, self._name, self._roles, self._control = source, name, roles, frozenset(control)
        pieces = "|".join(map(re.escape, sorted(control, key=len, reverse=True)))
        self._cut = re.compile(f"({_MESSAGE_PATTERN}|[{BEGIN}{END}]|{pieces})")
        self._rendered: dict[tuple[tuple[Role, ...], bool], str | InputError] = {}
        self._parts: dict[tuple[tuple[Role, ...], bool, frozenset[int]], list[Part]] = {}

    def render(self, chats: Iterable[tuple[Role, ...]], add_generation_prompt: bool) -> None:
        """Prepares for `parts` of chats by their roles: a process starts for those that are new, not for each."""
        new = [roles for roles in dict.fromkeys(chats) if (roles, add_generation_prompt) not in self._rendered]
        values = [
            {
                "messages": [{"role": role, "content": _MESSAGE.format(index)} for index, role in enumerate(roles)],
                "add_generation_prompt": add_generation_prompt,
                **self._roles,
            }
            for roles in new
        ]
        for roles, rendered in zip(new, render_chats(self._source, self._name, values) if new else (), strict=True):
            self._rendered[roles, add_generation_prompt] = rendered

    def parts(
        self, roles: Sequence[Role], add_generation_prompt: bool, untrained: frozenset[int] = frozenset()
    ) -> list[Part]:
        """The structure of a chat whose messages have these roles.

        Args:
            roles: of the messages.
            add_generation_prompt: end with what makes the model answer.
            untrained: numbers of answers, from 0, that are not trained on, nor what ends them.

        Raises:
            InputError: not a template, or one that has no generation block, takes too much time or memory, refuses such
                a chat, or changes or leaves out a message.
        """
        key = (tuple(roles), add_generation_prompt, untrained)
        if key not in self._parts:
            self._parts[key] = self._split(*key)
        return self._parts[key]

    def _split(self, roles: tuple[Role, ...], add_generation_prompt: bool, untrained: frozenset[int]) -> list[Part]:
        self.render([roles], add_generation_prompt)
        rendered = self._rendered[roles, add_generation_prompt]
        if isinstance(rendered, InputError):
            raise rendered
        if "endgeneration" not in self._source:
            raise InputError(f"{self._name}: has no generation block, which tells what the assistant says; add one")
        parts: list[Part] = []
        is_trained, begin = False, 0
        for piece in filter(None, self._cut.split(rendered)):
            if piece == BEGIN:
                is_trained, begin = True, len(parts)
            elif piece == END:
                is_trained, block = False, parts[begin:]
                if any(part.kind == "message" and int(part.value) in untrained for part in block):
                    parts[begin:] = [part._replace(is_trained=False) for part in block]
            elif piece in self._control:
                parts.append(Part("control", piece, is_trained))
            elif re.fullmatch(_MESSAGE_PATTERN, piece):
                parts.append(Part("message", piece[2:-2], is_trained))
            else:
                parts.append(Part("text", piece, is_trained))
        found = [int(part.value) for part in parts if part.kind == "message"]
        if found != list(range(len(roles))):
            raise InputError(f"{self._name}: changes, moves or leaves out messages of {named_roles(roles)}; mend it")
        return parts
