"""What the base of an adaptation has: a SentencePiece model, rows that are no token's."""

from pathlib import Path

from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer.added_tokens import AddedTokens
from vikhr_fast.tokenizer.export import MODEL_NAME, find_model

_MULTIPLES = tuple(2**power for power in range(10))  # what people pad the rows of a matrix to


def base_model(base: Path) -> Path:
    """The base's SentencePiece model; says what the base is where it is known to have none."""
    if base.is_dir() and not (base / MODEL_NAME).exists():
        if (base / "tekken.json").exists():
            kind = "has a tekken vocabulary (Mistral-Nemo and later), no SentencePiece one; give v0.1-3"
            raise InputError(f"{base}: {kind}")
        if (base / "tokenizer.json").exists():
            kind = "its vocabulary is not a SentencePiece one, as Llama-3's is not"
            raise InputError(f"{base}: no {MODEL_NAME}: {kind}; it can be tuned with its own vocabulary, not adapted")
    return find_model(base)


def padding_rows(base_file: Path, pieces: int, added: AddedTokens, rows: int) -> int:
    """How many rows of the base's matrices belong to no token; InputError where these can't be mere padding."""
    known = 1 + max([pieces - 1, *added.all().values()])
    if not any(rows == -(-known // multiple) * multiple for multiple in _MULTIPLES):
        tokens = f"{pieces} pieces" + (f" and {len(added.all())} added tokens" if known > pieces else "")
        advice = "give the tokenizer that the base was trained with, and its added_tokens.json where it has one"
        raise InputError(f"{base_file}: {tokens}, but the weights have {rows} rows, which is no padding; {advice}")
    return rows - pieces - len(added.all())
