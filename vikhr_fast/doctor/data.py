"""What is to be known of a data file before anything is made of it."""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from vikhr_fast.chat.conversation import checked_messages
from vikhr_fast.data.read import Columns, read_objects, read_records, readable_values
from vikhr_fast.data.text_lines import CutShortError
from vikhr_fast.doctor.findings import Finding, Note, checked
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.options import points_at_others
from vikhr_fast.evaluate.questions import OPTIONS, choice_question, inference_question, read_questions
from vikhr_fast.inference.batch import chat_of
from vikhr_fast.instruct.preferences import read_pairs
from vikhr_fast.instruct.rejected import Rejected
from vikhr_fast.instruct.schemas import fields_beside, messages_of
from vikhr_fast.io.progress import progress_bar

_SHOWN = 8
_PREFERENCES = ("prompt", "chosen", "rejected")
_NFC = 'й may be two characters in them, and take more tokens; `[collect]` has normalise = "NFC"'
_USES = "`corpus` needs text, `instruct convert` one of its schemas, `train-reward` preferences, `evaluate` questions"


def data_findings(path: Path) -> Iterator[Finding]:
    """Of text, its documents; of records, rows, columns, cells, Unicode, numbers, ids, and what commands would use."""
    if path.is_dir():
        advice = "no model in it; name the data files themselves, or a directory with config.json or a tokenizer"
        yield Finding("mend", "directory", f"{path}: {advice}")
    elif ".txt" in path.suffixes:
        yield checked("text", partial(_text, path))
    else:
        survey = _Survey(path)
        yield checked("rows", survey.read)
        if survey.rows:
            yield checked("columns", survey.columns)
            yield checked("cells", survey.cells)
            yield checked("Unicode", survey.unicode)
            yield checked("numbers", survey.numbers)
            if "id" in survey.kinds:
                yield checked("ids", survey.ids)
            yield from _uses(path, survey)


def _text(path: Path) -> str:
    bad: list[InputError] = []
    documents, not_nfc = 0, 0
    with progress_bar("documents") as advance:
        for document in read_records([path], Columns(), lambda _path, _number, error: bad.append(error)):
            documents += 1
            not_nfc += not unicodedata.is_normalized("NFC", document.text)
            advance(1)
    if any(isinstance(error, CutShortError) for error in bad) or not documents:
        raise InputError(str(bad[-1]) if bad else f"{path}: no text at all")
    notes = [f"{len(bad):,} lines can't be read; the first: {bad[0]}"] if bad else []
    notes += [f"{not_nfc:,} are not in NFC: {_NFC}"] if not_nfc else []
    return _noted(f"{documents:,} documents (paragraphs)", notes)


class _Survey:
    """One pass over a file of records."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self.kinds: dict[str, Counter[str]] = {}
        """Of each column, how many values are of which kind."""
        self.bad: list[InputError] = []
        self._unreadable: dict[str, list[str]] = {}
        self._not_nfc, self._not_finite = 0, 0
        self._ids, self._without_id, self._repeated = set[int](), 0, 0

    def read(self) -> str:
        """Goes through the file; what is wrong with whole rows."""
        with progress_bar("rows") as advance:
            for number, row in read_objects(self.path, lambda _path, _number, error: self.bad.append(error)):
                self.rows += 1
                self._look_at(number, row)
                advance(1)
        cut = [error for error in self.bad if isinstance(error, CutShortError)]
        if cut or not self.rows:
            raise InputError(str(cut[0] if cut else self.bad[0] if self.bad else f"{self.path}: no rows"))
        text = f"{self.rows + len(self.bad):,}"
        return _noted(text, [f"{len(self.bad):,} can't be read; the first: {self.bad[0]}"] if self.bad else [])

    def _look_at(self, number: int, row: Mapping[str, Any]) -> None:
        values, wrong = readable_values(row)
        for name in row:
            kinds = self.kinds.setdefault(name, Counter())
            if name in values:
                kinds[_kind(values[name])] += 1
            else:
                self._unreadable.setdefault(name, []).append(f"row {number}: {wrong}")
        texts, numbers = _leaves(values)
        self._not_nfc += any(not unicodedata.is_normalized("NFC", text) for text in texts)
        self._not_finite += any(not math.isfinite(one) for one in numbers)
        own = values.get("id")
        if own is None or own != own or own == "":
            self._without_id += 1
        else:
            self._repeated += hash(str(own)) in self._ids
            self._ids.add(hash(str(own)))

    def columns(self) -> str:
        """The columns with the kinds of their values."""
        listed = [f"{name}: {' or '.join(kinds) or 'unreadable'}" for name, kinds in self.kinds.items()]
        more = f", and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        return ", ".join(listed[:_SHOWN]) + more

    def cells(self) -> str:
        """Which can't be read."""
        notes = [f"{len(rows):,} of {name!r} can't be read; {rows[0]}" for name, rows in self._unreadable.items()]
        return _noted("", notes) if notes else "all can be read"

    def unicode(self) -> str:
        """Which rows hold text that isn't composed."""
        return Note(f"{self._not_nfc:,} rows are not in NFC: {_NFC}") if self._not_nfc else "all in NFC"

    def numbers(self) -> str:
        """Which rows hold numbers that JSON has not."""
        text = f"{self._not_finite:,} rows hold NaN or infinity, which are written as null"
        return Note(text) if self._not_finite else "all finite"

    def ids(self) -> str:
        """Which ids are missing or come twice."""
        notes = _others(self._without_id, "missing: the place in the file stands in for them")
        notes += [f"{self._repeated:,} repeat an earlier one, and stay as they are"] if self._repeated else []
        return _noted("", notes) if notes else "all different"


