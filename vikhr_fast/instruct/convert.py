"""`instruct convert`: an instruction set of any known schema becomes conversations of one."""

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from vikhr_fast.chat.conversation import Conversation, checked_messages, write_conversations
from vikhr_fast.data.read import read_objects, readable_values
from vikhr_fast.data.sources import source_files
from vikhr_fast.data.text_lines import CutShortError
from vikhr_fast.errors import InputError
from vikhr_fast.instruct.schemas import messages_of
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import atomic_directory, copied_json, write_json_lines

CONVERSATIONS, REJECTED = "conversations.jsonl", "rejected.jsonl"
_SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class Convert:
    """Reads an instruction set and writes OUTPUT/conversations.jsonl: {id, source, language, messages} a line.

    Known by their fields: Veles-2.5 and ShareGPT (conversations), Nectar (prompt, answers), the Saiga family and plain
    chats (messages), ru_turbo_alpaca and Alpaca (instruction, output), ruFLAN (inputs, targets). Rows that cannot be
    used are in OUTPUT/rejected.jsonl with the reason.
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


def convert(options: Convert) -> None:
    """Writes `options.output`, complete or not at all.

    Raises:
        InputError: a file that is missing, of an unknown kind or cut short, or no row that can be used.
    """
    files = [file for pattern in options.input for file in source_files(pattern)]
    rejected: list[dict[str, object]] = []
    with atomic_directory(options.output) as directory:
        count = write_conversations(directory / CONVERSATIONS, _conversations(files, options, rejected))
        if not count:
            shown = rejected[0]["reason"] if rejected else "there are no rows"
            raise InputError(f"{', '.join(map(str, options.input))}: no row can be used; {shown}")
        write_json_lines(directory / REJECTED, rejected)
    logger.info(f"instruct convert: {options.output}: {count:,} conversations, {len(rejected):,} rows rejected")


def language_of(text: str) -> str:
    """ru where Cyrillic letters prevail, en where Latin ones do, und without either."""
    cyrillic = sum("\u0400" <= character <= "\u04ff" for character in text)
    latin = sum("a" <= character <= "z" for character in text.lower())
    return "und" if not cyrillic + latin else "ru" if cyrillic >= latin else "en"


def _conversations(files: list[Path], options: Convert, rejected: list[dict[str, object]]) -> Iterator[Conversation]:
    """The rows that can be used; the others' reasons go to `rejected`."""
    seen, not_nfc = 0, 0

    def reject(path: Path, number: int, error: InputError, row: Mapping[str, Any] | None = None) -> None:
        if isinstance(error, CutShortError):
            raise error
        shown = copied_json(row and readable_values(row)[0])[0][:_SHOWN_CHARACTERS]
        rejected.append({"file": str(path), "number": number, "reason": str(error), "row": shown})

    for file in files:
        for number, row in read_objects(file, reject):
            seen += 1
            try:
                messages = checked_messages(messages_of(row))
            except InputError as error:
                reject(file, number, error, row)
                continue
            said = " ".join(message.content for message in messages)
            not_nfc += not unicodedata.is_normalized("NFC", said)
            language = language_of(said) if options.language == "auto" else options.language
            yield Conversation(f"{options.source}-{seen}", options.source, language, messages)
    if not_nfc:
        reason = "й may be two characters in them, and take more tokens; normalise them before"
        logger.warning(f"instruct convert: {options.output}: {not_nfc:,} conversations are not in NFC: {reason}")
