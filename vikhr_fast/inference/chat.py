"""`generate chat`: a conversation in the terminal."""

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from vikhr_fast.chat.template import Message
from vikhr_fast.errors import InputError
from vikhr_fast.inference.engine import ChatEngine, shown_text
from vikhr_fast.inference.sampling import Sampling
from vikhr_fast.io.console import logger
from vikhr_fast.io.plain import plain
from vikhr_fast.model.devices import Device
from vikhr_fast.tokenizer.lost_bytes import LostBytes


@dataclass(frozen=True)
class GenerateChat:
    """Talks with a model. Ctrl-D ends it; a line with /new alone begins a new conversation."""

    model: Annotated[Path, Positional]
    """Hugging Face directory with tokenizer and chat template."""
    system: str = ""
    """What the model is told beforehand."""
    sampling: Annotated[Sampling, arg(name="")] = field(default_factory=Sampling)
    """How answers are drawn."""
    device: Device = "auto"
    """auto is CUDA where there is a GPU."""


def chat(options: GenerateChat) -> None:
    """Reads lines from standard input until it ends, and writes each answer as it comes.

    Raises:
        InputError: a model or settings that cannot be used.
    """
    options.sampling.refuse_impossible()
    engine = ChatEngine(options.model, options.device)
    engine.stop_ids(options.sampling)
    begin = [Message("system", options.system)] if options.system else []
    messages, number = begin, 0
    while (line := _read_line()) is not None:
        if line.strip() == "/new":
            messages = begin
        elif line.strip():
            asked = [*messages, Message("user", line)]
            try:
                asked, prompt = fitting(engine, asked, len(begin), options.sampling.max_tokens)
            except InputError as error:
                logger.warning(f"{error}; the message is left out")
                continue
            lost = LostBytes(engine.tokenizer)
            lost.count([line])
            lost.warn()
            answer = _print_answer(engine, prompt, options.sampling, number)
            messages, number = [*asked, Message("assistant", answer)], number + 1


def fitting(engine: ChatEngine, messages: list[Message], kept: int, room: int) -> tuple[list[Message], list[int]]:
    """The messages that leave room for an answer, and their prompt: the oldest exchanges are forgotten first.

    Args:
        engine: the model.
        messages: all so far, the user's last.
        kept: how many at the beginning are never forgotten.
        room: tokens wanted for the answer; at least half of the positions are for the messages.

    Raises:
        InputError: the last message alone takes too much.
    """
    limit = engine.positions - min(room, engine.positions // 2)
    while len(messages) > kept + 1:
        with suppress(InputError):
            if len(prompt := engine.prompt(messages)) <= limit:
                return messages, prompt
        messages = [*messages[:kept], *messages[kept + 2 :]]
    return messages, engine.prompt(messages)


def _read_line() -> str | None:
    if sys.stdin.isatty():
        print("> ", end="", flush=True)
    line = sys.stdin.buffer.readline()
    return line.decode("utf-8", "replace").rstrip("\r\n") if line else None


def _print_answer(engine: ChatEngine, prompt: list[int], sampling: Sampling, number: int) -> str:
    stop, shown = engine.stop_ids(sampling), ""
    ids: list[int] = []
    for step in engine.stream([prompt], sampling, [number]):
        if step[0] not in stop:
            ids.append(step[0])
            text = shown_text(engine.tokenizer, ids)
            print(plain(text[len(shown) :]), end="", flush=True)
            shown = text
    whole = engine.tokenizer.decode(ids)
    print(plain(whole[len(shown) :]), flush=True)
    return whole
