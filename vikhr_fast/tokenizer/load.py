"""The encoder of a tokenizer, whichever of the two kinds it is."""

from pathlib import Path
from typing import TypeAlias

from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer.bpe import BpeEncoder
from vikhr_fast.tokenizer.files import tokenizer_file
from vikhr_fast.tokenizer.json_encoder import JsonEncoder

Encoder: TypeAlias = BpeEncoder | JsonEncoder


def load_encoder(path: Path) -> Encoder:
    """The encoder that `path` means: of a SentencePiece .model or a tokenizer.json, or of a directory with one.

    Raises:
        InputError: there is none, or it is damaged or of another kind.
    """
    file = tokenizer_file(path) if path.is_dir() else path
    if file is None:
        raise InputError(f"{path}: neither tokenizer.model nor tokenizer.json in it; give a directory with one")
    return JsonEncoder.from_file(file) if file.suffix == ".json" else BpeEncoder.from_file(file)
