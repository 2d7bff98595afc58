"""The texts of the demo: where they come from, how much of them is used, and what is held out."""

import hashlib
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pydantic

from vikhr_fast.config import read_record
from vikhr_fast.data.read import named, read_documents
from vikhr_fast.errors import InputError
from vikhr_fast.io.files import atomic_directory, write_json, write_json_lines

ENGLISH, RUSSIAN = "english", "russian"
USAGE_NAME = "usage.json"
RUSSIAN_TRAIN = Path(__file__).parent / "data" / "russian"
RUSSIAN_VALIDATION = Path(__file__).parent / "data" / "russian_validation"

MINIMUM_BYTES = 100_000
"""Less text of a language fills neither a vocabulary nor a held-out set."""
VALIDATION_BYTES = 40_000
"""More held-out text than this would only make the frequent validations slow."""
_MINIMUM_VALIDATION_BYTES = 2_000
_HELD_OUT = 10  # one document in so many
_PIECE_CHARACTERS = 2_000
_PASSAGE_CHARACTERS = 600
_RULE_LINE = re.compile(r"[-=*+|~^ ]{4,}")  # underlines of headings and borders of tables

Documents = Callable[[], Iterator[tuple[bool, str]]]
"""Gives the documents of a language, from the first, each with whether it is held out."""


@dataclass(frozen=True)
class TextUse:
    """What the demo uses of a language's text; sizes are UTF-8 bytes."""

    source: str
    """Where it comes from, in words."""
    available_bytes: int
    """All of it."""
    train_bytes: int
    """Trained on, sampled evenly from all over it."""
    validation_bytes: int
    """Held out, likewise."""


_USAGE = pydantic.TypeAdapter(dict[str, TextUse])


@dataclass(frozen=True)
class Source:
    """The documents of a language, and how much there is."""

    description: str
    documents: Documents
    sizes: dict[bool, int]
    """UTF-8 bytes held out (True) and to train on (False)."""


def text_source(language: str, files: tuple[Path, ...]) -> Source:
    """The user's files, or without any the text that comes with Python (English) or this package (Russian).

    Raises:
        InputError: a file can't be read, or the language has too little text.
    """
    if files:
        description, documents = named(files), _users(files)
    else:
        description, documents = _python_topics() if language == ENGLISH else _sample_corpus()
    sizes = {True: 0, False: 0}
    for held_out, text in documents():
        sizes[held_out] += len(text.encode())
    if (total := sum(sizes.values())) < MINIMUM_BYTES:
        needed = f"{MINIMUM_BYTES:,} bytes of {language.title()}"
        raise InputError(f"{description}: only {total:,} bytes of text; at least {needed} are needed: give more")
    if sizes[True] < _MINIMUM_VALIDATION_BYTES:
        split = f"only {sizes[True]:,} bytes of it fall into the tenth that is held out"
        raise InputError(f"{description}: {split}; give more text, or text that repeats itself less")
    return Source(description, documents, sizes)


def write_texts(
    output: Path, sources: dict[str, Source], max_bytes: int, validation_bytes: int = VALIDATION_BYTES
) -> None:
    """Writes LANGUAGE-train.jsonl and LANGUAGE-validation.jsonl for each language, and usage.json.

    Args:
        output: directory to make.
        sources: by language.
        max_bytes: training text of a language in UTF-8 bytes; of more, documents from all over it are taken.
        validation_bytes: held-out text, likewise.
    """
    with atomic_directory(output) as directory:
        usage = {}
        for language, source in sources.items():
            used = []
            for part, held_out, limit in (("train", False, max_bytes), ("validation", True, validation_bytes)):
                texts = (text for side, text in source.documents() if side == held_out)
                chosen = list(_evenly(texts, source.sizes[held_out], limit))
                used.append(sum(len(text.encode()) for text in chosen))
                write_json_lines(directory / f"{language}-{part}.jsonl", ({"text": text} for text in chosen))
            usage[language] = asdict(TextUse(source.description, sum(source.sizes.values()), *used))
        write_json(directory / USAGE_NAME, usage)


