"""The answers of one or several models to the same prompts, side by side."""

from pathlib import Path
from typing import Any

from vikhr_fast.corpus.read import read_objects
from vikhr_fast.errors import InputError
from vikhr_fast.generate.batch import chat_of
from vikhr_fast.generate.compare import side_by_side
from vikhr_fast.names import distinct_names
from vikhr_fast.report import Page

_NO_ANSWER = "(no answer: {})"


def is_answers(path: Path) -> bool:
    """Whether a file begins as one that `generate batch` wrote."""
    if path.suffix != ".jsonl":
        return False
    try:
        first: dict[str, Any] = next((row for _, row in read_objects(path)), {})
    except InputError:
        return False
    return {"answer", "error"} & first.keys() != set() and {"prompt", "messages"} & first.keys() != set()


def answers_page(paths: dict[str, Path]) -> Page:
    """The page of files of answers, or directories of them, by the names to show.

    Raises:
        InputError: the files hold answers to different prompts.
    """
    files = [
        file
        for path in paths.values()
        for file in (filter(is_answers, sorted(path.glob("*.jsonl"))) if path.is_dir() else [path])
    ]
    asked: list[Any] = []
    answers: dict[str, list[str]] = {}
    for name, file in zip(distinct_names(files), files, strict=True):
        rows = [row for _, row in read_objects(file)]
        chats = [chat_of(row) for row in rows]
        if answers and chats != asked:
            raise InputError(f"{file}: answers to other prompts than {files[0]}; give those to the same")
        asked = chats
        answers[name] = [row.get("answer") or _NO_ANSWER.format(row.get("error", "it is empty")) for row in rows]
    return side_by_side(asked, answers)
