"""A base vocabulary that grows: BPE training goes on, on new text, after the merges that the base already has.

Base pieces keep their ids, scores and order, so whatever the base joins is still joined first, and a text of which no
new piece is a part keeps its segmentation. Merging two vocabularies that were trained apart would instead leave many
pieces without a path of merges that leads to them.
"""

from collections.abc import Container
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from tyro.conf import Positional

from vikhr_fast._native import Extender, WordCounts
from vikhr_fast.data.read import named
from vikhr_fast.data.text_lines import line_bytes
from vikhr_fast.errors import InputError
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import atomic_directory, refuse_existing, sha256_of, write_json
from vikhr_fast.tokenizer import export
from vikhr_fast.tokenizer.added_tokens import named_tokens, read_added_tokens
from vikhr_fast.tokenizer.efficiency import measure
from vikhr_fast.tokenizer.export import CONTROL, MODEL_NAME, NORMAL
from vikhr_fast.tokenizer.extend_byte_level import extend_byte_level
from vikhr_fast.tokenizer.files import TOKENIZER, TOKENIZER_JSON, tokenizer_file
from vikhr_fast.tokenizer.new_pieces import MAX_CHARACTERS, REPORT_NAME, learn_pieces, scripts
from vikhr_fast.tokenizer.pieces import unreachable_pieces
from vikhr_fast.tokenizer.train import Learning, control_pieces
from vikhr_fast.tokenizer.word_counts import count_words

_SPACE = "▁"


@dataclass(frozen=True)
class ExtendTokenizer(Learning):
    """Adds pieces for new text to a base tokenizer, whose pieces keep their ids.

    The base is a SentencePiece BPE model, or a byte-level BPE tokenizer as of Llama 3, Qwen2, GPT-2 and Mistral-Nemo.
    Every new piece is reachable; OUTPUT/extend.json says how many there are. The same input and options give the same
    bytes. A word that is counted takes about 300 bytes of memory.
    """

    base: Positional[Path] = field(kw_only=True)
    """The tokenizer to extend: a SentencePiece .model file, a byte-level tokenizer.json, or a directory with
    tokenizer.model or, without one, tokenizer.json."""
    compare: tuple[Path, ...] = ()
    """English text, say: extend.json tells how many of its words are segmented in another way than before."""
    max_words: int = 5_000_000
    """Different words to count at most; past it the rarer half is forgotten."""


