"""Documents as paragraphs, and back."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vikhr_fast.corpus.documents import Counts, add_counts, read_part
from vikhr_fast.corpus.settings import DedupStage
from vikhr_fast.texts import IntArray

_SEPARATORS = {"blank-line": re.compile(r"(\n\s*\n\s*)"), "line": re.compile(r"(\n\s*)")}


class Paragraphs(NamedTuple):
    """The paragraphs of a part that are looked at, in order."""

    texts: list[str]
    rows: list[int]
    """The document of each."""
    places: list[int]
    """Which paragraph of its document each is."""


def split(text: str, mode: str) -> list[str]:
    """The paragraphs of a document, each with what separates it from the next, so that "".join gives the document."""
    if mode == "document":
        return [text]
    pieces = _SEPARATORS[mode].split(text)
    return [paragraph + separator for paragraph, separator in zip(pieces[::2], [*pieces[1::2], ""], strict=True)]


def paragraphs_of(table: pa.Table, settings: DedupStage) -> Paragraphs:
    """The paragraphs that are long enough to be looked at."""
    found = Paragraphs([], [], [])
    for row, text in enumerate(table["text"].to_pylist()):
        for place, paragraph in enumerate(split(text, settings.paragraphs)):
            if len(paragraph.split()) >= settings.minimum_words:
                # Paragraphs without words are compared by their bytes, to which no separator belongs.
                found.texts.append(paragraph.strip())
                found.rows.append(row)
                found.places.append(place)
    return found


def number_of(part: int, index: int) -> int:
    """A number for each paragraph that is looked at, ascending in their order: its part and its index there."""
    return part << 32 | index


def numbers_of(part: int, count: int) -> IntArray:
    """The numbers of a part's paragraphs."""
    return np.arange(count, dtype=np.int64) + number_of(part, 0)


def texts_of(numbers: Iterable[int], parts: list[Path], settings: DedupStage) -> dict[int, str]:
    """The paragraphs of these numbers; reads the parts that they are in."""
    wanted: dict[int, list[int]] = {}
    for number in numbers:
        wanted.setdefault(number >> 32, []).append(number)
    texts: dict[int, str] = {}
    for part, own in sorted(wanted.items()):
        found = paragraphs_of(read_part(parts[part]), settings).texts
        texts.update((number, found[number & 0xFFFFFFFF]) for number in own)
    return texts


def without(table: pa.Table, removed: np.ndarray, settings: DedupStage) -> tuple[pa.Table, Counts]:
    """The documents put together again from what is left, and what was removed by source.

    Args:
        table: a part.
        removed: bool [paragraphs that are looked at].
        settings: the ones that the paragraphs were found with.
    """
    paragraphs = paragraphs_of(table, settings)
    gone: dict[int, set[int]] = {}
    for index in np.flatnonzero(removed).tolist():
        gone.setdefault(paragraphs.rows[index], set()).add(paragraphs.places[index])
    looked_at = np.bincount(paragraphs.rows, minlength=table.num_rows) if paragraphs.rows else [0] * table.num_rows
    texts, kept, counts = [], [], Counts()
    for row, (text, source) in enumerate(zip(table["text"].to_pylist(), table["source"].to_pylist(), strict=True)):
        pieces = split(text, settings.paragraphs)
        left = [piece for place, piece in enumerate(pieces) if place not in gone.get(row, ())]
        # What separated the last paragraph from one that is gone is not text.
        rebuilt = text if row not in gone else "".join(left).rstrip()
        is_kept = bool(rebuilt.strip())
        if is_kept:
            texts.append(rebuilt)
        kept.append(is_kept)
        own = {
            "paragraphs": len(pieces),
            "short_paragraphs": len(pieces) - int(looked_at[row]),
            "removed_paragraphs": len(gone.get(row, ())),
            "removed_bytes": len(text.encode("utf-8")) - (len(rebuilt.encode("utf-8")) if is_kept else 0),
            "removed_documents": int(not is_kept),
        }
        add_counts(counts, {source: own})
    table = table.filter(pa.array(kept, pa.bool_()))
    return table.set_column(1, table.schema.field("text"), pa.array(texts, pa.large_string())), counts
