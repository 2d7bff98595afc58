"""`instruct dedup`: one conversation of each kind, by priority of sources, and none that evaluations ask.

The policy. Conversations are looked at source by source in the order of priority, and one is removed when

- what the user says in it is a near-duplicate of what the user says in one that is kept, and their system messages are
  the same: a question stays with the answer of the source that is trusted most. Signs between numbers or names count
  as words. In a short question every mark and letter may be what is asked about, so it's a copy only where it is
  spelled the same; white space, full stops, question marks and dots at an end, and capitals throughout don't count;
- what the assistant says is one of what the assistant says in one that is kept, if it is long: the same refusal or
  boilerplate to many questions. Short answers are alike without being copies;
- it shares a long n-gram with a text of an evaluation set, or its question is a near-duplicate of one.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from tyro.conf import Positional

from vikhr_fast.chat.conversation import Conversation, read_conversations, write_conversations
from vikhr_fast.corpus.decontaminate import Grams, evaluation_texts, grams_of, shared_grams
from vikhr_fast.corpus.dedup import DedupIndex, DedupSettings
from vikhr_fast.corpus.minhash import MinHasher
from vikhr_fast.corpus.settings import EvaluationSet
from vikhr_fast.corpus.stage import show_counts
from vikhr_fast.data.documents import Counts, add_counts
from vikhr_fast.errors import InputError
from vikhr_fast.instruct.convert import CONVERSATIONS
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import atomic_directory, refuse_existing, write_json_lines
from vikhr_fast.io.progress import progress_bar

REMOVED = "removed.jsonl"
_ANSWER_WORDS = 20  # from which on an answer counts; shorter ones may be repeated
_QUESTION_WORDS = 29  # from which on a question keeps 0.8 of its word triples when one word in it changes
# Between what they join, signs of arithmetic and code, and with a space on both sides or none, as **bold** has not;
# a minus only after a number, where it is no hyphen or dash.
_SIGN = re.compile(r"(?<=[\w)\]])(\s?)([+*×÷=<>^%]{1,2}|(?<=[\d)])[-−/]|(?<=[\d)]\s)[-−/])\1(?=[\w(\[])")
# With the marks that `MinHasher` passes over.
_WORD = re.compile(r"[^\W_](?:[^\W_]|[\u0300\u0301\u0306\u0308\u00ad])*")


@dataclass(frozen=True)
class DedupConversations:
    """Removes conversations whose questions or long answers repeat those of another, and what evaluations ask.

    Questions under different system messages are different. Those of fewer than 29 words must be spelled the same.
    Of near-duplicates the one of the source with the highest priority stays, then the first. OUTPUT/removed.jsonl says
    of each removed one why, and which one is kept in its place.
    """

    input: Annotated[tuple[Path, ...], Positional]
    """Conversations (.jsonl)."""
    output: Path
    """Directory to make."""
    priority: tuple[str, ...] = ()
    """Sources from the most trusted on; those not named follow in the order of the input."""
    threshold: float = 0.8
    """Least Jaccard similarity of two texts' word n-grams, verified exactly."""
    shingle: str = "word:3"
    """The n-grams; a text with fewer words matches only the same words."""
    sets: dict[str, Path] = field(default_factory=dict)
    """Evaluation sets by name: files, patterns, or data sets hf:OWNER/NAME@COMMIT[/CONFIG[/SPLIT]]."""
    set_text: tuple[str, ...] = ("text",)
    """Their fields that hold text; each is looked for by itself."""
    set_words: int = 13
    """Length in words of an n-gram that must not be shared with an evaluation set."""


def dedup_conversations(options: DedupConversations) -> None:
    """Writes `options.output`, complete or not at all.

    Raises:
        InputError: impossible options, unreadable conversations or evaluation sets.
    """
    refuse_existing(options.output)
    removal = _Removal(options)
    sources = list(dict.fromkeys(one.source for one in read_conversations(options.input)))
    if unknown := [name for name in options.priority if name not in sources]:
        raise InputError(f"--priority {', '.join(unknown)}: no such source; there are {', '.join(sources)}")
    ordered = list(dict.fromkeys([*options.priority, *sources]))
    counts: Counts = {}
    removed: list[dict[str, Any]] = []

    def kept() -> Iterator[Conversation]:
        with progress_bar("instruct dedup") as advance:
            for source in ordered:
                for conversation in read_conversations(options.input):
                    if conversation.source != source:
                        continue
                    advance(1)
                    reason = removal.reason(conversation)
                    kind = f"by_{reason['by']}" if reason else "kept"
                    add_counts(counts, {source: {"kept": 0, kind: 1}})
                    if reason is None:
                        yield conversation
                    else:
                        removed.append({"id": conversation.id, "source": source, **reason})

    with atomic_directory(options.output) as directory:
        if not write_conversations(directory / CONVERSATIONS, kept()):
            raise InputError(f"{options.output}: no conversation is left; look at the evaluation sets")
        write_json_lines(directory / REMOVED, removed)
    show_counts(f"instruct dedup: {options.output}", counts)
    logger.info(f"instruct dedup: {options.output}: {len(removed):,} conversations removed")


