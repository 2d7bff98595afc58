"""Rows that cannot be used: where they are, and why."""

import json
from pathlib import Path

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import write_json_lines

REJECTED = "rejected.jsonl"
_SHOWN_CHARACTERS = 300


class Rejected(list[dict[str, object]]):
    """What is wrong with the rows of files; called as an `OnBad`."""

    def __call__(self, path: Path, number: int, error: InputError, row: object = None) -> None:
        """Adds a row that was read, or a line that could not be."""
        shown = json.dumps(row, ensure_ascii=False, default=str)[:_SHOWN_CHARACTERS]
        shown = shown.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair may be why
        self.append({"file": str(path), "number": number, "reason": str(error), "row": shown})

    def why_none(self) -> str:
        """The reason of the first, for an error where no row is left."""
        return str(self[0]["reason"]) if self else "there are no rows"

    def write(self, directory: Path) -> None:
        """Writes DIRECTORY/rejected.jsonl."""
        write_json_lines(directory / REJECTED, self)
