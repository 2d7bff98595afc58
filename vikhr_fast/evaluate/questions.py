"""The questions of the benchmarks, out of files of any of the usual forms."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from vikhr_fast.chat.conversation import HALF_CHARACTER, parsed_objects
from vikhr_fast.data.sources import source_files
from vikhr_fast.errors import InputError
from vikhr_fast.io.files import json_text

BENCHMARK_NAMES = ("ruxnli", "ru_mmlu", "ru_mmlu_pro")
LETTERS = ascii_uppercase[:10]
_LABELS = ("entailment", "neutral", "contradiction")

Question = dict[str, Any]


def read_questions(source: Path, parse: Callable[[Mapping[str, Any]], Question]) -> list[Question]:
    """The questions of a source, in their order.

    Args:
        source: a file (.json, .jsonl, .parquet), a pattern, or hf:OWNER/NAME@COMMIT:PATTERN.
        parse: `choice_question` or `inference_question`.

    Raises:
        InputError: one line with the first file and place that cannot be used.
    """
    files = source_files(source)
    if not files:
        raise InputError(f"{source}: must name the raw files of the data set: hf:OWNER/NAME@COMMIT:PATTERN")
    found = list(parsed_objects(files, parse))
    if not found:
        raise InputError(f"{source}: no questions in it; give the split that has them")
    return found


def questions_sha256(questions: list[Question]) -> str:
    """What tells these questions, in this order, from others."""
    return hashlib.sha256(json_text(questions, ensure_ascii=True).encode("ascii")).hexdigest()


def choice_question(record: Mapping[str, Any]) -> Question:
    """A question of MMLU or MMLU-Pro: `question`, `choices`, `answer` (an index), `subject`."""
    name = "options" if "options" in record else "choices"
    choices, answer = _field(record, name), _field(record, "answer")
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise InputError(f"field {name!r}: must be a list of 2 to {len(LETTERS)} answers")
    choices = [_text(choice, name) for choice in choices]
    if isinstance(answer, str):
        letter = answer.strip()
        answer = LETTERS.find(letter) if len(letter) == 1 else -1
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise InputError(f"field 'answer': {record['answer']!r}: none of the {len(choices)} choices")
    subject = record.get("subject") or record.get("category") or "-"
    question = _text(_field(record, "question"), "question")
    return {"question": question, "choices": choices, "answer": answer, "subject": _text(subject, "subject")}


def inference_question(record: Mapping[str, Any]) -> Question:
    """A pair of XNLI: `premise`, `hypothesis`, `label` (0 entailment, 1 neutral, 2 contradiction), `subject`."""
    premise, hypothesis = (_text(_field(record, name), name) for name in ("premise", "hypothesis"))
    label = _field(record, "label")
    label = _LABELS.index(label) if label in _LABELS else label
    if isinstance(label, bool) or label not in (0, 1, 2):
        raise InputError(f"field 'label': {label!r}: must be 0, 1, 2 or one of {', '.join(_LABELS)}")
    return {"premise": premise, "hypothesis": hypothesis, "label": label, "subject": _LABELS[label]}


def _field(record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        raise InputError(f"no field {name!r} (it has {', '.join(map(repr, record)) or 'none'})")
    return record[name]


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"field {name!r}: holds no text where there must be some")
    if HALF_CHARACTER.search(value):
        raise InputError(f"field {name!r}: half of a surrogate pair; mend or remove it")
    return value
