"""How often each word occurs, all that training a tokenizer needs of a text."""

import math
import unicodedata
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from vikhr_fast._native import WordCounts
from vikhr_fast.data.read import named
from vikhr_fast.data.sources import read_texts
from vikhr_fast.data.text_lines import MAX_LINE
from vikhr_fast.errors import InputError
from vikhr_fast.io.console import logger

_BATCH = 1024  # documents


def count_words(
    sources: tuple[Path, ...],
    weights: tuple[float, ...],
    text_field: str,
    max_words: int,
    max_line: int = MAX_LINE,
    add: Callable[[WordCounts, Sequence[str]], None] = WordCounts.add,
    normalises: bool = False,
) -> WordCounts:
    """How often each word occurs in the text of all sources, most frequent first.

    Args:
        sources: see `read_texts`.
        weights: the share of each source in the whole, in any unit; empty takes every source as large as it is.
        text_field: see `read_texts`.
        max_words: different words to keep, for each source; past it the rarer half is dropped. About 100 bytes each.
        max_line: see `read_texts`.
        add: counts the words of some texts; by default words are as SentencePiece cuts them.
        normalises: whether the tokenizer brings texts to a normal form itself.

    Raises:
        InputError: unreadable or empty sources, or impossible weights.
    """
    if max_words < 1000:
        raise InputError(f"--max-words {max_words}: must be 1000 or more")
    if weights and (len(weights) != len(sources) or not all(0 < weight < math.inf for weight in weights)):
        shown = " ".join(map(str, weights))
        raise InputError(f"--weights {shown}: must be {len(sources)} positive numbers, one for each input")
    words = WordCounts(max_words)
    counts = [WordCounts(max_words) if weights else words for _ in sources]
    not_nfc = 0
    for source, count in zip(sources, counts, strict=True):
        texts = read_texts(source, text_field, max_line)
        while batch := tuple(islice(texts, _BATCH)):
            add(count, batch)
            not_nfc += sum(not unicodedata.is_normalized("NFC", text) for text in batch)
    factors = [weight / count.bytes for weight, count in zip(weights, counts, strict=False)]
    for count, factor in zip(counts, factors, strict=False):
        # No count shrinks, so that rounding loses next to nothing and no word.
        words.add_scaled(count, factor / min(factors))
    words.sort()
    logger.info(f"{named(sources)}: {words.bytes:,} bytes, {len(words):,} different words")
    if not_nfc and not normalises:
        reason = "й may be two characters in them, and pieces are learnt for both spellings; normalise them before"
        logger.warning(f"{named(sources)}: {not_nfc:,} texts are not in NFC: {reason}")
    if words.dropped:
        logger.warning(f"{words.dropped:,} occurrences of rare words were left out; --max-words keeps more")
    return words
