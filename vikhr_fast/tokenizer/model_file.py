"""The bytes of a SentencePiece model, as this package reads it and writes it for others.

Mistral's v3 and v7 vocabularies hold [REFERENCE_DOC_0] and the like as user-defined pieces, which SentencePiece, and
mistral-common with it, finds in text. Here a control token's text inside a document stays text, so such a piece becomes
a control piece. That is done where all user-defined pieces have the form of control tokens: where one has not, they are
words as Gemma's are, and the model is read as SentencePiece reads it.
"""

from functools import cache
from pathlib import Path

from vikhr_fast.io.console import logger
from vikhr_fast.io.guarded import read_bytes
from vikhr_fast.tokenizer.added_tokens import CONTROL_FORM, named_tokens

_warn_once = cache(logger.warning)  # a command may read a model several times


def read_model_bytes(file: Path) -> bytes:
    """A SentencePiece model with its user-defined control tokens as control pieces; else the file's own bytes.

    What is no model comes back as it is, for the reader of the bytes to say what is wrong with it.

    Raises:
        OSError: the file can't be read.
        InputError: it is larger than any model.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    data, model = read_bytes(file), ModelProto()
    try:
        model.ParseFromString(data)
        found = {piece.piece: index for index, piece in enumerate(model.pieces) if piece.type == piece.USER_DEFINED}
    except (DecodeError, UnicodeDecodeError):
        return data
    if not found or not all(map(CONTROL_FORM.fullmatch, found)):
        return data

    for index in found.values():
        model.pieces[index].type = ModelProto.SentencePiece.CONTROL
    model.trainer_spec.control_symbols.extend(found)
    del model.trainer_spec.user_defined_symbols[:]
    what = f"{len(found)} user-defined pieces are control pieces here: {named_tokens(found)}"
    _warn_once(f"{file}: {what}; their text in a document stays text, where SentencePiece finds them")
    return bytes(model.SerializeToString(deterministic=True))
