"""What the stages have in common: parts in, parts out, resumable, with a progress bar and a summary."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pydantic
from rich.table import Table

from vikhr_fast.config import validated
from vikhr_fast.data.documents import (
    MANIFEST,
    Counts,
    Documents,
    add_counts,
    count_documents,
    read_footer,
    read_part,
    write_manifest,
    write_part,
)
from vikhr_fast.errors import InputError
from vikhr_fast.io.console import console, logger
from vikhr_fast.io.files import atomic_file, write_json_lines
from vikhr_fast.io.guarded import read_json
from vikhr_fast.io.progress import tracked
from vikhr_fast.io.resumable import is_same_work, resumable_directory, scratch_of


class Transformed(NamedTuple):
    """What a stage makes of a part."""

    table: pa.Table
    counts: Counts
    """What there is to count besides the documents and bytes of `table`."""
    notes: list[dict[str, Any]]
    """Records for the stage's side file."""


def work_of(stage: str, settings: Any, **inputs: Any) -> dict[str, Any]:
    """All that a stage's output depends on, as JSON values; InputError where settings from flags are impossible."""
    adapter = pydantic.TypeAdapter(type(settings))
    validated(adapter, asdict(settings), stage)
    return {"stage": stage, "settings": adapter.dump_python(settings, mode="json"), **inputs}


def read_work(directory: Path) -> dict[str, Any]:
    """What a stage's output was made of; InputError where its manifest is missing or damaged."""
    advice = f"remove {directory} and make it again"
    manifest = read_json(directory / MANIFEST, advice)
    if not isinstance(work := manifest.get("work"), dict):
        raise InputError(f"{directory / MANIFEST}: damaged: says nothing about its input; {advice}")
    return work


def is_finished(output: Path, work: dict[str, Any], settings: Any) -> bool:
    """Whether a stage's output is there, made of the same work; says so.

    Args:
        output: the stage's.
        work: see `work_of`.
        settings: see `is_same_work`.

    Raises:
        InputError: the output is there, but made of other work, or damaged.
    """
    if not output.exists():
        return False
    if not is_same_work(read_work(output), work, settings):
        raise InputError(f"{output}: made of other input or settings; remove it or take another output")
    logger.info(f"{work['stage']}: done before, {output}")
    return True


@contextmanager
def document_stage(output: Path, work: dict[str, Any], settings: Any) -> Iterator[tuple[Path, Path, Counts]]:
    """Gives a directory for parts, one for scratch files, and the counts to fill; ends with the manifest and a table.

    Raises:
        InputError: see `resumable_directory`.
    """
    counts: Counts = {}
    with resumable_directory(output, work, settings) as directory:
        yield directory, scratch_of(directory), counts
        write_manifest(directory, work["stage"], work, counts)
    show_counts(f"{work['stage']}: {output}", counts)


def map_parts(
    documents: Documents,
    output: Path,
    work: dict[str, Any],
    settings: Any,
    transform: Callable[[pa.Table], Transformed],
    side_file: str | None = None,
) -> None:
    """Writes `output` with each part of `documents` transformed, but for those that an earlier try finished.

    Args:
        documents: the input.
        output: the directory to make.
        work: see `work_of`.
        settings: see `is_same_work`.
        transform: one part; the same result every time.
        side_file: where the notes go, as JSON lines; needed when `transform` makes any.

    Raises:
        InputError: no document is left, and what `transform` raises.
    """
    with document_stage(output, work, settings) as (directory, scratch, counts):
        for part in tracked(work["stage"], documents.parts):
            transform_part(part, directory, scratch, transform)
        gather(directory, scratch, counts, side_file)
        if not any(source.get("documents") for source in counts.values()):
            raise InputError(f"{documents.directory}: {work['stage']} leaves no document of it; change the settings")


def transform_part(part: Path, directory: Path, scratch: Path, transform: Callable[[pa.Table], Transformed]) -> None:
    """Writes one part and its notes, unless they are there."""
    target = directory / part.name
    if target.exists():
        return
    table, counts, notes = transform(read_part(part))
    write_json_lines(scratch / f"{part.stem}.jsonl", notes)
    add_counts(counts, count_documents(table))
    write_part(target, table, {"counts": counts})


def gather(directory: Path, scratch: Path, counts: Counts, side_file: str | None = None) -> None:
    """Adds up the counts of all parts, and puts their notes into one file."""
    parts = sorted(directory.glob("part-*.parquet"))
    for part in parts:
        add_counts(counts, read_footer(part)["counts"])
    if side_file:
        with atomic_file(directory / side_file) as file:
            for part in parts:
                file.write((scratch / f"{part.stem}.jsonl").read_bytes())


def show_counts(title: str, counts: Counts) -> None:
    """The summary: a row a source; a line on a console that is a file."""
    names = list(dict.fromkeys(name for source in counts.values() for name in source))
    if not console.is_terminal:
        for source, own in counts.items():
            logger.info(f"{title}: {source}: " + ", ".join(f"{own.get(name, 0):,} {name}" for name in names))
        return
    table = Table(title=title, title_justify="left")
    table.add_column("source")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for source, own in counts.items():
        table.add_row(source, *(f"{own.get(name, 0):,}" for name in names))
    console.print(table)
