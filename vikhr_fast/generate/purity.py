"""How Russian a Russian answer is."""

import re

_WORD = re.compile(r"[^\W\d_]+")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f]")


def latin_share(text: str) -> float | None:
    """The share of words with a Latin letter among all words; None for a text without words."""
    words = _WORD.findall(text)
    return sum(bool(_LATIN.search(word)) for word in words) / len(words) if words else None
