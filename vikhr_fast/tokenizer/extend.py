"""A base vocabulary that grows: BPE training goes on, on new text, after the merges that the base already has.

Base pieces keep their ids, scores and order, so whatever the base joins is still joined first, and a text of which no
new piece is a part keeps its segmentation. Merging two vocabularies that were trained apart would instead leave many
pieces without a path of merges that leads to them.
"""

import json
import unicodedata
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fontTools.unicodedata import script
from rich.progress import track
from tyro.conf import Positional

from vikhr_fast._native import Extender, WordCounts
from vikhr_fast.console import console
from vikhr_fast.corpus.read import named
from vikhr_fast.errors import InputError
from vikhr_fast.files import atomic_directory, refuse_existing, sha256_of, write_text
from vikhr_fast.tokenizer.efficiency import segmentation_change
from vikhr_fast.tokenizer.export import (
    BYTE,
    CONTROL,
    MODEL_NAME,
    NORMAL,
    export_tokenizer,
    find_model,
    read_model,
    refuse_inexact,
)
from vikhr_fast.tokenizer.pieces import unreachable_pieces
from vikhr_fast.tokenizer.train import control_pieces
from vikhr_fast.tokenizer.word_counts import count_words

REPORT_NAME = "extend.json"
_SPACE = "▁"
_MAX_CHARACTERS = 16  # of a new piece, as SentencePiece's trainer has it
_JOINS_ANY = 2**32 - 1
_PIECES_AT_ONCE = 64  # learnt between two chances to interrupt


@dataclass(frozen=True)
class ExtendTokenizer:
    """Adds pieces for new text to a base tokenizer, whose pieces keep their ids.

    Every new piece is reachable. The same input and options give the same bytes.
    """

    base: Positional[Path]
    """The tokenizer to extend: a SentencePiece .model file, or a directory with tokenizer.model."""
    input: tuple[Path, ...]
    """Text to learn from: files (.txt in paragraphs, .jsonl, .parquet; .txt and .jsonl also as .gz or .zst), patterns
    such as 'news/*.jsonl.gz', or data sets of the Hub, hf:OWNER/NAME@COMMIT[/CONFIG[/SPLIT]]."""
    output: Path
    """Directory to make: tokenizer.model, extend.json, and the files that transformers, vLLM and llama.cpp read."""
    compare: tuple[Path, ...] = ()
    """English text, say: extend.json tells how many of its words are segmented in another way than before."""
    weights: tuple[float, ...] = ()
    """Share of each input in the text learnt from, in any unit; without it each counts as large as it is."""
    vocab_size: int = 40_000
    """Number of pieces afterwards, those of the base counted in."""
    character_coverage: float = 0.99995
    """Share of the text's characters that have or get a piece of their own; the rarest others are spelt in bytes."""
    control: tuple[str, ...] = ()
    """Control pieces to add besides <|im_start|> and <|im_end|>, which text never contains: '<|tool|>', say."""
    reserved: int = 0
    """Number of control pieces <|reserved_0|>, ... to add for later use."""
    max_words: int = 5_000_000
    """Different words to count at most, about 300 bytes of memory each; past it the rarer half is forgotten."""
    text_field: str = "text"
    """JSONL field or Parquet column that holds the text."""


