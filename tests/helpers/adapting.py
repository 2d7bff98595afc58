"""What the tests of adaptation share."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import vikhr_fast
from vikhr_fast.model.weights import EMBEDDING, HEAD

RUSSIAN = Path(vikhr_fast.__file__).parent / "experiments" / "sample" / "data" / "russian" / "stories.txt"
NORMAL, CONTROL, BYTE = 1, 3, 6
ROWS = 500
Bases = Callable[[torch.dtype, int], Path]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors, from wherever they lie."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def segmented(model: Any, text: str) -> list[int]:
    """BPE as it is defined: join the adjacent pair of the best score, leftmost first, until no pair is a piece."""
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}
    ids = {piece.piece: index for index, piece in enumerate(model.pieces)}
    parts = list(text)
    while joins := [(scores[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]:
        at = -max(joins)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [
        index
        for part in parts
        for index in ([ids[part]] if part in scores else [ids[f"<0x{byte:02X}>"] for byte in part.encode()])
    ]


def rewrite(file: Path, **changes: Any) -> None:
    """Changes fields of a JSON file; None removes one."""
    values = {**json.loads(file.read_text()), **changes}
    removed = {name for name, value in changes.items() if value is None}
    file.write_text(json.dumps({name: value for name, value in values.items() if name not in removed}))


def base_ids_of(directory: Path) -> list[int | None]:
    """By new id the id of the base that it continues, as adapt.json has it."""
    found: list[int | None] = json.loads((directory / "adapt.json").read_text())["base_ids"]
    return found


def tie(base: Path) -> None:
    """Makes a model whose head is its embedding matrix."""
    tensors = weights(base)
    del tensors[HEAD]
    for file in base.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    rewrite(base / "config.json", tie_word_embeddings=True)


def store_head(base: Path, head: torch.Tensor | None) -> None:
    """Makes a model that is tied by its config.json, and holds a head all the same; None is the embedding matrix."""
    tie(base)
    tensors = weights(base)
    tensors[HEAD] = tensors[EMBEDDING].clone() if head is None else head
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
