"""Documents out of text, JSONL and Parquet files, one at a time and in order.

Memory is bounded by the longest line or document that is allowed; for Parquet by a batch of rows, which are as long as
the file's writer made them; a .json file is read whole. Whatever is wrong with a record is one `InputError` that names
the file and the line or row; the caller decides whether it ends the reading.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from vikhr_fast.data.parquet_rows import parquet_rows
from vikhr_fast.data.text_lines import MAX_LINE, CutShortError, OnBad, numbered_lines, reason_of, too_long
from vikhr_fast.errors import InputError
from vikhr_fast.io.guarded import parse_json, read_bytes

_MOST_LIST_BYTES = 2 << 30
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


def read_documents(paths: Iterable[Path], text_field: str = "text", max_line: int = MAX_LINE) -> Iterator[Document]:
    """Streams the documents of several files, file by file.

    In .txt files paragraphs are separated by blank lines and each is a document; in .jsonl files a line is, in
    .parquet files a row. .txt and .jsonl may be compressed (.gz, .zst). Blank documents are skipped.

    Args:
        paths: the files. That each exists and has a known kind is checked before the first is read.
        text_field: name of the JSONL field or Parquet column that holds the text.
        max_line: bytes of a line, and of a document of a .txt file.

    Raises:
        InputError: a missing file, an unknown suffix, invalid UTF-8 (with its byte offset in the uncompressed
            text), a broken or cut file, a line that is too long, a line or row without the text, or no document in all
            files together.
    """
    paths = tuple(paths)
    document = None
    for document in read_records(paths, Columns((text_field,)), max_line=max_line):
        yield document
    if document is None:
        raise InputError(f"{named(paths)}: no text at all; give at least one document")


def read_records(
    paths: Iterable[Path], columns: Columns, on_bad: OnBad = refuse, max_line: int = MAX_LINE
) -> Iterator[Document]:
    """As `read_documents`, with further fields, and with a say in what becomes of bad records.

    A file that cannot be read on (cut short, damaged) counts as one bad record, a `CutShortError`, after which the next
    file begins.

    Raises:
        InputError: a missing file, an unknown suffix, a Parquet file without a column; and what `on_bad` raises.
    """
    paths = tuple(paths)
    kinds = [_kind(path) for path in paths]
    for path, kind in zip(paths, kinds, strict=True):
        if kind == ".txt":
            yield from _paragraphs(path, on_bad, max_line)
        elif kind == ".jsonl":
            yield from documents_of(path, _json_lines(path, on_bad, max_line), columns, ("line", "field"), on_bad)
        else:
            rows = parquet_rows(path, on_bad, columns.text, columns.others)
            yield from documents_of(path, rows, columns, ("row", "column"), on_bad)


def read_objects(
    path: Path, on_bad: OnBad = refuse, max_line: int = MAX_LINE
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Streams a file's records whole, each with its line (.jsonl) or row (.parquet, .json) from 1.

    A .json file is one list of objects, or JSON lines. What is bad goes to `on_bad`, as in `read_records`; but a bad
    cell of a Parquet file is an InputError, the reason alone, only where it is asked for (see `ParquetRow`,
    `readable_values`).

    Raises:
        InputError: a missing file or an unknown suffix; and what `on_bad` raises.
    """
    if path.name.lower().endswith(".json") and path.is_file():
        return _json_list(path, on_bad, max_line)
    kind = _kind(path)
    if kind == ".txt":
        raise InputError(f"{path}: text has no records; give .jsonl, .json or .parquet")
    return _json_lines(path, on_bad, max_line) if kind == ".jsonl" else parquet_rows(path, on_bad)


def readable_values(record: Mapping[str, Any]) -> tuple[dict[str, Any], InputError | None]:
    """The values of a record that can be read, and what is wrong with the first that cannot."""
    values: dict[str, Any] = {}
    wrong: InputError | None = None
    for name in record:
        try:
            values[name] = record[name]
        except InputError as error:
            wrong = wrong or error
    return values, wrong


