"""Files of JSON lines that grow line by line; torn at any byte, by a kill or a full disk, they lose no whole line."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import json_text, open_here
from vikhr_fast.io.guarded import parse_json


class WholeLine(NamedTuple):
    """A line that was written to its end."""

    values: dict[str, Any]
    end: int
    """Bytes of the file up to here."""


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Appends a line of JSON.

    Raises:
        OSError: the disk is full, say; the file is as it was.
        InputError: `path` is a symbolic link.
    """
    with open_here(path, "ab", buffering=0) as file:
        write_line(file, values)


def write_line(file: IO[bytes], values: dict[str, Any]) -> None:
    """The same, to an unbuffered file that is open."""
    size, line = file.seek(0, 2), memoryview((json_text(values) + "\n").encode("utf-8", "replace"))
    try:
        while line:
            line = line[file.write(line) :]
    except BaseException:
        file.truncate(size)
        raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; none where there is no file.

    Raises:
        InputError: a whole line isn't a JSON object.
    """
    return [line.values for line in whole_lines(path)] if path.exists() else []


def whole_lines(path: Path) -> Iterator[WholeLine]:
    """The whole lines of a file; what comes after the last of them is the beginning of one.

    Raises:
        InputError: a whole line isn't a JSON object.
    """
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                values = parse_json(line)
            except ValueError:
                values = None
            if not isinstance(values, dict):
                advice = "move the file away to go on without it"
                raise InputError(f"{path}: damaged: line {number} is not a JSON object; {advice}")
            end += len(line)
            yield WholeLine(values, end)
