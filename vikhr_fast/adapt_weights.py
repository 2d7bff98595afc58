"""Safetensors files with two matrices exchanged, all else copied byte for byte, in little memory.

The format: a little-endian uint64 length, a JSON header of that length, the tensors without gaps.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from rich.progress import track

from vikhr_fast.adapt_rows import RowMaker
from vikhr_fast.console import console, logger
from vikhr_fast.errors import InputError
from vikhr_fast.files import atomic_file, write_text
from vikhr_fast.weights import INDEX_NAME, WEIGHTS_NAME, WeightFiles

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_COPY_BYTES = 1 << 24


def write_adapted(weights: WeightFiles, directory: Path, maker: RowMaker, untie: bool) -> None:
    """Rewrites each safetensors file of a base under its own name, and the index if there is one.

    Files that are there already are left alone: each appears only when it is complete.

    Args:
        weights: the base.
        directory: an existing one.
        maker: of the new matrices.
        untie: write a head of its own beside the embedding matrix that was both.
    """
    from vikhr_fast.model_config import read_json_object

    base = weights.directory
    index = None if (base / WEIGHTS_NAME).exists() else read_json_object(base / INDEX_NAME)
    names = [WEIGHTS_NAME] if index is None else sorted(set(index["weight_map"].values()))
    if finished := [name for name in names if (directory / name).exists()]:
        logger.info(f"{directory}: {len(finished)} of {len(names)} files of weights are done already")
    files = {name: _plan(base / name, maker.rows, untie) for name in names}
    for name in track(names, "weights", console=console, disable=not console.is_terminal):
        if name not in finished:
            with atomic_file(directory / name) as writer:
                _rewrite(base / name, files[name], writer, weights, maker)
    if index is not None:
        index["metadata"] = {"total_size": sum(file.size for file in files.values())}
        if untie:
            index["weight_map"][HEAD] = index["weight_map"][EMBEDDING]
        write_text(directory / INDEX_NAME, json.dumps(index, indent=2) + "\n")


@dataclass(frozen=True)
class _File:
    """A file as it will be."""

    header: bytes
    parts: dict[str, tuple[int, int]]
    """Name of each tensor in the order of the file: where it starts in the old one, and its size there."""
    size: int
    """Of all tensors, in bytes."""


def _plan(source: Path, rows: int, untie: bool) -> _File:
    with source.open("rb") as reader:
        (header_bytes,) = struct.unpack("<Q", reader.read(8))
        old: dict[str, Any] = json.loads(reader.read(header_bytes))
    metadata = old.pop("__metadata__", None)
    if untie and EMBEDDING in old:
        old = {**{name: entry for name, entry in old.items() if name != HEAD}, HEAD: old[EMBEDDING]}
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    parts: dict[str, tuple[int, int]] = {}
    end = 0
    for name in sorted(old, key=lambda name: old[name]["data_offsets"]):  # stable: an untied head comes second
        old_start, old_end = old[name]["data_offsets"]
        shape, size = old[name]["shape"], old_end - old_start
        parts[name] = (8 + header_bytes + old_start, size)
        if name in (EMBEDDING, HEAD):
            size, shape = size // shape[0] * rows, [rows, *shape[1:]]
        header[name] = {**old[name], "shape": shape, "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)  # keeps the tensors aligned
    return _File(struct.pack("<Q", len(encoded)) + encoded, parts, end)


def _rewrite(source: Path, file: _File, writer: IO[bytes], weights: WeightFiles, maker: RowMaker) -> None:
    import torch

    writer.write(file.header)
    with source.open("rb") as reader:
        for name, (start, size) in file.parts.items():
            if name in (EMBEDDING, HEAD):
                for block in maker.blocks(_mapped(source, start, size, weights), name):
                    writer.write(block.view(torch.uint8).numpy().data)
            else:
                reader.seek(start)
                _copy(reader, writer, size)


def _mapped(source: Path, start: int, size: int, weights: WeightFiles) -> "Tensor":
    """A base matrix as it lies in its file: only the pages that are read come into memory, and may leave it again."""
    import torch

    # Copy-on-write only because a tensor cannot be read-only.
    data = np.memmap(source, dtype=np.uint8, mode="c", offset=start, shape=(size,))
    return torch.from_numpy(data).view(weights.dtypes[EMBEDDING]).view(weights.shapes[EMBEDDING])


def _copy(reader: IO[bytes], writer: IO[bytes], size: int) -> None:
    while size:
        block = reader.read(min(size, _COPY_BYTES))
        if not block:
            raise InputError(f"{reader.name}: became shorter while it was read; copy it again")
        writer.write(block)
        size -= len(block)


def refuse_unfitting(weights: WeightFiles, shape: tuple[int, int], is_tied: bool) -> None:
    """Raises InputError unless the base has its embedding matrix, and its head if untied, in this shape."""
    shapes: Mapping[str, tuple[int, ...]] = weights.shapes
    for name in (EMBEDDING,) if is_tied else (EMBEDDING, HEAD):
        if (found := shapes.get(name)) != shape:
            what = "missing" if found is None else f"its shape is {list(found)}"
            raise InputError(
                f"{weights.directory}: {name}: {what}, config.json wants {list(shape)}; give a whole model"
            )
    if not is_tied and weights.dtypes[HEAD] != weights.dtypes[EMBEDDING]:
        raise InputError(f"{weights.directory}: {HEAD}: another dtype than {EMBEDDING}; convert one of them")
