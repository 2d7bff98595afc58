"""`generate batch`: a file of prompts becomes a file of answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from vikhr_fast.chat.template import Message
from vikhr_fast.data.read import read_objects, readable_values
from vikhr_fast.data.text_lines import CutShortError
from vikhr_fast.errors import InputError, require
from vikhr_fast.inference.engine import ChatEngine
from vikhr_fast.inference.sampling import Sampling
from vikhr_fast.instruct.schemas import said, with_fields_beside
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import atomic_file, copied_json, refuse_existing
from vikhr_fast.io.progress import progress_bar
from vikhr_fast.model.devices import Device
from vikhr_fast.tokenizer.lost_bytes import LostBytes

_OURS = {"answer", "tokens", "complete", "error"}  # an earlier run's are not this one's


@dataclass(frozen=True)
class GenerateBatch:
    """Answers the prompts of a file, line by line.

    A line is {"prompt": TEXT} or {"messages": [{"role": ..., "content": ...}, ...]}, the user's last; a "system" and a
    "history" may stand beside it. It comes back with "answer", "tokens" and "complete" (false where --max-tokens or the
    model's positions broke it off), or with "error" where it cannot be answered.
    """

    model: Annotated[Path, Positional]
    """Hugging Face directory with tokenizer and chat template."""
    input: Path
    """Prompts (.jsonl, .json, .parquet)."""
    output: Path
    """JSONL file to make."""
    sampling: Annotated[Sampling, arg(name="")] = field(default_factory=Sampling)
    """How answers are drawn."""
    batch: int = 8
    """Prompts answered together, of about the same length."""
    device: Device = "auto"
    """auto is CUDA where there is a GPU."""


def generate_batch(options: GenerateBatch) -> None:
    """Writes `options.output`, complete or not at all.

    Raises:
        InputError: a model, settings or a file that cannot be used, or not to its end; lines that cannot be answered
            only say so.
    """
    options.sampling.refuse_impossible()
    require(options, batch=(options.batch >= 1, "1 or more"))
    refuse_existing(options.output)
    rows = _rows(options.input)
    engine = ChatEngine(options.model, options.device)
    engine.stop_ids(options.sampling)
    prompts: dict[int, list[int]] = {}
    lost = LostBytes(engine.tokenizer)
    for number, row in enumerate(rows):
        try:
            if "error" not in row:
                prompts[number] = engine.prompt(chat := chat_of(row))
                lost.count(message.content for message in chat)
        except InputError as error:
            row["error"] = str(error)
    order = sorted(prompts, key=lambda number: (-len(prompts[number]), number))  # the longest first, where memory shows
    with progress_bar("generate", len(order)) as advance:
        for start in range(0, len(order), options.batch):
            numbers = order[start : start + options.batch]
            answers = engine.answer([prompts[number] for number in numbers], options.sampling, numbers)
            for number, answer in zip(numbers, answers, strict=True):
                rows[number] |= {"answer": answer.text, "tokens": len(answer.ids), "complete": answer.is_complete}
            advance(len(numbers))
    lost.warn()
    replaced = 0
    with atomic_file(options.output) as file:
        for row in rows:
            text, is_replaced = copied_json(row)
            file.write(text.encode("utf-8") + b"\n")
            replaced += is_replaced
    logger.info(f"generate: {options.output}: {len(prompts):,} answers, {len(rows) - len(prompts):,} errors")
    if replaced:
        what = "NaN, infinity or half of a surrogate pair, which JSON has not"
        logger.warning(f"generate: {options.output}: {replaced:,} lines held {what}: null or ? stands there")


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines without what an earlier run added; with "error" where one cannot be read, or not all of it."""
    rows: list[dict[str, Any]] = []

    def note(_path: Path, _number: int, error: InputError) -> None:
        if isinstance(error, CutShortError):
            raise error
        rows.append({"error": str(error)})

    for number, record in read_objects(path, note):
        values, wrong = readable_values(record)
        row = {name: value for name, value in values.items() if name not in _OURS}
        rows.append({**row, "error": f"{path}: row {number}: {wrong}"} if wrong else row)
    return rows


def chat_of(row: Mapping[str, Any]) -> list[Message]:
    """The chat that a line asks to go on with, a system message or history beside it included; InputError without one.

    What a chat cannot hold (tools, images) is an error, too.
    """
    is_chat = not isinstance(row.get("prompt"), str)
    if is_chat and not row.get("messages"):
        raise InputError('no text in "prompt" and no list in "messages"')
    told = said(row, "messages", "user") if is_chat else [{"role": "user", "content": row["prompt"]}]
    messages = with_fields_beside(row, told, is_chat)
    if not all(isinstance(message["content"], str) for message in messages):
        raise InputError("a message without text")
    if not messages or messages[-1]["role"] != "user":
        raise InputError("the last message is not the user's")
    return [Message(message["role"], message["content"]) for message in messages]
