"""Documents out of text, JSONL and Parquet files, one at a time and in order.

Memory is bounded by the longest document (for Parquet: by a batch of rows). Whatever is wrong with a record is one
`InputError` that names the file and the line or row; the caller decides whether it ends the reading.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vikhr_fast.data.text_lines import OnBad, numbered_lines, one_line
from vikhr_fast.errors import InputError

_PARQUET_ROWS = 1024
_NO_VALUE = (ValueError, OverflowError)  # of what Python cannot hold: invalid UTF-8, a date in the year 300000
_SUFFIXES = (".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


class Document(NamedTuple):
    """One document and where it came from."""

    text: str
    """Never blank; encodes to UTF-8; lines end in a plain newline in documents from .txt files. Several text fields are
    joined by blank lines."""
    source: Path
    """The file it was read from."""
    number: int
    """The line (.txt, .jsonl) or row (.parquet) at which it starts, counted from 1."""
    fields: dict[str, Any] = {}  # noqa: RUF012  never changed
    """The other fields that were asked for; None where the record has none."""


class Columns(NamedTuple):
    """What is taken of a record. Text files have nothing but text."""

    text: tuple[str, ...] = ("text",)
    """JSONL fields or Parquet columns that make up the text; of several some may be null."""
    others: tuple[str, ...] = ()


def refuse(path: Path, number: int, error: InputError) -> None:  # noqa: ARG001  an `OnBad`
    """Ends the reading at the first bad record."""
    raise error


def read_documents(paths: Iterable[Path], text_field: str = "text") -> Iterator[Document]:
    """Streams the documents of several files, file by file.

    In .txt files paragraphs are separated by blank lines and each is a document; in .jsonl files a line is, in
    .parquet files a row. .txt and .jsonl may be compressed (.gz, .zst). Blank documents are skipped.

    Args:
        paths: the files. That each exists and has a known kind is checked before the first is read.
        text_field: name of the JSONL field or Parquet column that holds the text.

    Raises:
        InputError: a missing file, an unknown suffix, invalid UTF-8 (with its byte offset in the uncompressed
            text), a broken or cut file, a line or row without the text, or no document in all files together.
    """
    paths = tuple(paths)
    document = None
    for document in read_records(paths, Columns((text_field,))):
        yield document
    if document is None:
        raise InputError(f"{named(paths)}: no text at all; give at least one document")


def read_records(paths: Iterable[Path], columns: Columns, on_bad: OnBad = refuse) -> Iterator[Document]:
    """As `read_documents`, with further fields, and with a say in what becomes of bad records.

    A file that cannot be read on (cut short, damaged) counts as one bad record, after which the next file begins.

    Raises:
        InputError: a missing file, an unknown suffix, a Parquet file without a column; and what `on_bad` raises.
    """
    paths = tuple(paths)
    kinds = [_kind(path) for path in paths]
    for path, kind in zip(paths, kinds, strict=True):
        if kind == ".txt":
            yield from _paragraphs(path, on_bad)
        elif kind == ".jsonl":
            yield from documents_of(path, _json_lines(path, on_bad), columns, ("line", "field"), on_bad)
        else:
            yield from documents_of(path, _parquet_rows(path, on_bad, columns), columns, ("row", "column"), on_bad)


def read_objects(path: Path, on_bad: OnBad = refuse) -> Iterator[tuple[int, dict[str, Any]]]:
    """Streams a file's records whole, as JSON values, each with its line (.jsonl) or row (.parquet, .json) from 1.

    A .json file is one list of objects. What is bad goes to `on_bad`, as in `read_records`.

    Raises:
        InputError: a missing file or an unknown suffix; and what `on_bad` raises.
    """
    if path.name.lower().endswith(".json") and path.is_file():
        return _json_list(path, on_bad)
    kind = _kind(path)
    if kind == ".txt":
        raise InputError(f"{path}: text has no records; give .jsonl, .json or .parquet")
    return _json_lines(path, on_bad) if kind == ".jsonl" else _parquet_rows(path, on_bad)


def documents_of(
    source: Path, records: Iterable[tuple[int, dict[str, Any]]], columns: Columns, kind: tuple[str, str], on_bad: OnBad
) -> Iterator[Document]:
    """The documents of numbered records; `kind` is what these and their values are called."""
    for number, record in records:
        try:
            text = _text(record, columns, f"{source}: {kind[0]} {number}", kind[1])
        except InputError as error:
            on_bad(source, number, error)
            continue
        if text.strip():
            yield Document(text, source, number, {name: record.get(name) for name in columns.others})


def _json_list(path: Path, on_bad: OnBad) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        records = json.loads(path.read_bytes())
        if not isinstance(records, list):
            raise ValueError("not a list")
    except (ValueError, RecursionError) as error:
        on_bad(path, 1, InputError(f"{path}: not a JSON list of objects: {one_line(error)}; call lines of JSON .jsonl"))
        return
    for row, record in enumerate(records, start=1):
        if isinstance(record, dict):
            yield row, record
        else:
            on_bad(path, row, InputError(f"{path}: row {row}: not a JSON object"))


def _json_lines(path: Path, on_bad: OnBad) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in numbered_lines(path, on_bad):
        if line is None or not line.strip():
            continue
        reason = "not a JSON object; every line must be one"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            record, reason = None, f"not valid JSON: {one_line(error)}; mend or remove the line"
        if isinstance(record, dict):
            yield number, record
        else:
            on_bad(path, number, InputError(f"{path}: line {number}: {reason}"))


def named(paths: Sequence[Path]) -> str:
    """The files of a corpus in a few words, for messages about all of them."""
    if len(paths) <= 3:
        return ", ".join(map(str, paths)) or "no files"
    return f"{paths[0]} and {len(paths) - 1} more files"


def _kind(path: Path) -> str:
    """The suffix without its compression, after the checks that need no reading."""
    suffix = next((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), None)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: not a file; name the files themselves")
    if suffix is None:
        raise InputError(f"{path}: unknown kind of file; the name must end in one of {', '.join(_SUFFIXES)}")
    return suffix.removesuffix(".gz").removesuffix(".zst")


def _paragraphs(path: Path, on_bad: OnBad) -> Iterator[Document]:
    lines: list[str | None] = []
    number = 0

    def paragraph(first: int) -> Iterator[Document]:
        text = "\n".join(line for line in lines if line is not None)
        if lines and None not in lines:
            yield Document(text, path, first)
        lines.clear()

    for number, line in numbered_lines(path, on_bad):
        if line is None or line.strip():
            lines.append(line)
        else:
            yield from paragraph(number - len(lines))
    yield from paragraph(number - len(lines) + 1)


def _parquet_rows(path: Path, on_bad: OnBad, columns: Columns | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows, whole or with some columns alone; one with a value that Python cannot hold is a bad one."""
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            if columns:
                _check_schema(file.schema_arrow, columns, path)
            names = columns and sorted({*columns.text, *columns.others})
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=names):
                for values in zip(*map(_cells, batch.columns), strict=True):
                    row += 1
                    record = dict(zip(batch.schema.names, values, strict=True))
                    bad = [(name, value) for name, value in record.items() if isinstance(value, _NO_VALUE)]
                    if not bad:
                        yield row, record
                        continue
                    name, error = bad[0]
                    reason = "invalid UTF-8" if isinstance(error, UnicodeDecodeError) else one_line(error)
                    place = f"{path}: row {row}: column {name!r}"
                    on_bad(path, row, InputError(f"{place}: {reason}; mend or remove it"))
    except (pa.ArrowException, OSError) as error:
        place = f"after row {row}: " if row else ""
        reason = f"{path}: {place}not readable as Parquet: {one_line(error)}; make it again"
        on_bad(path, row + 1, InputError(reason))


