"""`corpus scrub`: private strings give way to tags."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import phonenumbers
import pyarrow as pa
from tyro.conf import Positional, arg

from vikhr_fast.corpus.private_strings import FINDERS, Kind
from vikhr_fast.corpus.settings import ScrubStage
from vikhr_fast.corpus.stage import Transformed, document_stage, gather, is_finished, transform_part, work_of
from vikhr_fast.data.documents import Counts, Documents, add_counts
from vikhr_fast.data.read import read_objects
from vikhr_fast.errors import InputError
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import write_json_lines
from vikhr_fast.io.progress import tracked

REPLACED = "replaced.jsonl"
_AROUND = 60  # characters of the text on either side of a string in the sample
_SHOWN = 200  # of a string: a key may be long


@dataclass(frozen=True)
class Scrub:
    """Replaces e-mail addresses, phone numbers, public IP addresses and keys by tags, and counts them.

    `vikhr-fast report OUTPUT` makes a page of the sample in OUTPUT/replaced.jsonl. Both hold personal data.
    """

    input: Annotated[Path, Positional]
    """Documents that an earlier stage wrote."""
    output: Path
    """Directory to make."""
    settings: Annotated[ScrubStage, arg(name="")] = field(default_factory=ScrubStage)
    """What is replaced."""


def scrub(options: Scrub) -> None:
    """Writes `options.output`, complete or not at all; interrupted, the same command goes on."""
    settings = options.settings
    if settings.region not in phonenumbers.SUPPORTED_REGIONS:
        raise InputError(f"scrub: region {settings.region}: no such country; take its two letters, as RU")
    documents = Documents.open(options.input)
    work = work_of("scrub", settings, input=documents.sha256)
    if is_finished(options.output, work, settings):
        return

    def transform(table: pa.Table) -> Transformed:
        texts, counts, notes = [], Counts(), []
        for row in table.select(["id", "text", "source"]).to_pylist():
            place = {"source": row["source"], "id": row["id"]}

            def note(kind: Kind, text: str, start: int, stop: int, place: dict[str, str] = place) -> None:
                notes.append(_note(place, kind, text, start, stop))

            scrubbed, found = scrub_text(row["text"], settings, note if settings.sample else None)
            texts.append(scrubbed)
            add_counts(counts, {row["source"]: found})
        made = table.set_column(1, "text", pa.array(texts, pa.large_string()))
        return Transformed(made, counts, _sampled(notes, settings.sample))

    with document_stage(options.output, work, settings) as (directory, scratch, counts):
        for part in tracked("scrub", documents.parts):
            transform_part(part, directory, scratch, transform)
        gather(directory, scratch, counts)
        if settings.sample:
            notes = [dict(note) for file in sorted(scratch.glob("part-*.jsonl")) for _, note in read_objects(file)]
            write_json_lines(directory / REPLACED, _sampled(notes, settings.sample))
    if settings.sample:
        logger.info(f"{options.output / REPLACED}: a sample of what was replaced; it holds personal data")


def scrub_text(
    text: str, settings: ScrubStage, note: Callable[[Kind, str, int, int], None] | None = None
) -> tuple[str, dict[str, int]]:
    """The text with tags, and how many of each kind of string there were.

    Args:
        text: of a document.
        settings: what is replaced.
        note: is told of each string: its kind, the text that it stands in, where it starts and ends there.
    """
    counts: dict[str, int] = {}
    for kind, find in FINDERS.items():
        if kind not in settings.kinds:
            continue
        pieces, end = [], 0
        for start, stop in find(text, settings.region):
            if note:
                note(kind, text, start, stop)
            pieces += [text[end:start], f"[{kind.upper()}]"]
            end = stop
        counts[kind] = len(pieces) // 2
        text = "".join([*pieces, text[end:]])
    return text, counts


def _note(place: dict[str, str], kind: Kind, text: str, start: int, stop: int) -> dict[str, Any]:
    """A string with what is around it. Its order in the sample is that of a hash: drawn at random, always the same."""
    digest = hashlib.sha256(f"{place} {kind} {start}".encode()).hexdigest()[:16]
    before, after = text[max(0, start - _AROUND) : start], text[stop : stop + _AROUND]
    return {
        **place,
        "kind": kind,
        "before": before,
        "found": text[start:stop][:_SHOWN],
        "after": after,
        "order": digest,
    }


def _sampled(notes: Iterable[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """So many notes of each kind."""
    chosen: dict[str, list[dict[str, Any]]] = {kind: [] for kind in FINDERS}
    for note in sorted(notes, key=lambda note: str(note["order"])):
        if len(own := chosen[note["kind"]]) < count:
            own.append(note)
    return [note for own in chosen.values() for note in own]
