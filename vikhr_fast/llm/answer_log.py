"""Every answer of an endpoint on disk, so that none is paid for twice, whatever stops the run."""

import fcntl
import os
from pathlib import Path
from typing import Any

from vikhr_fast.errors import InputError
from vikhr_fast.io.append_only import read_lines, write_line
from vikhr_fast.io.files import naming, open_here, sync_directory


class AnswerLog:
    """Every answer as a line of JSON, on disk before it is used; what a killed process left half-written is dropped.

    Raises:
        InputError: another process writes to it, it is something else, a symbolic link, or has other hard links.
    """

    def __init__(self, path: Path) -> None:
        self._entries: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open_here(path, "a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(f"{path}: another process writes to it; wait for its end or stop it") from None
        for number, entry in enumerate(read_lines(path), start=1):
            if not isinstance(entry.get("request"), str) or "final" not in entry:
                raise InputError(f"{path}: line {number}: not an answer; remove the file or the line")
            if entry["final"]:
                self._entries[entry["request"]] = entry
        sync_directory(path.parent)

    def __enter__(self) -> "AnswerLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def final(self, request: str) -> dict[str, Any] | None:
        """What a request came to, if it is through."""
        return self._entries.get(request)

    def add(self, entry: dict[str, Any]) -> None:
        """Writes an answer."""
        write_line(self._file, entry)
        with naming(Path(self._file.name)):
            os.fsync(self._file.fileno())
        if entry["final"]:
            self._entries[entry["request"]] = entry
