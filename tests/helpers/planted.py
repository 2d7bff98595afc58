"""Paragraphs with planted near-duplicates, and the plainest statement of what a near-duplicate is.

    python tests/helpers/planted.py --megabytes 100 > paragraphs.txt    # one a line

Used by the tests and by bench/native; pytest's `pythonpath` and the latter's script find it here.
"""

import argparse
import random
import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).parents[3] / "shared" / "data"
COMPOSED = {"и\u0306": "й", "у\u0306": "ў", "е\u0308": "е", "і\u0308": "ї"}


def words(text: str) -> list[str]:
    """The words of a text, folded: the specification of the C++ reader."""
    found = [""]
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cf" or character in "\u0300\u0301":
            continue
        if kind[0] == "M" and found[-1]:
            pair = found[-1][-1] + character
            found[-1] = found[-1][:-1] + COMPOSED.get(pair, pair)
        elif kind[0] in "LN":
            found[-1] += fold(character)
        elif found[-1] and kind[0] != "M":
            found.append("")
    return found if found[-1] else found[:-1]


def fold(character: str) -> str:
    folded = next((f for f in (character.casefold(), character.lower()) if len(f) == 1), character)
    return "е" if folded == "ё" else folded


def shingles(text: str, length: int = 5) -> frozenset[tuple[str, ...]]:
    """Runs of words; a text shorter than one is a single run, one without words stands for its characters."""
    found = words(text)
    return runs_of(found, length) if found else frozenset([("raw", text)])


def runs_of(found: list[str], length: int = 5) -> frozenset[tuple[str, ...]]:
    """The shingles of words."""
    if len(found) < length:
        return frozenset([("whole", *found)])
    return frozenset(tuple(found[i : i + length]) for i in range(len(found) - length + 1))


def jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    both = len(a & b)
    return both / (len(a) + len(b) - both)


class Planted(NamedTuple):
    """Texts, and for each the number of the text it was made from: its own for an original, which comes first."""

    texts: list[str]
    origins: list[int]


def paragraphs() -> list[str]:
    """Real Russian paragraphs of 20 to 200 words, one line each, none twice."""
    seen: dict[str, None] = {}
    for name in ("novels", "news", "wiki", "handbook", "manpages"):
        path = DATA / "ru" / f"{name}.txt"
        if path.exists():
            for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
                line = " ".join(block.split())
                if 20 <= line.count(" ") + 1 <= 200:
                    seen[line] = None
    return list(seen)


def edited(text: str, draw: random.Random) -> str:
    """The text with some words swapped, deleted or inserted, or with other case and punctuation."""
    found = text.split(" ")
    kind = draw.choice(("swap", "delete", "insert", "case", "punctuation", "swap", "delete"))
    if kind == "case":
        return text.upper() if draw.random() < 0.5 else text.lower()
    if kind == "punctuation":
        return " ".join(draw.choice(("{}", "{},", "«{}»", "{} —", "{}!")).format(word) for word in found)
    for _ in range(max(1, round(len(found) * draw.choice((0.005, 0.01, 0.02, 0.04, 0.08))))):
        at = draw.randrange(len(found))
        if kind == "swap":
            found[at] = draw.choice(found)
        elif kind == "delete" and len(found) > 1:
            del found[at]
        else:
            found.insert(at, draw.choice(found))
    return " ".join(found)


def planted(limit: int, seed: int = 0, share: float = 0.3) -> Planted:
    """Texts of `limit` UTF-8 bytes together; a `share` of them are edits of an earlier one.

    Originals are real paragraphs, and when these run out their words in another order.
    """
    draw = random.Random(seed)
    real = paragraphs()
    draw.shuffle(real)
    texts: list[str] = []
    origins: list[int] = []
    originals: list[int] = []
    size = 0
    while size < limit:
        if originals and draw.random() < share:
            origin = draw.choice(originals)
            texts.append(edited(texts[origin], draw))
        else:
            origin = len(texts)
            text = real[len(originals) % len(real)]
            if len(originals) >= len(real):
                shuffled = text.split(" ")
                draw.shuffle(shuffled)
                text = " ".join(shuffled)
            originals.append(origin)
            texts.append(text)
        origins.append(origin)
        size += len(texts[-1].encode())
    return Planted(texts, origins)


def true_pairs(made: Planted, threshold: float) -> Iterator[tuple[int, int]]:
    """(original, edit) where the exact similarity reaches the threshold."""
    for i, origin in enumerate(made.origins):
        if origin != i and jaccard(shingles(made.texts[origin]), shingles(made.texts[i])) >= threshold:
            yield origin, i


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for text in planted(round(options.megabytes * 1e6), options.seed).texts:
        sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
