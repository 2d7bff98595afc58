"""Rows that cannot be used: where they are, and why."""

from collections.abc import Mapping
from pathlib import Path

from vikhr_fast.data.read import readable_values
from vikhr_fast.data.text_lines import CutShortError
from vikhr_fast.errors import InputError
from vikhr_fast.io.files import copied_json, write_json_lines

REJECTED = "rejected.jsonl"
_SHOWN_CHARACTERS = 300


class Rejected(list[dict[str, object]]):
    """What is wrong with the rows of files; called as an `OnBad`."""

    def __call__(self, path: Path, number: int, error: InputError, row: object = None) -> None:
        """Adds a row that was read, or a line that could not be; a file that is cut short is an error."""
        if isinstance(error, CutShortError):
            raise error
        shown = copied_json(readable_values(row)[0] if isinstance(row, Mapping) else row)[0][:_SHOWN_CHARACTERS]
        self.append({"file": str(path), "number": number, "reason": str(error), "row": shown})

    def why_none(self) -> str:
        """The reason of the first, for an error where no row is left."""
        return str(self[0]["reason"]) if self else "there are no rows"

    def write(self, directory: Path) -> None:
        """Writes DIRECTORY/rejected.jsonl."""
        write_json_lines(directory / REJECTED, self)