def extend_tokenizer(options: ExtendTokenizer) -> dict[str, Any]:
    """Learns the new pieces and writes `options.output`, complete or not at all.

    Control tokens that the files beside the base's model add become control pieces; added words are left out.

    Returns:
        The report that is also written to extend.json: numbers of `base`, `control`, `learnt` and `characters` pieces,
        which follow each other in this order; `words_left_out`; `rarest`, the occurrences of the last piece learnt;
        `unreachable` pieces; SHA-256 of the base; and, if there is text to compare, `compared`: its `words`, the share
        `words_changed` that falls into other pieces, `tokens_before` and `tokens_after`. For a byte-level base see
        `extend_byte_level`.

    Raises:
        InputError: an impossible option, unreadable or empty input, a base that other tools could not load with the
            same ids, a vocabulary size that leaves no room or that the text cannot fill.
    """
    file = tokenizer_file(options.base) if options.base.is_dir() else options.base
    if file is None:
        raise InputError(f"{options.base}: neither {TOKENIZER} nor {TOKENIZER_JSON} in it; give a directory with one")
    if file.suffix == Path(TOKENIZER_JSON).suffix:
        return extend_byte_level(options, file, options.compare)
    wanted = control_pieces(options)
    refuse_existing(options.output)
    base_file = export.find_model(file)
    model = export.read_model(base_file)
    export.refuse_inexact(model, base_file)
    known = {piece.piece: piece.type for piece in model.pieces}
    added = read_added_tokens(base_file, [piece.piece for piece in model.pieces])
    if added.words:
        logger.warning(f"{base_file.parent}: {len(added.words)} added words left out: {named_tokens(added.words)}")
    control = [piece for piece in dict.fromkeys([*wanted, *added.control]) if known.get(piece) != CONTROL]
    if taken := [piece for piece in control if piece in known]:
        raise InputError(f"{base_file}: {', '.join(taken)}: a piece of text there, so no control piece; choose another")
    words = count_words(options.input, options.weights, options.text_field, options.max_words, line_bytes(options))
    characters = _new_characters(words, known, options.character_coverage)
    base_size = len(model.pieces)
    room = options.vocab_size - base_size - len(control) - len(characters)
    if room < 1:
        needed = f"the base has {base_size} pieces, control pieces and characters of the text take "
        needed += f"{len(control) + len(characters)} more; give more than {options.vocab_size - room}"
        raise InputError(f"{base_file}: vocab_size {options.vocab_size}: {needed}")
    # New pieces come below all of the base's but those that mark runs of spaces as last of all.
    score = min(piece.score for piece in model.pieces if piece.type == NORMAL and piece.piece.strip(_SPACE)) - 1
    if np.float32(score - room) == np.float32(score - room - 1):
        raise InputError(f"{base_file}: its scores go down to {score + 1:g}, too low to go on below; use another base")
    learnt = _learn(model, words, characters, room, score)
    if len(learnt) < room:
        most = options.vocab_size - room + len(learnt)
        size = f"{named(options.input)}: vocab_size {options.vocab_size}"
        raise InputError(f"{size}: too little text for it; give more, or at most --vocab-size {most}")

    for piece in control:
        model.pieces.add(piece=piece, score=0, type=CONTROL)
        model.trainer_spec.control_symbols.append(piece)
    for number, piece in enumerate([*(piece for piece, _ in learnt), *characters]):
        model.pieces.add(piece=piece.replace(" ", _SPACE), score=score - number, type=NORMAL)
    model.trainer_spec.vocab_size = len(model.pieces)
    with atomic_directory(options.output) as directory:
        new_file = directory / MODEL_NAME
        new_file.write_bytes(model.SerializeToString(deterministic=True))
        export.export_tokenizer(new_file, directory)
        report = {
            "base": base_size,
            "control": len(control),
            "learnt": len(learnt),
            "characters": len(characters),
            "words_left_out": len(added.words),
            "rarest": learnt[-1][1],
            "unreachable": len(unreachable_pieces(new_file)),
            "base_sha256": sha256_of(base_file),
        }
        if options.compare:
            before, after = measure([base_file, new_file], options.compare)
            figures = {name: after[name] for name in ("words", "words_changed")}
            report["compared"] = {**figures, "tokens_before": before["tokens"], "tokens_after": after["tokens"]}
        write_json(directory / REPORT_NAME, report)
    return report


def _new_characters(words: WordCounts, known: Container[str], coverage: float) -> list[str]:
    """The most frequent characters of the text, down to the coverage, as far as the base lacks them."""
    counts = sorted((-count, chr(code)) for code, count in words.characters())
    wanted = coverage * -sum(count for count, _ in counts)
    covered = accumulate((-count for count, _ in counts), initial=0)
    frequent = [character for before, (_, character) in zip(covered, counts, strict=False) if before < wanted]
    return [character for character in frequent if character not in known and character not in " \0"]


def _learn(model: Any, words: WordCounts, characters: list[str], count: int, score: float) -> list[tuple[str, int]]:
    """Up to `count` new pieces, whose scores begin at `score`, and their frequencies."""
    base = [(piece.piece, piece.score) for piece in model.pieces if piece.type == NORMAL]
    single = {piece for piece, _ in base if len(piece) == 1 and piece != _SPACE}
    base += [(character, score) for character in characters]
    extender = Extender(base, scripts(single.union(characters)), MAX_CHARACTERS, score)
    extender.add_words(words)
    return learn_pieces(extender.learn, count)
