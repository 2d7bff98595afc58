"""What both ways of extending a vocabulary share: what may stand in a new piece, and learning that can be stopped."""

import unicodedata
from collections.abc import Callable
from typing import TypeVar

from fontTools.unicodedata import script
from rich.progress import track

from vikhr_fast.io.console import console

REPORT_NAME = "extend.json"
MAX_CHARACTERS = 16
"""Of a new piece, as SentencePiece's trainer has it."""
_JOINS_ANY = 2**32 - 1
_PIECES_AT_ONCE = 64  # learnt between two chances to interrupt
_Piece = TypeVar("_Piece")


def scripts(characters: set[str]) -> dict[int, int]:
    """Classes of characters that may stand together in a new piece: those of a script, and signs of no script.

    Digits, spaces and control characters have none; a mark that joins any script, such as an accent, goes with all.
    """
    classes: dict[int, int] = {}
    numbers: dict[str, int] = {}
    for character in sorted(characters):
        if unicodedata.category(character)[0] in "NZC":
            continue
        name = script(character)
        name = "Hani" if name in ("Hira", "Kana") or character == "ー" else name
        classes[ord(character)] = _JOINS_ANY if name == "Zinh" else numbers.setdefault(name, len(numbers))
    return classes


def learn_pieces(learn: Callable[[int], list[_Piece]], count: int) -> list[_Piece]:
    """Up to `count` pieces from a function that gives up to so many further ones; shows how far it is."""
    learnt: list[_Piece] = []
    steps = range(0, count, _PIECES_AT_ONCE)
    for start in track(steps, "pieces", console=console, disable=not console.is_terminal):
        learnt += learn(min(_PIECES_AT_ONCE, count - start))
    return learnt
