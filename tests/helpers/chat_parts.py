"""The parts of one chat, for tests."""

from collections.abc import Sequence

from vikhr_fast.chat.template import ChatTemplate, Message, Part
from vikhr_fast.errors import InputError


def parts_of(template: ChatTemplate, chat: Sequence[Message]) -> list[Part]:
    """Raises InputError where the template refuses it."""
    (found,) = template.parts([chat], add_generation_prompt=False)
    if isinstance(found, InputError):
        raise found
    return found
