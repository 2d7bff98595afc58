"""What can be said of a vocabulary's pieces alone."""

from itertools import pairwise
from pathlib import Path

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
    normal = [(index, piece.piece) for index, piece in enumerate(model.pieces) if piece.type == NORMAL]
    known = set().union(*(piece.piece for piece in model.pieces))
    stranger = next(character for character in map(chr, range(0xE000, 0xF8FF)) if character not in known)
    ids, offsets = encoder.encode_batch([stranger + text for _, text in normal])
    alone = len(encoder.encode(stranger))
    return [
        text
        for (index, text), (start, end) in zip(normal, pairwise(offsets), strict=True)
        if end - start != alone + 1 or ids[end - 1] != index
    ]
