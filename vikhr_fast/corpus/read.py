"""Documents out of text, JSONL and Parquet files, one at a time and in order.

Memory is bounded by the longest document (for Parquet: by a batch of rows). Whatever is wrong with a file
is one `InputError` that names the file and the line or row.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from vikhr_fast.errors import InputError

_READ_BYTES = 1 << 20
_PARQUET_ROWS = 1024
_UTF8_MARK = b"\xef\xbb\xbf"
_SUFFIXES = (".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


class Document(NamedTuple):
    """One document and where it came from."""

    text: str
    """Never blank; encodes to UTF-8; lines end in a plain newline in documents from .txt files."""
    source: Path
    """The file it was read from."""
    number: int
    """The line (.txt, .jsonl) or row (.parquet) at which it starts, counted from 1."""


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
    kinds = [_kind(path) for path in paths]
    empty = True
    for path, kind in zip(paths, kinds, strict=True):
        if kind == ".parquet":
            documents = _parquet_rows(path, text_field)
        elif kind == ".jsonl":
            documents = _json_lines(path, text_field)
        else:
            documents = _paragraphs(path)
        for document in documents:
            empty = False
            yield document
    if empty:
        raise InputError(f"{named(paths)}: no text at all; give at least one document")


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


class _ZstdStream(io.RawIOBase):
    """Decompresses zstd frames; unlike zstandard's own reader it notices a frame that is cut short."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        # Frames written with --long=31 need the largest window; memory is taken only when a frame asks for it.
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = b""
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # collections.abc.Buffer, once Python 3.12 is the oldest
        while not self._pending:
            compressed = self._compressed or self._file.read(_READ_BYTES)
            self._compressed = b""
            if not compressed:
                if self._frame is not None:
                    raise EOFError("the last frame is cut short")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            self._pending = memoryview(self._frame.decompress(compressed))
            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None
        target = memoryview(buffer)
        count = min(len(target), len(self._pending))
        target[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) of a text file, without their ends (LF or CRLF)."""
    number, offset = 0, 0
    try:
        with path.open("rb") as file:
            stream: Iterable[bytes] = file
            if path.name.lower().endswith(".gz"):
                stream = gzip.GzipFile(fileobj=file)
            elif path.name.lower().endswith(".zst"):
                stream = io.BufferedReader(_ZstdStream(file), _READ_BYTES)
            for line in stream:
                number += 1
                start = len(_UTF8_MARK) if number == 1 and line.startswith(_UTF8_MARK) else 0
                try:
                    text = line[start:].decode("utf-8")
                except UnicodeDecodeError as error:
                    place = f"line {number}, byte {offset + start + error.start}"
                    raise InputError(f"{path}: {place}: invalid UTF-8; convert the file to UTF-8") from None
                offset += len(line)
                yield number, text.removesuffix("\n").removesuffix("\r")
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        place = f"after line {number}: " if number else ""
        raise InputError(f"{path}: {place}cannot be read on: {_one_line(error)}; fetch or make it again") from None


def _paragraphs(path: Path) -> Iterator[Document]:
    lines: list[str] = []
    number = 0
    for number, line in _lines(path):
        if line.strip():
            lines.append(line)
        elif lines:
            yield Document("\n".join(lines), path, number - len(lines))
            lines = []
    if lines:
        yield Document("\n".join(lines), path, number - len(lines) + 1)


def _json_lines(path: Path, text_field: str) -> Iterator[Document]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        place = f"{path}: line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: not valid JSON: {_one_line(error)}; mend or remove the line") from None
        if not isinstance(record, dict):
            raise InputError(f"{place}: not a JSON object; every line must be one with a field {text_field!r}")
        if text_field not in record:
            raise InputError(f"{place}: no field {text_field!r} (it has {_listed(record)}); name the text field")
        yield from _checked(record[text_field], path, number, f"{place}: field {text_field!r}")


def _parquet_rows(path: Path, text_field: str) -> Iterator[Document]:
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if text_field not in schema.names:
                raise InputError(f"{path}: no column {text_field!r} (it has {_listed(schema.names)}); name the column")
            kind = schema.field(text_field).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise InputError(f"{path}: column {text_field!r}: holds {kind}, not text; name a column of strings")
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    yield from _checked(text, path, row, f"{path}: row {row}: column {text_field!r}")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        place = f"after row {row}: " if row else ""
        raise InputError(f"{path}: {place}not readable as Parquet: {_one_line(error)}; make it again") from None


def _checked(text: object, path: Path, number: int, place: str) -> Iterator[Document]:
    if not isinstance(text, str):
        raise InputError(f"{place}: {type(text).__name__}, not text; mend or remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: character {error.start}: half of a surrogate pair; mend or remove it") from None
    if text.strip():
        yield Document(text, path, number)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
