"""Prints unicode_table.inc: what every character is to a word, and its folded form. Run it with Python 3.11.

Words are made of letters (L*) and numbers (N*); marks (M*) go on with a word but don't begin one; format characters
(Cf: soft hyphen, zero-width space and joiners, byte order mark) and the stress marks U+0300 and U+0301 are passed over;
everything else separates words. Folding is one character to one: `casefold`, or `lower` where that gives several, and
ё is read as е.
"""

import sys
import unicodedata
from collections.abc import Callable, Iterator

STRESS_MARKS = "\u0300\u0301"
KINDS = {"L": 1, "N": 1, "M": 2}
IGNORED = 3


def kind(code: int) -> int:
    """0 separates words, 1 makes them, 2 goes on with one, 3 is passed over."""
    character = chr(code)
    category = unicodedata.category(character)
    if category == "Cf" or character in STRESS_MARKS:
        return IGNORED
    return KINDS.get(category[0], 0)


def fold(code: int) -> int:
    """The folded form of a character."""
    character = chr(code)
    folded = next((f for f in (character.casefold(), character.lower()) if len(f) == 1), character)
    return ord("е" if folded == "ё" else folded)


def runs(value: Callable[[int], int]) -> Iterator[tuple[int, int, int]]:
    """(first, last, value) of the runs of characters with the same value other than 0."""
    first, before = 0, 0
    for code in range(sys.maxunicode + 2):
        now = value(code) if code <= sys.maxunicode else 0
        if now != before:
            if before != 0:
                yield first, code - 1, before
            first, before = code, now


def print_rows(name: str, rows: list[tuple[int, int, int]]) -> None:
    """A C++ array, several entries a line."""
    print(f"\nconstexpr Run {name}[] = {{")
    line = ""
    for first, last, value in rows:
        entry = f"{{{first:#x}, {last:#x}, {value}}},"
        if len(line) + len(entry) > 96:
            print(f"   {line}")
            line = ""
        line += f" {entry}"
    print(f"   {line}\n}};")


def main() -> None:
    """Writes the table to standard output."""
    print(f"// Made by unicode_table.py from Unicode {unicodedata.unidata_version}; don't edit.")
    print_rows("kKinds", list(runs(kind)))
    print_rows("kFolds", list(runs(lambda code: fold(code) - code)))


if __name__ == "__main__":
    main()
