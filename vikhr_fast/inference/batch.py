"""`generate batch`: a file of prompts becomes a file of answers."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from vikhr_fast.chat.template import Message
from vikhr_fast.data.read import read_objects
from vikhr_fast.errors import InputError, require
from vikhr_fast.inference.engine import Engine
from vikhr_fast.inference.sampling import Sampling
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import atomic_file, refuse_existing
from vikhr_fast.io.progress import progress_bar
from vikhr_fast.model.devices import Device
from vikhr_fast.tokenizer.chat_template import ROLES

_OURS = {"answer", "tokens", "complete", "error"}  # an earlier run's are not this one's


@dataclass(frozen=True)
class GenerateBatch:
    """Answers the prompts of a file, line by line.

    A line is {"prompt": TEXT} or {"messages": [{"role": ..., "content": ...}, ...]}, the user's last. It comes back
    with "answer", "tokens" and "complete" (false where --max-tokens or the model's positions broke it off), or with
    "error" where it cannot be answered.
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
        InputError: a model, settings or a file that cannot be used; lines that cannot be answered only say so.
    """
    options.sampling.refuse_impossible()
    require(options, batch=(options.batch >= 1, "1 or more"))
    refuse_existing(options.output)
    rows: list[dict[str, Any]] = []
    for _, record in read_objects(options.input, lambda _path, _number, error: rows.append({"error": str(error)})):
        rows.append({name: value for name, value in record.items() if name not in _OURS})
    engine = Engine(options.model, options.device)
    engine.stop_ids(options.sampling)
    prompts: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        try:
            if "error" not in row:
                prompts[number] = engine.prompt(chat_of(row))
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
    with atomic_file(options.output) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False, default=str) + "\n").encode("utf-8", "replace"))
    logger.info(f"generate: {options.output}: {len(prompts):,} answers, {len(rows) - len(prompts):,} errors")


def chat_of(row: dict[str, Any]) -> list[Message]:
    """The chat that a line asks to go on with; InputError where it has none."""
    if isinstance(row.get("prompt"), str):
        return [Message("user", row["prompt"])]
    if not isinstance(row.get("messages"), list) or not row["messages"]:
        raise InputError('no text in "prompt" and no list in "messages"')
    for value in row["messages"]:
        if not (isinstance(value, dict) and value.get("role") in ROLES and isinstance(value.get("content"), str)):
            raise InputError('a message without a known "role" or without text in "content"')
    if row["messages"][-1]["role"] != "user":
        raise InputError("the last message is not the user's")
    return [Message(value["role"], value["content"]) for value in row["messages"]]
