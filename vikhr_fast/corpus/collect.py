"""From named sources of every kind to documents with one schema."""

import unicodedata
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pydantic
from tyro.conf import Positional

from vikhr_fast.config import validated
from vikhr_fast.corpus.expressions import Expression
from vikhr_fast.corpus.settings import CorpusSettings, SourceSettings, read_settings
from vikhr_fast.corpus.stage import document_stage, gather, is_finished, work_of
from vikhr_fast.data.documents import SCHEMA, Counts, add_counts, count_documents, part_name, read_footer, write_part
from vikhr_fast.data.read import Columns, Document
from vikhr_fast.data.sources import checksums, read_source
from vikhr_fast.data.text_lines import MAX_MEGABYTES, CutShortError, line_bytes
from vikhr_fast.errors import InputError
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import copied_json, write_json_lines
from vikhr_fast.io.guarded import parse_json
from vikhr_fast.io.progress import progress_bar

REJECTED = "rejected.jsonl"
_COUNTS = ("read", "rejected", "filtered_out")
_SPOOL_ROWS = 1024
_WARNINGS = {
    "cut_short": "files could not be read to their end; what followed in them is missing",
    "without_id": "records have no value in their `id`; their place names them",
    "meta_replaced": "records have NaN, infinity or half of a surrogate pair in `meta` or `id`; null or ? replaces it",
    "not_nfc": 'texts are not in NFC: й may be two characters in them, and take more tokens; normalise = "NFC" under '
    "[collect] mends them",
}
"""What is said of counts that are there only where they are not 0."""


@dataclass(frozen=True)
class Collect:
    """Reads the sources of a corpus.toml into documents {id, text, source, meta}.

    Records that cannot be read go to OUTPUT/rejected.jsonl with file, line and reason; the run goes on. So it does with
    the next file where one is damaged or cut short: it counts as `cut_short`.
    """

    config: Annotated[Path, Positional]
    """The corpus.toml."""
    output: Path
    """Directory to make."""


@dataclass(frozen=True)
class _Footer:
    """What a part says of itself."""

    source: str
    selected: int
    """Records."""
    is_last: bool
    """Whether its source ends with it."""
    counts: Counts


_FOOTER = pydantic.TypeAdapter(_Footer)


class _Selected(NamedTuple):
    id: str
    text: str
    meta: str


def collect(options: Collect) -> None:
    """Writes `options.output`, complete or not at all; interrupted, the same command goes on.

    Raises:
        InputError: a wrong config, sources that do not exist, or no document in all of them.
    """
    settings, output = read_settings(options.config), options.output
    work = _work(settings)
    kinds = {"sources": {name: {"settings": source} for name, source in settings.sources.items()}}
    if is_finished(output, work, kinds):
        return
    with document_stage(output, work, kinds) as (directory, scratch, counts), progress_bar("collect") as advance:
        parts = sorted(directory.glob("part-*.parquet"))
        done = [validated(_FOOTER, read_footer(part), f"{part}: damaged", "remove it") for part in parts]
        advance(sum(sum(c.get("documents", 0) for c in footer.counts.values()) for footer in done))
        number = len(parts)
        for name, source in settings.sources.items():
            own = [footer for footer in done if footer.source == name]
            if own and own[-1].is_last:
                continue
            reader = _SourceReader(name, source, scratch, settings)
            for table, footer in reader.parts(sum(footer.selected for footer in own)):
                # Written first: a part that exists has its notes.
                write_json_lines(scratch / f"{Path(part_name(number)).stem}.jsonl", reader.take_notes())
                write_part(directory / part_name(number), table, footer)
                advance(table.num_rows)
                number += 1
        gather(directory, scratch, counts, REJECTED)
        if not any(source.get("documents") for source in counts.values()):
            raise InputError(_why_none(counts, directory / REJECTED))
    for name, source_counts in counts.items():
        if not source_counts.get("documents"):
            logger.warning(f"collect: source {name}: no document")
        if bad := source_counts["rejected"]:
            logger.warning(f"collect: source {name}: bad records: {bad:,}, see {output / REJECTED}")
        for kind, said in _WARNINGS.items():
            if found := source_counts.get(kind):
                logger.warning(f"collect: source {name}: {found:,} {said}")


def _why_none(counts: Counts, rejected: Path) -> str:
    """A line about sources without any document."""
    with rejected.open(encoding="utf-8") as file:
        first = file.readline()
    bad = f"; bad records, the first: {parse_json(first)['reason']}" if first else ""
    left_out = sum(source["filtered_out"] for source in counts.values())
    return f"{', '.join(counts)}: no document in all sources together; {left_out:,} filtered out by `where`{bad}"


def _work(settings: CorpusSettings) -> dict[str, Any]:
    """What the collected documents depend on: settings, and the checksums of all files."""
    sources = {}
    for name, source in settings.sources.items():
        values = work_of("collect", source)["settings"]
        del values["weight"], values["kl_weight"]  # they say what becomes of the documents later
        sources[name] = {"settings": values, "files": checksums(source.input)}
    own: dict[str, Any] = {"part_bytes": settings.part_bytes}
    if settings.collect.normalise:  # records of earlier versions lack both
        own["normalise"] = settings.collect.normalise
    if settings.collect.max_line != MAX_MEGABYTES:
        own["max_line"] = settings.collect.max_line
    return {"stage": "collect", "settings": own, "sources": sources}