def _check_schema(schema: pa.Schema, columns: Columns, path: Path) -> None:
    for name in (*columns.text, *columns.others):
        if name not in schema.names:
            raise InputError(f"{path}: no column {name!r} (it has {_listed(schema.names)}); name the column")
        if (count := schema.names.count(name)) > 1:
            raise InputError(f"{path}: {count} columns are called {name!r}; rename all but one")
    for name in columns.text:
        kind = schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise InputError(f"{path}: column {name!r}: holds {kind}, not text; name a column of strings")


def _cells(column: pa.Array) -> list[Any]:
    """The values of a column; the error in place of one that Python has no value for."""
    try:
        cells: list[Any] = column.to_pylist()
    except _NO_VALUE:
        return [_cell(scalar) for scalar in column]
    return cells


def _cell(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except _NO_VALUE as error:
        return error


def _text(record: dict[str, Any], columns: Columns, place: str, what: str) -> str:
    """The text of a record from its text fields; InputError, which begins with `place`, where it has none."""
    parts = []
    for name in columns.text:
        if name not in record:
            raise InputError(f"{place}: no {what} {name!r} (it has {_listed(record)}); name the text {what}")
        value = record[name]
        if value is None and len(columns.text) > 1:
            continue
        if not isinstance(value, str):
            raise InputError(f"{place}: {what} {name!r}: {type(value).__name__}, not text; mend or remove it")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            reason = f"character {error.start}: half of a surrogate pair"
            raise InputError(f"{place}: {what} {name!r}: {reason}; mend or remove it") from None
        if value.strip() or len(columns.text) == 1:
            parts.append(value)
    return "\n\n".join(parts)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
