"""Two tokenizations of one text, compared the slow way: by the bytes that come before each position."""

from collections.abc import Sequence
from itertools import accumulate

from vikhr_fast.tokenizer.spelling import Spelling


def prefixes(spelling: Spelling, ids: Sequence[int]) -> list[bytes | None]:
    """What the document's text is after its BOS and after each token; None before a space that isn't the text's."""
    pieces = [spelling.contents[index] for index in ids]
    before = list(accumulate(pieces, initial=b""))
    if spelling.begins_with_space and before[-1]:
        assert before[-1].startswith(b" ")
        return [None, *(text[1:] for text in before[1:])]
    return list(before)


def aligned(own: Sequence[bytes | None], ref: Sequence[bytes | None]) -> dict[int, int]:
    """Which positions come after the same text, the last of those that do on either side."""
    last = {text: place for place, text in enumerate(ref)}
    return {place: last[text] for place, text in enumerate(own) if text in last and text not in own[place + 1 :]}


def bucket_strings(contents: Sequence[bytes], others: Sequence[bytes]) -> list[bytes | None]:
    """The longest beginning of each that is in both, None where there is none."""
    known = (set(contents) & set(others)) - {b""}
    return [
        next((content[:n] for n in range(len(content), 0, -1) if content[:n] in known), None) for content in contents
    ]