class _Removal:
    """What has been kept so far, and what evaluations ask."""

    def __init__(self, options: DedupConversations) -> None:
        settings = replace(DedupSettings(), threshold=options.threshold, shingle=options.shingle)
        sets = {name: EvaluationSet(input=(str(path),), text=options.set_text) for name, path in options.sets.items()}
        try:
            self._hasher = MinHasher(shingle=f"word:{options.set_words}")
            self._questions, self._answers, self._asked = _Questions(settings), _Texts(settings), _Texts(settings)
        except ValueError as error:
            raise InputError(f"instruct dedup: {error}") from None
        self._grams: dict[str, Grams] = {name: grams_of(name, one, self._hasher) for name, one in sets.items()}
        for name, evaluation in sets.items():
            for text in evaluation_texts(evaluation):
                self._asked.add(_spelled(text), name)

    def reason(self, conversation: Conversation) -> dict[str, str] | None:
        """Why a conversation is to be removed; None where it is kept, and remembered."""
        system, asked, answers = (
            [message.content for message in conversation.messages if message.role == role and message.is_trained]
            for role in ("system", "user", "assistant")
        )
        if name := self._evaluation_set(conversation.text, _spelled("\n\n".join(asked))):
            return {"by": "evaluation", "set": name}
        question = _Question.of(" ".join(" ".join(system).split()), asked)
        if (kept := self._questions.match(question)) is not None:
            return {"by": "question", "kept": kept}
        answer = "\n\n".join(answers)
        is_long = len(answer.split()) >= _ANSWER_WORDS
        if is_long and (kept := self._answers.match(answer)) is not None:
            return {"by": "answer", "kept": kept}
        self._questions.add(question, conversation.id)
        if is_long:
            self._answers.add(answer, conversation.id)
        return None

    def _evaluation_set(self, text: str, question: str) -> str | None:
        shingles = self._hasher.shingles([text], threads=1)
        for name, grams in self._grams.items():
            if shared_grams(grams, shingles)[0]:
                return name
        return self._asked.match(question)


class _Question(NamedTuple):
    """What the user says under a system message, as it is compared."""

    system: str
    is_long: bool
    text: str
    """Of a long one the words, other ones under each system message; of a short one the spelling."""

    @classmethod
    def of(cls, system: str, asked: list[str]) -> "_Question":
        if sum(len(_WORD.findall(one)) for one in asked) < _QUESTION_WORDS:
            return cls(system, False, "\n".join(map(_spelling, asked)))
        text = _spelled("\n\n".join(asked))
        if system:
            mark = hashlib.sha256(system.encode("utf-8")).hexdigest()[:16]
            text = _WORD.sub(lambda word: mark + word[0], text)
        return cls(system, True, text)


class _Questions:
    """Questions that others may be copies of, with names: the long ones' near-duplicates, the short ones' equals."""

    def __init__(self, settings: DedupSettings) -> None:
        self._long = _Texts(settings)
        self._short: dict[tuple[str, str], str] = {}
        self._in_capitals: dict[tuple[str, str], str] = {}

    def add(self, question: _Question, name: str) -> None:
        if question.is_long:
            self._long.add(question.text, name)
        else:
            self._short.setdefault((question.system, question.text), name)
            self._in_capitals.setdefault((question.system, question.text.upper()), name)

    def match(self, question: _Question) -> str | None:
        """The name of the one that this question is a copy of."""
        if question.is_long:
            return self._long.match(question.text)
        spelled, capitals = (question.system, question.text), (question.system, question.text.upper())
        if spelled == capitals:
            return self._in_capitals.get(capitals)
        return self._short.get(spelled, self._short.get(capitals))


class _Texts:
    """Texts that others may be near-duplicates of, with names."""

    def __init__(self, settings: DedupSettings) -> None:
        self._index, self._names = DedupIndex(settings), list[str]()

    def add(self, text: str, name: str) -> None:
        self._index.add([text], threads=1)
        self._names.append(name)

    def match(self, text: str) -> str | None:
        """The name of the one that this text is a near-duplicate of."""
        found = int(self._index.match([text], threads=1)[0]) if self._names else -1
        return None if found < 0 else self._names[found]


def _spelled(question: str) -> str:
    """A question with its signs as words: 12 + 7 and 12 - 7 are the same words otherwise."""
    return _SIGN.sub(lambda sign: f" sign{''.join(str(ord(one)) for one in sign[2])} ", question)


def _spelling(question: str) -> str:
    """A short question without what makes no difference."""
    whole = " ".join(_SIGN.sub(r" \2 ", unicodedata.normalize("NFC", question)).split())
    return whole.rstrip(" .?…") or whole
