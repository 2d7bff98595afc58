"""Files of JSON lines that grow line by line; torn at any byte, by a kill or a full disk, they lose no whole line."""

import os
from functools import partial
from pathlib import Path
from typing import IO, Any

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import json_text, naming, open_here
from vikhr_fast.io.guarded import MOST_BYTES, parse_json

_BLOCK_BYTES = 1 << 16


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Appends a line of JSON, in place of what a killed writer left half-written.

    Raises:
        OSError: the disk is full, say; the whole lines are as they were.
        InputError: `path` is a symbolic link or has other hard links.
    """
    with open_here(path, "a+b", buffering=0) as file:
        write_line(file, values)


def write_line(file: IO[bytes], values: dict[str, Any]) -> None:
    """The same, to an unbuffered file that is open for reading, too."""
    line = memoryview((json_text(values) + "\n").encode("utf-8", "replace"))
    with naming(Path(file.name)):
        size = _drop_torn_tail(file)
        try:
            while line:
                line = line[file.write(line) :]
        except BaseException:
            file.truncate(size)
            raise


def _drop_torn_tail(file: IO[bytes]) -> int:
    """Cuts off what follows the last line break; returns the bytes that stay."""
    size = end = file.seek(0, os.SEEK_END)
    block = 1  # mostly there is nothing to drop
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        if found := file.read(end - start).rfind(b"\n") + 1:
            end = start + found
            break
        end, block = start, _BLOCK_BYTES
    if end < size:
        file.truncate(end)
    return end


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file, none where there is no file; what follows the last of them is the beginning of one.

    Raises:
        InputError: a whole line isn't a JSON object.
    """
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    with path.open("rb") as file:
        for number, line in enumerate(iter(partial(file.readline, MOST_BYTES), b""), start=1):
            if not line.endswith(b"\n") and len(line) < MOST_BYTES:
                break
            try:
                values = parse_json(line)
            except ValueError:
                values = None
            if not isinstance(values, dict):
                advice = "move the file away to go on without it"
                raise InputError(f"{path}: damaged: line {number} is not a JSON object; {advice}")
            lines.append(values)
    return lines
