"""The encoder of a tokenizer, whichever of the two kinds it is, and whether two models have one."""

from pathlib import Path
from typing import TypeAlias

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import sha256_of
from vikhr_fast.tokenizer.added_tokens import read_added_tokens
from vikhr_fast.tokenizer.bpe import BpeEncoder
from vikhr_fast.tokenizer.export import read_model
from vikhr_fast.tokenizer.files import TOKENIZER, TOKENIZER_JSON, refuse_tekken, tokenizer_file
from vikhr_fast.tokenizer.json_encoder import JsonEncoder

Encoder: TypeAlias = BpeEncoder | JsonEncoder


def load_encoder(path: Path) -> Encoder:
    """The encoder that `path` means: of a SentencePiece .model or a tokenizer.json, or of a directory with one.

    Raises:
        InputError: there is none, or it is damaged or of another kind.
    """
    file = find_tokenizer(path)
    return JsonEncoder.from_file(file) if file.suffix == ".json" else BpeEncoder.from_file(file)


def find_tokenizer(path: Path) -> Path:
    """The file that `path` means: itself, or that of a tokenizer in a directory; InputError without."""
    if not path.exists():
        raise InputError(f"{path}: no such file or directory; give a directory with a tokenizer, or its file")
    file = tokenizer_file(path) if path.is_dir() else path
    if file is None:
        refuse_tekken(path)
        raise InputError(f"{path}: neither tokenizer.model nor tokenizer.json in it; give a directory with one")
    return file


def same_tokenizer(first: Path, second: Path) -> bool | None:
    """Whether two models have one, by the first kind of file that is in both directories; None without such a kind.

    Raises:
        InputError: a file is damaged.
    """
    for name in (TOKENIZER, TOKENIZER_JSON):
        files = [directory / name for directory in (first, second)]
        if all(file.is_file() for file in files):
            is_same = sha256_of(files[0]) == sha256_of(files[1])
            return is_same and (name == TOKENIZER_JSON or _added(files[0]) == _added(files[1]))
    return None


def _added(model_file: Path) -> dict[str, int]:
    return read_added_tokens(model_file, [piece.piece for piece in read_model(model_file).pieces]).all()
