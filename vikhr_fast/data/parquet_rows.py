"""The rows of Parquet files, of which one unreadable cell costs only who asks for it."""

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vikhr_fast.data.text_lines import CutShortError, OnBad, reason_of
from vikhr_fast.errors import InputError

_ROWS = 1024
_NO_VALUE = (ValueError, OverflowError, LookupError, pa.ArrowException)
"""Of what Python cannot hold: invalid UTF-8, a date in the year 300000, a time zone that nobody knows."""


class NanosecondTime(datetime):
    """A time that is finer than a microsecond; its text has all nine digits."""

    nanoseconds = 0
    """After the microsecond, 0 to 999."""

    def __str__(self) -> str:
        text = self.isoformat(" ", "microseconds")
        end = len("2024-05-01 12:00:00.000000")
        return f"{text[:end]}{self.nanoseconds:03}{text[end:]}"


class ParquetRow(Mapping[str, Any]):
    """A row by the names of its columns, whose cells are decoded when they are asked for.

    Asking for one that cannot be read raises InputError with the column and the reason; the others can still be had.
    """

    def __init__(self, batch: "_Batch", index: int) -> None:
        self._batch, self._index = batch, index

    def __getitem__(self, name: str) -> Any:
        cell = self._batch.cells(name)[self._index]
        if isinstance(cell, Exception):
            raise InputError(f"column {name!r}: {_reason(cell)}; mend or remove it")
        return cell

    def __contains__(self, name: object) -> bool:
        return name in self._batch.columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch.columns)

    def __len__(self) -> int:
        return len(self._batch.columns)


class _Batch:
    def __init__(self, batch: pa.RecordBatch) -> None:
        self.columns: dict[str, pa.Array] = dict(zip(batch.schema.names, batch.columns, strict=True))
        self._cells: dict[str, list[Any]] = {}

    def cells(self, name: str) -> list[Any]:
        """The values of a column; the error in place of one that Python has no value for."""
        if name not in self._cells:
            self._cells[name] = _cells(self.columns[name])
        return self._cells[name]


def parquet_rows(
    path: Path, on_bad: OnBad, text: Collection[str] = (), others: Collection[str] = ()
) -> Iterator[tuple[int, ParquetRow]]:
    """Streams the rows with their numbers from 1; memory is bounded by a batch of them.

    Args:
        path: the file.
        on_bad: gets a `CutShortError` where the file cannot be read on.
        text: columns to read, which must hold text; with no columns named, all are read.
        others: further ones to read.

    Raises:
        InputError: a column is missing, comes twice, or holds no text; and what `on_bad` raises.
    """
    row, count = 0, 0
    try:
        # As large strings categories are not checked while they are read, where a bad one would cost the whole file.
        with pq.ParquetFile(path, binary_type=pa.large_binary(), page_checksum_verification=True) as file:
            names = sorted({*text, *others})
            _check_schema(file.schema_arrow, path, text, names or file.schema_arrow.names)
            count = file.metadata.num_rows
            for batch in file.iter_batches(batch_size=_ROWS, columns=names or None):
                cells = _Batch(batch)
                for index in range(batch.num_rows):
                    row += 1
                    yield row, ParquetRow(cells, index)
    except (pa.ArrowException, OSError) as error:
        place = f"after row {row} of {count}: " if count else ""
        reason = f"{path}: {place}not readable as Parquet: {reason_of(error)}; make it again"
        on_bad(path, row + 1, CutShortError(reason))


def _check_schema(schema: pa.Schema, path: Path, text: Collection[str], names: Collection[str]) -> None:
    for name in names:
        if name not in schema.names:
            listed = ", ".join(map(repr, schema.names)) or "none"
            raise InputError(f"{path}: no column {name!r} (it has {listed}); name the column")
        if (count := schema.names.count(name)) > 1:
            raise InputError(f"{path}: {count} columns are called {name!r}; rename all but one")
    for name in text:
        kind = schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise InputError(f"{path}: column {name!r}: holds {kind}, not text; name a column of strings")


def _cells(column: pa.Array) -> list[Any]:
    if "[ns" not in str(column.type):
        try:
            cells: list[Any] = column.to_pylist()
        except _NO_VALUE:
            pass
        else:
            return cells
    return [_cell(scalar) for scalar in column]


def _cell(scalar: pa.Scalar) -> Any:
    try:
        return _value(scalar)
    except _NO_VALUE as error:
        return error


def _value(scalar: pa.Scalar) -> Any:
    """What `as_py` gives; but of nanoseconds it gives pandas' types, nothing without pandas, or drops digits."""
    kind = scalar.type
    if not scalar.is_valid or "[ns" not in str(kind):
        return scalar.as_py()
    if pa.types.is_struct(kind):
        return {name: _value(scalar[name]) for name in scalar}
    if pa.types.is_map(kind):
        return [(_value(pair["key"]), _value(pair["value"])) for pair in scalar.values]
    if pa.types.is_nested(kind):
        return [_value(own) for own in scalar.values]
    microseconds, nanoseconds = divmod(scalar.value, 1000)
    if pa.types.is_timestamp(kind):
        time = pa.scalar(microseconds, pa.timestamp("us", kind.tz)).as_py()
        if nanoseconds:
            time = NanosecondTime.combine(time.date(), time.timetz())
            time.nanoseconds = nanoseconds
        return time
    if nanoseconds:
        raise ValueError(f"{kind} finer than a microsecond")
    return pa.scalar(microseconds, pa.time64("us") if pa.types.is_time(kind) else pa.duration("us")).as_py()


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "invalid UTF-8"
    name = f"{type(error).__name__}: " if isinstance(error, LookupError) else ""  # of a time zone, a key alone
    return f"{name}{reason_of(error)}"
