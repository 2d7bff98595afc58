"""What can be said of a vocabulary's pieces alone."""

from pathlib import Path
from typing import Any

from vikhr_fast.tokenizer.bpe import BpeEncoder
from vikhr_fast.tokenizer.export import NORMAL, read_model


def unreachable_pieces(model_file: Path) -> list[str]:
    """The pieces that no text is ever encoded to.

    Merges inside a piece happen in the same order whatever stands around it, as long as none crosses its ends. So a
    piece is reachable exactly if its own text, behind a character that joins nothing, is encoded as this piece.

    Raises:
        InputError: not a SentencePiece BPE model that `BpeEncoder` reads.
    """
    model, encoder = read_model(model_file), BpeEncoder.from_file(model_file)
    normal = [index for index, piece in enumerate(model.pieces) if piece.type == NORMAL]
    separator = _strange_character(model)
    ids, offsets = encoder.encode_batch([separator + model.pieces[index].piece for index in normal])
    before = len(encoder.encode(separator))
    reached = (
        end - start == before + 1 and ids[end - 1] == index
        for index, start, end in zip(normal, offsets[:-1], offsets[1:], strict=True)
    )
    return [model.pieces[index].piece for index, is_reached in zip(normal, reached, strict=True) if not is_reached]


def _strange_character(model: Any) -> str:
    """A character of no piece."""
    known = set().union(*(piece.piece for piece in model.pieces))
    return next(character for character in map(chr, range(0xE000, 0xF8FF)) if character not in known)