class _SourceReader:
    """The selected records of one source, in parts."""

    def __init__(self, name: str, settings: SourceSettings, scratch: Path, corpus: CorpusSettings) -> None:
        self._name, self._settings, self._part_bytes = name, settings, corpus.part_bytes
        self._is_normalised = corpus.collect.normalise is not None
        self._max_line = line_bytes(corpus.collect)
        self._spool = scratch / "spool.arrow"
        self._where = Expression(settings.where, f"sources.{name}.where") if settings.where is not None else None
        self._key = Expression(settings.sort_by, f"sources.{name}.sort_by") if settings.sort_by is not None else None
        fields = {*settings.meta, *((settings.id,) if settings.id else ())}
        for expression in (self._where, self._key):
            fields.update(expression.fields if expression else ())
        self._columns = Columns(settings.text, tuple(sorted(fields - {"text"})))
        self._notes: list[dict[str, Any]] = []
        self._counts = dict.fromkeys(_COUNTS, 0)

    def take_notes(self) -> list[dict[str, Any]]:
        """The bad records since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def parts(self, start: int) -> Iterator[tuple[pa.Table, dict[str, Any]]]:
        """Parts from the selected record `start` on, each with its footer."""
        taken = (self._selected(record, number) for number, record in self._taken())
        records = islice(self._ordered() if self._key else taken, self._settings.top)
        if start:
            for _ in islice(records, start):
                pass
            # What had been seen by then is in the finished parts. Sorted sources are read to their end at the start.
            self._notes.clear()
            self._counts = dict.fromkeys(_COUNTS, 0)
        rows: list[_Selected] = []
        size = 0
        for record in records:
            rows.append(record)
            size += len(record.text.encode("utf-8"))
            if size >= self._part_bytes:
                yield self._part(rows, is_last=False)
                rows, size = [], 0
        yield self._part(rows, is_last=True)

    def _part(self, rows: list[_Selected], is_last: bool) -> tuple[pa.Table, dict[str, Any]]:
        table = pa.Table.from_pylist([{**row._asdict(), "source": self._name} for row in rows], SCHEMA)
        counts: Counts = {self._name: self._counts}
        add_counts(counts, count_documents(table))
        self._counts = dict.fromkeys(_COUNTS, 0)
        return table, asdict(_Footer(self._name, len(rows), is_last, counts))

    def _taken(self) -> Iterator[tuple[int, Document]]:
        """Records that the filter takes, numbered from 1 in the source."""
        number = 0
        for pattern in self._settings.input:
            for record in read_source(Path(pattern), self._columns, self._reject, self._max_line):
                number += 1
                self._counts["read"] += 1
                has_nfc = unicodedata.is_normalized("NFC", record.text)
                if self._is_normalised and not has_nfc:
                    record = record._replace(text=unicodedata.normalize("NFC", record.text))
                try:
                    is_taken = not self._where or self._where({"text": record.text, **record.fields})
                except InputError as error:
                    self._reject(record.source, record.number, error)
                    continue
                if is_taken:
                    if not has_nfc:
                        self._count("normalised" if self._is_normalised else "not_nfc")
                    yield number, record
                else:
                    self._counts["filtered_out"] += 1

    def _selected(self, record: Document, number: int) -> _Selected:
        values = {field: record.fields.get(field) for field in self._settings.meta}
        meta, is_replaced = copied_json(values, sort_keys=True)
        place = str(number)
        if self._settings.id:
            own = record.fields[self._settings.id]
            if own is None or own != own or own == "":
                self._count("without_id")
                place = f"#{number}"  # a number alone may be another record's id
            else:
                place = str(own).encode("utf-8", "replace").decode("utf-8")
                is_replaced |= place != str(own)
        if is_replaced:
            self._count("meta_replaced")
        return _Selected(f"{self._name}/{place}", record.text, meta)

    def _ordered(self) -> Iterator[_Selected]:
        """The records by their key: all go to a file first, of which the wanted ones are then picked."""
        keys = array("d")
        schema = pa.schema([("id", pa.string()), ("text", pa.large_string()), ("meta", pa.string())])
        with pa.OSFile(str(self._spool), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            rows = self._with_keys(keys)
            while batch := [row._asdict() for row in islice(rows, _SPOOL_ROWS)]:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
        order = np.argsort(np.frombuffer(keys) if keys else np.empty(0), kind="stable")[: self._settings.top]
        with pa.memory_map(str(self._spool)) as source, pa.ipc.open_file(source) as reader:
            for index in order.tolist():
                batch = reader.get_batch(index // _SPOOL_ROWS)
                yield _Selected(*(batch.column(name)[index % _SPOOL_ROWS].as_py() for name in schema.names))
        self._spool.unlink()

    def _with_keys(self, keys: "array[float]") -> Iterator[_Selected]:
        """The records that have a key, which goes to `keys`."""
        for number, record in self._taken():
            try:
                keys.append(self._key_of(record))
            except InputError as error:
                self._reject(record.source, record.number, error)
            else:
                yield self._selected(record, number)

    def _key_of(self, record: Document) -> float:
        """What to sort by, ascending; NaN, which numpy puts last, where there is no value."""
        assert self._key
        fields = {"text": record.text, **record.fields}
        if any(fields.get(name) is None for name in self._key.fields):
            return float("nan")
        value = self._key(fields)
        if not isinstance(value, (int, float)):
            raise InputError(f"{self._key.place}: {type(value).__name__}, not a number")
        try:
            return -float(value) if self._settings.descending else float(value)
        except OverflowError:
            raise InputError(f"{self._key.place}: a number of more than 308 digits") from None

    def _reject(self, path: Path, number: int, error: InputError) -> None:
        self._counts["rejected"] += 1
        if isinstance(error, CutShortError):
            self._count("cut_short")
        self._notes.append({"source": self._name, "file": str(path), "line": number, "reason": str(error)})

    def _count(self, name: str) -> None:
        """Counts what is named only where there is any."""
        self._counts[name] = self._counts.get(name, 0) + 1
