"""Prints split_table.inc: what a character is to the expressions that byte-level tokenizers split text with.

The classes are asked of the `tokenizers` library itself, whose Unicode is newer than Python's: equal ids need equal
classes. What may change under normalisation to NFC is derived from `unicodedata`; characters that it doesn't know are
taken as such.
"""

import sys
import unicodedata

import tokenizers
from tokenizers import Regex, pre_tokenizers
from unicode_table import print_rows, runs

CLASSES = (r"[\s&&[^\r\n]]", r"[\r\n]", r"\p{N}", r"[\p{Lu}\p{Lt}]", r"\p{Ll}", r"[\p{Lm}\p{Lo}]", r"\p{M}")
"""In the order of CharacterClass, from 1 on."""
IS_NUMERIC = 8
MAY_COMPOSE = 16
CHARACTERS = [code for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
AT_ONCE = 4096


def members(expression: str) -> set[int]:
    """The characters of a class of Oniguruma's."""
    split = pre_tokenizers.Split(Regex(expression), "removed")
    found: set[int] = set()
    for start in range(0, len(CHARACTERS), AT_ONCE):
        some = CHARACTERS[start : start + AT_ONCE]
        others = {i for _, (first, end) in split.pre_tokenize_str("".join(map(chr, some))) for i in range(first, end)}
        found.update(code for i, code in enumerate(some) if i not in others)
    return found


def numeric() -> set[int]:
    """The characters that the step Digits isolates, which are Rust's."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    found: set[int] = set()
    for start in range(0, len(CHARACTERS), AT_ONCE):
        text = ".".join(map(chr, CHARACTERS[start : start + AT_ONCE]))
        found.update(ord(piece) for piece, _ in digits.pre_tokenize_str(text) if len(piece) == 1 and piece != ".")
    return found


def may_compose() -> set[int]:
    """The characters without which a text is in NFC for sure."""
    second = {decomposed[-1] for code in CHARACTERS if len(decomposed := unicodedata.normalize("NFD", chr(code))) > 1}
    second |= {character for code in CHARACTERS for character in unicodedata.normalize("NFD", chr(code))[1:]}
    second |= set(map(chr, range(0x1161, 0x1176))) | set(map(chr, range(0x11A8, 0x11C3)))  # Hangul's vowels and ends
    return {
        code
        for code in CHARACTERS
        if (character := chr(code)) in second
        or unicodedata.combining(character)
        or unicodedata.category(character) == "Cn"
        or unicodedata.normalize("NFC", character) != character
    }


def main() -> None:
    """Writes the table to standard output."""
    values = dict.fromkeys(CHARACTERS, 0)
    for number, expression in enumerate(CLASSES, start=1):
        for code in members(expression):
            assert values[code] == 0, f"{code:#x} is of two classes"
            values[code] = number
    for flag, codes in ((IS_NUMERIC, numeric()), (MAY_COMPOSE, may_compose())):
        for code in codes:
            values[code] |= flag
    version = f"tokenizers {tokenizers.__version__} and Unicode {unicodedata.unidata_version}"
    print(f"// Made by split_table.py with {version}; don't edit.")
    print_rows("kClasses", list(runs(lambda code: values.get(code, 0))))


if __name__ == "__main__":
    main()
