"""`instruct convert`: an instruction set of any known schema becomes conversations of one."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from tyro.conf import Positional

from vikhr_fast.chat.conversation import Conversation, checked_messages, write_conversations
from vikhr_fast.data.documents import MANIFEST
from vikhr_fast.data.read import read_objects
from vikhr_fast.data.sources import source_files
from vikhr_fast.data.text_lines import MAX_MEGABYTES, line_bytes
from vikhr_fast.errors import InputError
from vikhr_fast.instruct.rejected import Rejected
from vikhr_fast.instruct.schemas import Messages, fields_beside, messages_of
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import atomic_directory, write_json

CONVERSATIONS = "conversations.jsonl"
_CYRILLIC, _LATIN = re.compile("[\u0400-\u04ff]"), re.compile("[a-z]")


@dataclass(frozen=True)
class Convert:
    """Reads an instruction set and writes OUTPUT/conversations.jsonl: {id, source, language, messages} a line.

    Known by their fields: Veles-2.5, ShareGPT, the Saiga family and plain chats (conversations or messages), Nectar
    (prompt, answers), ru_turbo_alpaca and Alpaca (instruction, output), ruFLAN (inputs, targets), OpenOrca (question,
    response), and prompt with response or completion. A system prompt and a history beside them are kept, and so are
    answers that are not to be trained on (weight 0), marked as such. Rows that cannot be used, or would mean something
    else without their tools, images or reasoning, are in OUTPUT/rejected.jsonl with the reason; OUTPUT/manifest.json
    counts all this, and names the columns that were dropped.
    """

    input: Annotated[tuple[Path, ...], Positional]
    """Files (.jsonl, .json, .parquet; .jsonl also as .gz or .zst), patterns, or raw files of a data set of the Hub,
    hf:OWNER/NAME@COMMIT:PATTERN."""
    source: str
    """Name of the source."""
    output: Path
    """Directory to make."""
    language: str = "auto"
    """ISO 639 code of the language; auto looks at each conversation's script: ru, en, or und."""
    max_line: float = MAX_MEGABYTES
    """MB that a line may take; a longer one is rejected without being held."""


def convert(options: Convert) -> None:
    """Writes `options.output`, complete or not at all.

    Raises:
        InputError: a file that is missing, of an unknown kind or cut short, or no row that can be used.
    """
    files = [file for pattern in options.input for file in source_files(pattern)]
    rejected, counts = Rejected(), _Counts(*(Counter() for _ in _Counts._fields))
    with atomic_directory(options.output) as directory:
        count = write_conversations(directory / CONVERSATIONS, _conversations(files, options, rejected, counts))
        if not count:
            raise InputError(f"{', '.join(map(str, options.input))}: no row can be used; {rejected.why_none()}")
        rejected.write(directory)
        found = {"conversations": count, "rejected": len(rejected), **counts._asdict()}
        write_json(directory / MANIFEST, {"stage": "instruct convert", **found})
    logger.info(f"instruct convert: {options.output}: {count:,} conversations, {len(rejected):,} rows rejected")
    for what, own in counts._asdict().items():
        if own:
            shown = ", ".join(f"{name} ({number:,})" for name, number in own.items())
            logger.info(f"instruct convert: {options.output}: {what.replace('_', ' ')}: {shown}")


def language_of(text: str) -> str:
    """ru where Cyrillic letters prevail, en where Latin ones do, und without either."""
    cyrillic, latin = len(_CYRILLIC.findall(text)), len(_LATIN.findall(text.lower()))
    return "und" if not cyrillic + latin else "ru" if cyrillic >= latin else "en"


class _Counts(NamedTuple):
    """What became of fields and turns, each by its name."""

    kept_columns: Counter[str]
    """Besides the turns: system messages and history."""
    dropped_columns: Counter[str]
    untrained_answers: Counter[str]
    """`kept` before others, or `left out` where no trained one follows."""
    not_in_nfc: Counter[str]
    """`conversations` in which й, say, may be two characters, which take more tokens; normalise them before."""


def _conversations(files: list[Path], options: Convert, rejected: Rejected, counts: _Counts) -> Iterator[Conversation]:
    """The rows that can be used; the others' reasons go to `rejected`."""
    seen = 0
    max_line = line_bytes(options)
    for file in files:
        for number, row in read_objects(file, rejected, max_line):
            seen += 1
            try:
                told = messages_of(row)
                messages = checked_messages(_up_to_the_last_trained(told))
            except InputError as error:
                rejected(file, number, error, row)
                continue
            kept, dropped = fields_beside(row)
            counts.kept_columns.update(kept)
            counts.dropped_columns.update(dropped)
            if untrained := sum(not message.is_trained for message in messages):
                counts.untrained_answers["kept"] += untrained
            if left_out := (len(told) - len(messages)) // 2:
                counts.untrained_answers["left out"] += left_out
            said = " ".join(message.content for message in messages)
            if not unicodedata.is_normalized("NFC", said):
                counts.not_in_nfc["conversations"] += 1
            language = language_of(said) if options.language == "auto" else options.language
            yield Conversation(f"{options.source}-{seen}", options.source, language, messages)


def _up_to_the_last_trained(messages: Messages) -> Messages:
    """Without the turns at the end that are not trained on: nothing depends on them."""
    marks = [message.get("train", True) for message in messages if message["role"] == "assistant"]
    if marks and not any(marks):
        raise InputError("no answer is to be trained on")
    end = len(messages)
    while end > 0 and messages[end - 1].get("train") is False:
        end -= 2
    return messages[:end]