def extend_tokenizer(options: ExtendTokenizer) -> dict[str, Any]:
    """Learns the new pieces and writes `options.output`, complete or not at all.

    Returns:
        The report that is also written to extend.json: numbers of `base`, `control`, `learnt` and `characters` pieces,
        which follow each other in this order; `rarest`, the occurrences of the last piece learnt; `unreachable` pieces;
        SHA-256 of the base; and `compared`, see `efficiency.segmentation_change`, if there is text to compare.

    Raises:
        InputError: an impossible option, unreadable or empty input, a base that other tools could not load with the
            same ids, a vocabulary size that leaves no room or that the text cannot fill.
    """
    if not 0.98 <= options.character_coverage <= 1:
        raise InputError(f"--character-coverage {options.character_coverage}: must be from 0.98 to 1")
    refuse_existing(options.output)
    base_file = find_model(options.base)
    model = read_model(base_file)
    refuse_inexact(model, base_file)
    known = {piece.piece: piece.type for piece in model.pieces}
    control = [piece for piece in control_pieces(options.control, options.reserved) if known.get(piece) != CONTROL]
    if taken := [piece for piece in control if piece in known]:
        raise InputError(f"{base_file}: {', '.join(taken)}: a piece of text there, so no control piece; choose another")
    words = count_words(options.input, options.weights, options.text_field, options.max_words)
    characters = _new_characters(words, known, options.character_coverage)
    base_size = len(model.pieces)
    room = options.vocab_size - base_size - len(control) - len(characters)
    if room < 1:
        needed = f"the base has {base_size} pieces, control pieces and characters of the text take "
        needed += f"{len(control) + len(characters)} more; give more than {options.vocab_size - room}"
        raise InputError(f"{base_file}: vocab_size {options.vocab_size}: {needed}")
    learnt = _learn(model, base_file, words, characters, room)
    if len(learnt) < room:
        most = options.vocab_size - room + len(learnt)
        size = f"{named(options.input)}: vocab_size {options.vocab_size}"
        raise InputError(f"{size}: too little text for it; give more, or at most --vocab-size {most}")

    _append(model, control, [piece for piece, _ in learnt], characters)
    with atomic_directory(options.output) as directory:
        (directory / MODEL_NAME).write_bytes(model.SerializeToString(deterministic=True))
        export_tokenizer(directory / MODEL_NAME, directory)
        report = {
            "base": base_size,
            "control": len(control),
            "learnt": len(learnt),
            "characters": len(characters),
            "rarest": learnt[-1][1],
            "unreachable": len(unreachable_pieces(directory / MODEL_NAME)),
            "base_sha256": sha256_of(base_file),
        }
        if options.compare:
            report["compared"] = segmentation_change(base_file, directory / MODEL_NAME, options.compare)
        write_text(directory / REPORT_NAME, json.dumps(report, indent=2) + "\n")
    return report


def _new_characters(words: WordCounts, known: Container[str], coverage: float) -> list[str]:
    """The most frequent characters of the text, down to the coverage, as far as the base lacks them."""
    counts = sorted(((count, chr(code)) for code, count in words.characters()), key=lambda item: (-item[0], item[1]))
    wanted = coverage * sum(count for count, _ in counts)
    covered, characters = 0, []
    for count, character in counts:
        if covered >= wanted:
            break
        covered += count
        if character not in known and character not in " \0":
            characters.append(character)
    return characters


def _scripts(characters: set[str]) -> dict[int, int]:
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
        joins_any = name == "Zinh"
        classes[ord(character)] = _JOINS_ANY if joins_any else numbers.setdefault(name, len(numbers))
    return classes


def _learn(model: Any, base_file: Path, words: WordCounts, characters: list[str], count: int) -> list[tuple[str, int]]:
    """Up to `count` new pieces and their frequencies."""
    base = [(piece.piece, piece.score) for piece in model.pieces if piece.type == NORMAL]
    single = {piece for piece, _ in base if len(piece) == 1 and piece != _SPACE}
    first = _first_score(model)
    if np.float32(first - count) == np.float32(first - count - 1):
        raise InputError(f"{base_file}: its scores go down to {first + 1:g}, too low to go on below; use another base")
    base += [(character, first) for character in characters]
    extender = Extender(base, _scripts(single.union(characters)), _MAX_CHARACTERS, first)
    extender.add_words(words)
    learnt: list[tuple[str, int]] = []
    steps = range(0, count, _PIECES_AT_ONCE)
    for start in track(steps, "pieces", console=console, disable=not console.is_terminal):
        learnt += extender.learn(min(_PIECES_AT_ONCE, count - start))
    return learnt


def _first_score(model: Any) -> float:
    """The score of the first new piece, below all of the base's but those that mark runs of spaces as last of all."""
    scores = [piece.score for piece in model.pieces if piece.type == NORMAL and piece.piece.strip(_SPACE)]
    return float(min(scores)) - 1


def _append(model: Any, control: list[str], learnt: list[str], characters: list[str]) -> None:
    """Adds the new pieces behind those of the base; those learnt keep the scores that the trainer counted with."""
    score = _first_score(model)
    for piece in control:
        model.pieces.add(piece=piece, score=0, type=CONTROL)
        model.trainer_spec.control_symbols.append(piece)
    for piece in (*learnt, *characters):
        model.pieces.add(piece=piece.replace(" ", _SPACE), score=score, type=NORMAL)
        score -= 1
    model.trainer_spec.vocab_size = len(model.pieces)
    assert sum(piece.type == BYTE for piece in model.pieces) == 256
