"""Section 3.1 of the paper: a Mistral model gets the embedding matrix and LM head of a new vocabulary.

A piece that the base model knows keeps its row in both matrices, bit for bit. A new piece gets the mean of the rows
of the base's pieces for the same text. Unknown, BOS, EOS and padding are matched by role, whatever they are called.
All other tensors are copied as bytes.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from vikhr_fast.errors import InputError
from vikhr_fast.files import atomic_directory, refuse_existing, sha256_of, write_text
from vikhr_fast.tokenizer.export import BYTE, export_tokenizer, find_model, read_model, role_ids

if TYPE_CHECKING:
    from torch import Tensor

    from vikhr_fast.model_config import ModelConfig
    from vikhr_fast.weights import WeightFiles

REPORT_NAME = "adapt.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_COPY_BYTES = 1 << 24
_GENERATION_NAME = "generation_config.json"


@dataclass(frozen=True)
class Adapt:
    """Gives a Mistral model a new vocabulary; the rest of its weights stay as they are."""

    base: Path
    """Hugging Face directory of the base: config.json, safetensors, tokenizer.model."""
    tokenizer: Path
    """The new tokenizer: a directory with tokenizer.model, or such a file."""
    output: Path
    """Directory to make: a Hugging Face directory with the new tokenizer, and adapt.json."""


def adapt(options: Adapt) -> dict[str, Any]:
    """Writes `options.output`, complete or not at all.

    The weights are streamed tensor by tensor: memory holds one of the two matrices, old and new, at a time.

    Returns:
        The report that is also written to adapt.json: counts of pieces `by_role`, `copied`, `averaged` and, among
        these, `averaged_with_bytes` (the base spelt some of their text in bytes); `base_ids`, for each new id the id of
        the base that it continues, or null for an averaged one; SHA-256 of both tokenizer models.

    Raises:
        InputError: a file is missing or damaged, the model is not an untied Mistral, or its vocabulary and its
            weights do not match.
    """
    from vikhr_fast.model_config import read_config
    from vikhr_fast.weights import WeightFiles

    refuse_existing(options.output)
    new_file, base_file = find_model(options.tokenizer), find_model(options.base)
    new, base = read_model(new_file), read_model(base_file)
    config, weights = read_config(options.base), WeightFiles(options.base)
    for name in (EMBEDDING, HEAD):
        if (shape := weights.shapes.get(name)) != (config.vocab_size, config.hidden_size):
            found = "missing" if shape is None else f"its shape is {list(shape)}"
            wanted = f"config.json wants [{config.vocab_size}, {config.hidden_size}]"
            raise InputError(f"{options.base}: {name}: {found}, {wanted}; give a complete, untied Mistral")
    if len(base.pieces) != config.vocab_size:
        sizes = f"{len(base.pieces)} pieces, but the weights have {config.vocab_size} rows"
        raise InputError(f"{base_file}: {sizes}; give the tokenizer that the base was trained with")

    sources, counts, base_ids = _row_sources(base, base_file, new)
    report = {
        **counts,
        "vocab_size": len(sources),
        "base_tokenizer_sha256": sha256_of(base_file),
        "tokenizer_sha256": sha256_of(new_file),
        "base_ids": base_ids,
    }
    with atomic_directory(options.output) as directory:
        export_tokenizer(new_file, directory)
        _write_configs(options.base, directory, config, new)
        _write_weights(weights, directory, sources)
        write_text(directory / REPORT_NAME, json.dumps(report) + "\n")
    return report


def _row_sources(base: Any, base_file: Path, new: Any) -> tuple[list[list[int]], dict[str, int], list[int | None]]:
    """Where each new row comes from.

    Returns:
        the base ids whose mean each new row is; how many rows came how; for each new row the base id that it keeps, or
        None for a mean.
    """
    import sentencepiece

    ids = {(piece.type, piece.piece): index for index, piece in enumerate(base.pieces)}
    if sum(kind == BYTE for kind, _ in ids) != 256:
        raise InputError(f"{base_file}: it has no byte_fallback, so new pieces cannot be spelt; use a base that has")
    base_roles = role_ids(base)
    by_role = {index: base_roles[role] for role, index in role_ids(new).items() if role in base_roles}
    # As the base segments a stretch of text where it stands: its own word boundaries, none added in front.
    inner = type(base)()
    inner.CopyFrom(base)
    inner.normalizer_spec.add_dummy_prefix = False
    inner.normalizer_spec.remove_extra_whitespaces = False
    processor = sentencepiece.SentencePieceProcessor(model_proto=inner.SerializeToString())

    sources: list[list[int]] = []
    counts = {"by_role": 0, "copied": 0, "averaged": 0, "averaged_with_bytes": 0}
    base_ids: list[int | None] = []
    for index, piece in enumerate(new.pieces):
        base_id = by_role[index] if index in by_role else ids.get((piece.type, piece.piece))
        base_ids.append(base_id)
        if base_id is not None:
            sources.append([base_id])
            counts["by_role" if index in by_role else "copied"] += 1
        else:
            parts = processor.encode(piece.piece.replace("▁", " "))
            sources.append(parts)
            counts["averaged"] += 1
            counts["averaged_with_bytes"] += any(base.pieces[part].type == BYTE for part in parts)
    return sources, counts, base_ids


def _write_configs(base: Path, directory: Path, config: "ModelConfig", new: Any) -> None:
    """config.json and generation_config.json of the base, with what the vocabulary changes."""
    from vikhr_fast.model_config import CONFIG_NAME, read_json_object

    roles = role_ids(new)
    token_ids = {f"{role}_token_id": roles.get(role) for role in ("bos", "eos", "pad")}
    values = {
        **read_json_object(base / CONFIG_NAME),
        **token_ids,
        "vocab_size": len(new.pieces),
        # Readers of transformers 4 look for the first, of transformers 5 for the second.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
    }
    write_text(directory / CONFIG_NAME, json.dumps(values, indent=2) + "\n")
    if (base / _GENERATION_NAME).exists():
        generation = {**read_json_object(base / _GENERATION_NAME), **token_ids}
        write_text(directory / _GENERATION_NAME, json.dumps(generation, indent=2) + "\n")


def _write_weights(weights: "WeightFiles", directory: Path, sources: list[list[int]]) -> None:
    """Rewrites each safetensors file of the base under its own name, and the index if there is one."""
    from vikhr_fast.model_config import read_json_object
    from vikhr_fast.weights import INDEX_NAME, WEIGHTS_NAME

    base = weights.directory
    if (base / WEIGHTS_NAME).exists():
        names, index = [WEIGHTS_NAME], None
    else:
        index = read_json_object(base / INDEX_NAME)
        names = sorted(set(index["weight_map"].values()))
    console = Console(stderr=True)
    total_size = 0
    for name in track(names, "weights", console=console, disable=not console.is_terminal):
        total_size += _rewrite(base / name, directory / name, weights, sources)
    if index is not None:
        index["metadata"] = {"total_size": total_size}
        write_text(directory / INDEX_NAME, json.dumps(index, indent=2) + "\n")


def _rewrite(source: Path, target: Path, weights: "WeightFiles", rows: list[list[int]]) -> int:
    """Copies a safetensors file, byte for byte except for the two matrices. Returns the size of its tensors in bytes.

    The format: a little-endian uint64 length, a JSON header of that length, the tensors without gaps.
    """
    import torch

    with source.open("rb") as reader, target.open("wb") as writer:
        (header_bytes,) = struct.unpack("<Q", reader.read(8))
        header = json.loads(reader.read(header_bytes))
        metadata = {"__metadata__": header.pop("__metadata__")} if "__metadata__" in header else {}
        names = sorted(header, key=lambda name: header[name]["data_offsets"])
        places = {name: header[name]["data_offsets"] for name in names}
        end = 0
        for name in names:
            start, (old_start, old_end) = end, places[name]
            end += old_end - old_start
            if name in (EMBEDDING, HEAD):
                old_rows, columns = header[name]["shape"]
                end = start + (old_end - old_start) // old_rows * len(rows)
                header[name]["shape"] = [len(rows), columns]
            header[name]["data_offsets"] = [start, end]

        encoded = json.dumps({**metadata, **header}, separators=(",", ":")).encode("utf-8")
        encoded += b" " * (-len(encoded) % 8)  # keeps the tensors aligned
        writer.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in names:
            if name in (EMBEDDING, HEAD):
                adapted = _adapted(weights.read(name, weights.dtypes[name]), rows)
                writer.write(adapted.view(torch.uint8).numpy().data)
            else:
                reader.seek(8 + header_bytes + places[name][0])
                _copy(reader, writer, places[name][1] - places[name][0])
    return end


def _copy(reader: IO[bytes], writer: IO[bytes], size: int) -> None:
    while size:
        block = reader.read(min(size, _COPY_BYTES))
        if not block:
            raise InputError(f"{reader.name}: became shorter while it was read; copy it again")
        writer.write(block)
        size -= len(block)


def _adapted(old: "Tensor", sources: list[list[int]]) -> "Tensor":
    """The rows of the new vocabulary, [len(sources), H]: copies, and means in float32 rounded once.

    float64 weights, which only tests have, are averaged in float64.
    """
    import torch

    wide = torch.promote_types(old.dtype, torch.float32)
    new = torch.empty(len(sources), old.shape[1], dtype=old.dtype)
    for row, ids in enumerate(sources):
        new[row] = old[ids[0]] if len(ids) == 1 else old[ids].to(wide).mean(0)
    return new
