"""Documents as paragraphs, and back."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from vikhr_fast.corpus.settings import DedupStage
from vikhr_fast.data.documents import Counts, add_counts, read_part
from vikhr_fast.data.native_texts import IntArray

_SEPARATORS = {"blank-line": re.compile(r"(\n\s*\n\s*)"), "line": re.compile(r"(\n\s*)")}


def split(text: str, mode: str) -> list[str]:
    """The paragraphs of a document, each with what separates it from the next, so that "".join gives the document."""
    if mode == "document":
        return [text]
    pieces = _SEPARATORS[mode].split(text)
    return [paragraph + separator for paragraph, separator in zip(pieces[::2], [*pieces[1::2], ""], strict=True)]


def is_long(paragraph: str, settings: DedupStage) -> bool:
    """Whether a paragraph is long enough to be looked at."""
    return len(paragraph.split()) >= settings.minimum_words


def paragraphs_of(table: pa.Table, settings: DedupStage) -> list[str]:
    """The paragraphs of a part that are looked at, in order."""
    pieces = (piece for text in table["text"].to_pylist() for piece in split(text, settings.paragraphs))
    # Paragraphs without words are compared by their bytes, to which no separator belongs.
    return [piece.strip() for piece in pieces if is_long(piece, settings)]


def numbers_of(part: int, count: int) -> IntArray:
    """The numbers of a part's paragraphs, ascending in their order: the part and the index in it."""
    return np.arange(count, dtype=np.int64) + (part << 32)


def texts_of(numbers: Iterable[int], parts: list[Path], settings: DedupStage) -> dict[int, str]:
    """The paragraphs of these numbers; reads the parts that they are in."""
    wanted: dict[int, list[int]] = {}
    for number in numbers:
        wanted.setdefault(number >> 32, []).append(number)
    texts: dict[int, str] = {}
    for part, own in sorted(wanted.items()):
        found = paragraphs_of(read_part(parts[part]), settings)
        texts.update((number, found[number & 0xFFFFFFFF]) for number in own)
    return texts


def without(table: pa.Table, removed: np.ndarray, settings: DedupStage) -> tuple[pa.Table, Counts]:
    """The documents put together again from what is left, and what was removed by source.

    Args:
        table: a part.
        removed: bool [paragraphs that are looked at].
        settings: the ones that the paragraphs were found with.
    """
    decisions = iter(removed.tolist())
    texts, kept, counts = [], [], Counts()
    for text, source in zip(table["text"].to_pylist(), table["source"].to_pylist(), strict=True):
        pieces = split(text, settings.paragraphs)
        are_long = [is_long(piece, settings) for piece in pieces]
        are_gone = [long and next(decisions) for long in are_long]
        # What separated the last paragraph from one that is gone is not text.
        left = "".join(piece for piece, is_gone in zip(pieces, are_gone, strict=True) if not is_gone).rstrip()
        rebuilt = left if any(are_gone) else text
        is_kept = bool(rebuilt.strip())
        if is_kept:
            texts.append(rebuilt)
        kept.append(is_kept)
        own = {
            "paragraphs": len(pieces),
            "short_paragraphs": are_long.count(False),
            "removed_paragraphs": sum(are_gone),
            "removed_bytes": len(text.encode("utf-8")) - (len(rebuilt.encode("utf-8")) if is_kept else 0),
            "removed_documents": int(not is_kept),
        }
        add_counts(counts, {source: own})
    table = table.filter(pa.array(kept, pa.bool_()))
    return table.set_column(1, table.schema.field("text"), pa.array(texts, pa.large_string())), counts
