"""`generate complete`: a text goes on, without any chat."""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from vikhr_fast.errors import InputError
from vikhr_fast.inference.engine import Engine, shown_text
from vikhr_fast.inference.sampling import Sampling
from vikhr_fast.io.plain import plain
from vikhr_fast.model.devices import Device
from vikhr_fast.tokenizer.lost_bytes import LostBytes


@dataclass(frozen=True)
class GenerateComplete:
    """Goes on with texts as a model does that has been pre-trained and not yet tuned: without a chat template.

    Each text is the beginning of a document of its own. It is printed with what the model makes of it.
    """

    model: Annotated[Path, Positional]
    """Hugging Face directory with tokenizer."""
    text: tuple[str, ...] = ()
    """Beginnings of texts; without any, all of standard input is one."""
    sampling: Annotated[Sampling, arg(name="")] = field(default_factory=partial(Sampling, max_tokens=100))
    """How the tokens are drawn."""
    device: Device = "auto"
    """auto is CUDA where there is a GPU."""


def complete(options: GenerateComplete) -> None:
    """Writes each text as it grows, a blank line between two.

    Raises:
        InputError: a model, settings or a text that cannot be used.
    """
    options.sampling.refuse_impossible()
    texts = options.text or (_standard_input(),)
    engine = Engine(options.model, options.device)
    stop = engine.stop_ids(options.sampling)
    prompts = [_prompt(engine, text) for text in texts]
    for number, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        print("\n" * (number > 0) + plain(text), end="", flush=True)
        ids = list(prompt)
        before = len(engine.tokenizer.decode(prompt))
        shown = ""
        for step in engine.stream([prompt], options.sampling, [number]):
            if step[0] not in stop:
                ids.append(step[0])
                # Decoded with the text before them: a piece may begin with a space that stands at no beginning.
                grown = shown_text(engine.tokenizer, ids)[before:]
                print(plain(grown[len(shown) :]), end="", flush=True)
                shown = grown
        print(plain(engine.tokenizer.decode(ids)[before + len(shown) :]), flush=True)


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: byte {error.start}: not UTF-8; give text") from None


def _prompt(engine: Engine, text: str) -> list[int]:
    tokenizer = engine.tokenizer
    begin = [tokenizer.bos_id] if tokenizer.bos_id >= 0 else []
    try:
        ids = [*begin, *tokenizer.encode(text).tolist()]
    except ValueError as error:
        raise InputError(f"the text is not valid: {error}") from None
    if not ids:
        raise InputError("--text: empty, and this tokenizer has no BOS to begin with; give some text")
    lost = LostBytes(tokenizer)
    lost.count([text])
    lost.warn()
    return engine.require_room(ids)
