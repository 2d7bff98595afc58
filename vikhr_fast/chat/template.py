"""The structure of a chat's template: which parts are control pieces, template text and messages.

A message's text never goes through Jinja. The template is rendered with a placeholder for each message, so that
control pieces are looked for in the template's own text alone, and text that looks like one stays text.
What stands between `{% generation %}` and `{% endgeneration %}` is what the assistant says, and is trained on.
"""

import re
from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

import jinja2

from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer.chat_template import BEGIN, END, Role, parse_template

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
    """A chat template.

    Args:
        source: in Jinja.
        name: for messages: the file it is from.
        control: the vocabulary's control pieces.
        roles: what bos_token, eos_token and so on stand for.

    Raises:
        InputError: not a template, or one without a generation block.
    """

    def __init__(self, source: str, name: str, control: Collection[str], roles: dict[str, str]) -> None:
        self._name, self._roles, self._control = name, roles, frozenset(control)
        self._template = parse_template(source, name)
        if "endgeneration" not in source:
            raise InputError(f"{name}: has no generation block, so nobody can tell what the assistant says; add one")
        pieces = "|".join(map(re.escape, sorted(control, key=len, reverse=True)))
        self._cut = re.compile(f"({_MESSAGE_PATTERN}|[{BEGIN}{END}]|{pieces})")
        self._parts: dict[tuple[tuple[Role, ...], bool, frozenset[int]], list[Part]] = {}

    def parts(
        self, roles: Sequence[Role], add_generation_prompt: bool, untrained: frozenset[int] = frozenset()
    ) -> list[Part]:
        """The structure of a chat whose messages have these roles.

        Args:
            roles: of the messages.
            add_generation_prompt: end with what makes the model answer.
            untrained: numbers of answers, from 0, that are not trained on, nor what ends them.

        Raises:
            InputError: the template refuses such a chat, or changes or leaves out a message.
        """
        key = (tuple(roles), add_generation_prompt, untrained)
        if key not in self._parts:
            self._parts[key] = self._render(*key)
        return self._parts[key]

    def _render(self, roles: tuple[Role, ...], add_generation_prompt: bool, untrained: frozenset[int]) -> list[Part]:
        messages = [{"role": role, "content": _MESSAGE.format(index)} for index, role in enumerate(roles)]
        values = {"messages": messages, "add_generation_prompt": add_generation_prompt, **self._roles}
        try:
            rendered = self._template.render(values)
        except (jinja2.TemplateError, TypeError) as error:
            raise InputError(f"{self._name}: refuses a chat of {', '.join(roles)}: {error}") from None
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
            raise InputError(f"{self._name}: changes, moves or leaves out messages of a chat of {', '.join(roles)}")
        return parts