def documents_of(
    source: Path,
    records: Iterable[tuple[int, Mapping[str, Any]]],
    columns: Columns,
    kind: tuple[str, str],
    on_bad: OnBad,
) -> Iterator[Document]:
    """The documents of numbered records; `kind` is what these and their values are called."""
    for number, record in records:
        try:
            text = _text(record, columns, kind[1])
            others = {name: record.get(name) for name in columns.others}
        except InputError as error:
            on_bad(source, number, InputError(f"{source}: {kind[0]} {number}: {error}"))
            continue
        if text.strip():
            yield Document(text, source, number, others)


def _json_list(path: Path, on_bad: OnBad, max_line: int) -> Iterator[tuple[int, dict[str, Any]]]:
    if _begins_with_an_object(path, max_line):
        yield from _json_lines(path, on_bad, max_line)
        return
    try:
        content = read_bytes(path, _MOST_LIST_BYTES)
    except InputError as error:
        on_bad(path, 1, CutShortError(f"{error}; make JSON lines of it"))
        return
    try:
        records = parse_json(content)
    except ValueError as error:
        if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            yield from _json_lines(path, on_bad, max_line)
        else:
            on_bad(path, 1, CutShortError(f"{path}: not a JSON list of objects: {reason_of(error)}"))
        return
    if not isinstance(records, list):
        on_bad(path, 1, CutShortError(f"{path}: not a JSON list of objects: not a list"))
        return
    for row, record in enumerate(records, start=1):
        if isinstance(record, dict):
            yield row, record
        else:
            on_bad(path, row, InputError(f"{path}: row {row}: not a JSON object"))


def _begins_with_an_object(path: Path, max_line: int) -> bool:
    """Whether the first line of a file is a JSON object, as in JSON lines."""
    lines = (line for _, line in numbered_lines(path, lambda *_: None, max_line) if line is None or line.strip())
    line = next(lines, None) or ""
    try:
        return line.lstrip().startswith("{") and isinstance(parse_json(line), dict)
    except ValueError:
        return False


def _json_lines(path: Path, on_bad: OnBad, max_line: int) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in numbered_lines(path, on_bad, max_line):
        if line is None or not line.strip():
            continue
        reason = "not a JSON object; every line must be one"
        try:
            record = parse_json(line)
        except ValueError as error:
            record, reason = None, f"not valid JSON: {reason_of(error)}; mend or remove the line"
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


def _paragraphs(path: Path, on_bad: OnBad, max_line: int) -> Iterator[Document]:
    text = StringIO()
    first = size = 0  # the paragraph's first line, and its bytes: more than there may be where a line is bad
    for number, line in chain(numbered_lines(path, on_bad, max_line), [(0, "")]):
        if line is not None and not line.strip():
            if 0 < size <= max_line:
                yield Document(text.getvalue(), path, first)
            text, first, size = StringIO(), 0, 0
            continue
        first, was_good = first or number, size <= max_line
        own = "" if line is None else line if number == first else f"\n{line}"
        size += len(own) if own.isascii() else len(own.encode())
        if line is None:
            size = max_line + 1
        elif size <= max_line:
            text.write(own)
        elif was_good:
            text = StringIO()
            on_bad(path, first, too_long(path, first, max_line))


def _text(record: Mapping[str, Any], columns: Columns, what: str) -> str:
    """The text of a record from its text fields; InputError, with the reason alone, where it has none."""
    parts = []
    for name in columns.text:
        if name not in record:
            raise InputError(f"no {what} {name!r} (it has {_listed(record)}); name the text {what}")
        value = record[name]
        if value is None and len(columns.text) > 1:
            continue
        if not isinstance(value, str):
            raise InputError(f"{what} {name!r}: {type(value).__name__}, not text; mend or remove it")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            reason = f"character {error.start}: half of a surrogate pair"
            raise InputError(f"{what} {name!r}: {reason}; mend or remove it") from None
        if value.strip() or len(columns.text) == 1:
            parts.append(value)
    return "\n\n".join(parts)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
