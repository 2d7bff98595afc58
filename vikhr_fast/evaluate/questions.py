"""The questions of the benchmarks, out of files of any of the usual forms."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

from vikhr_fast.chat.conversation import HALF_CHARACTER, parsed_objects
from vikhr_fast.data.sources import source_files
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.options import names_letters, option_texts
from vikhr_fast.io.files import json_text

BENCHMARK_NAMES = ("ruxnli", "ru_mmlu", "ru_mmlu_pro")
LETTERS = ascii_uppercase[:10]
OPTIONS = ("options_ru", "choices_ru", "options", "choices")
"""Fields that may hold the options of a question, the Russian ones before others."""
_LABELS = ("entailment", "neutral", "contradiction")

Question = dict[str, Any]

CHANGES = {
    "kept_in_order": "with options kept in order",
    "stripped": "without padding options",
    "rejected": "left out",
}
"""What becomes of questions before they are asked: as results count it, and in words."""


class UnanswerableError(InputError):
    """A question that has no right answer to be told from the others; it is left out."""


class Questions(NamedTuple):
    """What a source holds."""

    asked: list[Question]
    """In their order."""
    stripped: int
    """How many of them lost options that only filled a place."""
    rejected: list[dict[str, Any]]
    """What was left out: `file`, `line`, `reason`."""


class BenchmarkQuestions(NamedTuple):
    """The questions of a benchmark, as they are asked."""

    asked: list[Question]
    counts: dict[str, int]
    """Of how many questions each of `CHANGES` is true."""
    rejected: list[dict[str, Any]]
    """See `Questions`."""


def read_questions(source: Path, parse: Callable[[Mapping[str, Any]], Question]) -> Questions:
    """The questions of a source.

    Args:
        source: a file (.json, .jsonl, .parquet), a pattern, or hf:OWNER/NAME@COMMIT:PATTERN.
        parse: `choice_question` or `inference_question`.

    Raises:
        InputError: one line with the first file and place that cannot be used.
    """
    files = source_files(source)
    if not files:
        raise InputError(f"{source}: must name the raw files of the data set: hf:OWNER/NAME@COMMIT:PATTERN")
    stripped, rejected = 0, []

    def parse_one(record: Mapping[str, Any]) -> Question:
        nonlocal stripped
        question = parse(record)
        stripped += "choices" in question and len(question["choices"]) < len(_field(record, *OPTIONS)[1])
        return question

    def on_bad(path: Path, number: int, error: InputError) -> None:
        if not isinstance(error, UnanswerableError):
            raise error
        rejected.append({"file": str(path), "line": number, "reason": str(error)})

    asked = list(parsed_objects(files, parse_one, on_bad))
    if not asked:
        reason = f": {rejected[0]['reason']}" if rejected else "; give the split that has them"
        raise InputError(f"{source}: no questions in it{reason}")
    return Questions(asked, stripped, rejected)


def questions_sha256(questions: list[Question]) -> str:
    """What tells these questions, in this order, from others."""
    return hashlib.sha256(json_text(questions, ensure_ascii=True).encode("ascii")).hexdigest()


def choice_question(record: Mapping[str, Any]) -> Question:
    """A question of MMLU or MMLU-Pro: `question`, `choices`, `answer` (an index), `subject`.

    Of a Russian and another text the Russian one is taken, as `question_ru` and `choices_ru`. Options that only fill a
    place are left out.

    Raises:
        UnanswerableError: its answer is such an option, or stands there twice; or one option alone is left.
        InputError: it is no such question.
    """
    name, options = _field(record, *OPTIONS)
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise InputError(f"field {name!r}: must be a list of 2 to {len(LETTERS)} answers")
    answer = _answer(_field(record, "answer")[1], len(options))
    subject = record.get("subject") or record.get("category") or "-"
    question = _text(_field(record, "question_ru", "question")[1], "question")
    try:
        texts = option_texts(options)
    except InputError as error:
        raise InputError(f"field {name!r}: {error}") from None
    places = [place for place, text in enumerate(texts) if text is not None]
    choices = [_text(texts[place], name) for place in places]
    if answer not in places:
        raise UnanswerableError(f"field 'answer': {options[answer]!r} only fills a place among the options")
    if len(choices) < 2:
        raise UnanswerableError(f"field {name!r}: the other options only fill a place")
    answer = places.index(answer)
    if sum(choice.strip() == choices[answer].strip() for choice in choices) > 1:
        raise UnanswerableError(f"field {name!r}: the right answer, {choices[answer]!r}, stands there twice")
    if places != list(range(len(places))) and names_letters(choices):
        raise UnanswerableError(f"field {name!r}: names options by letter, and one before others only fills a place")
    return {"question": question, "choices": choices, "answer": answer, "subject": _text(subject, "subject")}


def _answer(value: object, count: int) -> int:
    """The index of the right one of so many options."""
    index = value
    if isinstance(value, str):
        index = LETTERS.find(value.strip()) if len(value.strip()) == 1 else -1
    elif isinstance(value, float) and value.is_integer():  # as pandas writes integers beside nulls
        index = int(value)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        form = f"must be a number from 0 to {count - 1} or a Latin letter from A to {LETTERS[count - 1]}"
        raise InputError(f"field 'answer': {value!r}: none of the {count} choices; {form}")
    return index


def inference_question(record: Mapping[str, Any]) -> Question:
    """A pair of XNLI: `premise`, `hypothesis`, `label` (0 entailment, 1 neutral, 2 contradiction), `subject`."""
    premise, hypothesis = (_text(_field(record, name)[1], name) for name in ("premise", "hypothesis"))
    label = _field(record, "label")[1]
    label = _LABELS.index(label) if label in _LABELS else label
    if isinstance(label, bool) or label not in (0, 1, 2):
        raise InputError(f"field 'label': {label!r}: must be 0, 1, 2 or one of {', '.join(_LABELS)}")
    label = int(label)  # pandas writes integers beside nulls as floats
    return {"premise": premise, "hypothesis": hypothesis, "label": label, "subject": _LABELS[label]}


def _field(record: Mapping[str, Any], *names: str) -> tuple[str, Any]:
    """The first of some fields that is there, its name and value."""
    for name in names:
        if name in record:
            return name, record[name]
    raise InputError(f"no field {names[-1]!r} (it has {', '.join(map(repr, record)) or 'none'})")


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"field {name!r}: holds no text where there must be some")
    if HALF_CHARACTER.search(value):
        raise InputError(f"field {name!r}: half of a surrogate pair; mend or remove it")
    return value