def _uses(path: Path, survey: _Survey) -> Iterator[Finding]:
    """What each command that reads records would make of these."""
    columns = survey.kinds.keys()
    uses = []
    conversations = checked("convert", partial(_conversations, path, survey.rows))
    prompts = checked("generate", partial(_prompts, path, survey.rows))
    are_pairs = {"chosen", "rejected"} <= columns or {"prompt", "answers"} <= columns
    if are_pairs:
        uses.append(checked("preferences", partial(_preferences, path)))
    if conversations.mark != "mend":
        uses.append(conversations)
    elif prompts.mark != "mend" and not are_pairs:
        uses.append(prompts)
    elif {"messages", "conversations"} & columns:
        uses += [conversations, prompts]
    if "answer" in columns and columns & set(OPTIONS):
        uses.append(checked("evaluate", partial(_questions, path, choice_question)))
    if {"premise", "hypothesis"} <= columns:
        uses.append(checked("evaluate", partial(_questions, path, inference_question)))
    if "text" in columns:
        corpus = checked("corpus", partial(_corpus, path, {str(error) for error in survey.bad}))
        uses = uses if uses and corpus.mark == "mend" else [corpus, *uses]
    yield from uses or [Finding("mend", "use", f"{path}: no command reads such rows; {_USES}")]


def _prompts(path: Path, rows: int) -> str:
    prompts = 0
    for _, row in read_objects(path, lambda *_: None):
        with suppress(InputError):
            prompts += bool(chat_of(row))
    if not prompts:
        raise InputError("no row asks for an answer")
    return _noted(f"{prompts:,} prompts for `generate batch`", _others(rows - prompts, "can't be answered"))


def _others(count: int, words: str) -> list[str]:
    return [f"{count:,} {words}"] if count else []


def _corpus(path: Path, told: set[str]) -> str:
    """What `corpus` would read; nothing of the rows of which it is `told` already that they can't be read."""
    bad: list[str] = []
    texts = sum(1 for _ in read_records([path], Columns(), lambda _path, _number, error: bad.append(str(error))))
    bad = [reason for reason in bad if reason not in told]
    if not texts:
        raise InputError(bad[0] if bad else f"{path}: no text under 'text'")
    notes = [f"{len(bad):,} rows hold none; the first: {bad[0]}"] if bad else []
    return _noted(f"{texts:,} texts for `corpus collect` and `corpus shard`", notes)


def _conversations(path: Path, rows: int) -> str:
    reasons: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for _, row in read_objects(path, lambda *_: None):
        try:
            checked_messages(messages_of(row))
        except InputError as error:
            reasons[str(error)] += 1
            continue
        dropped.update(fields_beside(row).dropped)
    usable = rows - reasons.total()
    if not usable:
        raise InputError(f"no row is a conversation: {_most(reasons)}")
    notes = [f"{reasons.total():,} are none: {_most(reasons)}"] if reasons else []
    notes += [f"dropped columns: {_most(dropped)}"] if dropped else []
    return _noted(f"{usable:,} conversations for `instruct convert`", notes)


def _preferences(path: Path) -> str:
    rejected = Rejected()
    pairs = sum(1 for _ in read_pairs([path], _PREFERENCES, rejected))
    reasons = Counter(str(one["reason"]) for one in rejected)
    if not pairs:
        raise InputError(f"no pair can be used: {_most(reasons)}")
    notes = [f"{len(rejected):,} can't be used: {_most(reasons)}"] if rejected else []
    return _noted(f"{pairs:,} pairs for `instruct train-reward`", notes)


def _questions(path: Path, parse: Any) -> str:
    questions = read_questions(path, parse)
    reasons = Counter(str(one["reason"]) for one in questions.rejected)
    pointing = sum(points_at_others(own["choices"]) for own in questions.asked if "choices" in own)
    notes = _others(pointing, "with options that name others, which keep their order")
    notes += _others(questions.stripped, "with padding options, which go")
    notes += [f"{len(questions.rejected):,} are left out: {_most(reasons)}"] if reasons else []
    return _noted(f"{len(questions.asked):,} questions for `evaluate`", notes)


def _noted(text: str, notes: list[str]) -> str:
    return Note("; ".join(filter(None, [text, *notes]))) if notes else text


def _most(counts: Counter[str]) -> str:
    """The most frequent of counted words."""
    shown = ", ".join(f"{words} ({count:,})" for words, count in counts.most_common(3))
    return shown if len(counts) <= 3 else f"{shown} and {len(counts) - 3} more"


def _kind(value: object) -> str:
    names = {str: "text", bool: "truth value", int: "number", float: "number", list: "list", dict: "object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _leaves(value: object) -> tuple[list[str], list[float]]:
    """The texts and the floating-point numbers inside a value."""
    texts: list[str] = []
    numbers: list[float] = []
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, str):
            texts.append(one)
        elif isinstance(one, float):
            numbers.append(one)
        elif isinstance(one, Mapping):
            pending += one.values()
        elif isinstance(one, list):
            pending += one
    return texts, numbers