def read_usage(directory: Path) -> dict[str, TextUse]:
    """What `write_texts` recorded, by language."""
    return read_record(directory / USAGE_NAME, _USAGE, "run the same command again")


def _evenly(texts: Iterable[str], available: int, limit: int) -> Iterator[str]:
    """Texts from all over, at most `limit` of the `available` bytes."""
    share = min(1.0, limit / available)
    seen = taken = 0
    for text in texts:
        size = len(text.encode())
        seen += size
        if taken + size <= share * seen:
            taken += size
            yield text


def _users(paths: tuple[Path, ...]) -> Documents:
    """The user's own files, split by the hash of the text, so that a repeated paragraph stays on one side."""
    return lambda: (
        (_hash(" ".join(piece.split())) % _HELD_OUT == 0, piece)
        for document in read_documents(paths)
        for piece in _pieces(document.text)
    )


def _pieces(text: str) -> Iterator[str]:
    """A document in pieces of bounded length, cut at line ends or else at spaces: some files have no blank lines."""
    start = 0
    while start < len(text):
        window = text[start : start + _PIECE_CHARACTERS]
        cut = len(window)
        if start + cut < len(text):
            cut = max(window.rfind("\n"), 0) or max(window.rfind(" "), 0) or cut
        if piece := window[:cut].strip():
            yield piece
        start += cut


def _sample_corpus() -> tuple[str, Documents]:
    parts = ((False, sorted(RUSSIAN_TRAIN.glob("*.txt"))), (True, sorted(RUSSIAN_VALIDATION.glob("*.txt"))))
    return (
        "the sample corpus of vikhr-fast (five genres, written for it)",
        lambda: ((held_out, document.text) for held_out, paths in parts for document in read_documents(paths)),
    )


def _python_topics() -> tuple[str, Documents]:
    """The language reference inside Python, whole topics held out.

    Topics quote one another at length, so a paragraph counts once, in the longest topic that has it.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    passages: dict[str, list[str]] = {}
    for topic in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = [tidy for paragraph in re.split(r"\n\s*\n", topics[topic]) if (tidy := _tidy(paragraph))]
        fresh = [paragraph for paragraph in paragraphs if " ".join(paragraph.split()) not in seen]
        seen.update(" ".join(paragraph.split()) for paragraph in fresh)
        passages[topic] = list(_passages(fresh))

    sizes = {topic: sum(map(len, texts)) for topic, texts in passages.items()}
    room = sum(sizes.values()) // _HELD_OUT
    held_out: set[str] = set()
    for topic in sorted(topics, key=_hash):
        if sizes[topic] <= room:
            held_out.add(topic)
            room -= sizes[topic]

    return (
        f"the language reference inside Python {platform.python_version()} (pydoc_data.topics)",
        lambda: ((topic in held_out, text) for topic in sorted(passages) for text in passages[topic]),
    )


def _tidy(paragraph: str) -> str:
    """A paragraph without ruled lines, and unwrapped unless its layout has a meaning (code, lists, tables)."""
    lines = [line.rstrip() for line in paragraph.split("\n") if not _RULE_LINE.fullmatch(line)]
    laid_out = any(line.startswith((" ", "*", "|")) for line in lines)
    return ("\n" if laid_out else " ").join(lines)


def _passages(paragraphs: Iterable[str]) -> Iterator[str]:
    """Consecutive paragraphs joined to documents long enough to have a context."""
    passage: list[str] = []
    for paragraph in paragraphs:
        passage.append(paragraph)
        if sum(map(len, passage)) >= _PASSAGE_CHARACTERS:
            yield "\n\n".join(passage)
            passage = []
    if passage:
        yield "\n\n".join(passage)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
