"""Section 3.1 of the paper: a model gets the embedding matrix and LM head of a new vocabulary.

A piece that the base model knows keeps its row in both matrices, bit for bit. A new piece gets the mean of the rows
of the base's pieces for the same text. Unknown, BOS, EOS and padding are matched by role, whatever they are called.
All other tensors are copied as bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vikhr_fast.adapt.base import base_model, padding_rows
from vikhr_fast.adapt.rows import Init, RowMaker, find_sources, piece_frequencies
from vikhr_fast.adapt.untie import untie_head
from vikhr_fast.errors import InputError, require
from vikhr_fast.io.files import json_text, refuse_existing, sha256_of, write_text
from vikhr_fast.io.guarded import read_json
from vikhr_fast.io.progress import progress_bar
from vikhr_fast.io.resumable import resumable_directory
from vikhr_fast.model.config import CONFIG_NAME, ModelConfig, read_config
from vikhr_fast.model.weights import EMBEDDING, HEAD, MAX_SHARD_BYTES, WeightFiles, write_weights
from vikhr_fast.tokenizer.added_tokens import read_added_tokens, refuse_added
from vikhr_fast.tokenizer.export import (
    CHAT_PIECES,
    CONTROL,
    export_tokenizer,
    find_model,
    read_model,
    refuse_inexact,
    role_ids,
)

REPORT_NAME = "adapt.json"
_GENERATION_NAME = "generation_config.json"
_NO_LONGER_TRUE = ("quantization_config", "rope_scaling")  # the weights are plain, and rope_parameters say the second


@dataclass(frozen=True)
class Adapt:
    """Gives a Mistral or Llama-2 model a new vocabulary; the rest of its weights stay as they are.

    Interrupted, the same command goes on with the files of weights that are still missing; they wait in
    OUTPUT.partial.
    """

    base: Path
    """Hugging Face directory of the base: config.json, safetensors, tokenizer.model."""
    output: Path
    """Directory to make: a Hugging Face directory with the new tokenizer, and adapt.json."""
    tokenizer: Path | None = None
    """The new tokenizer: a directory with tokenizer.model, or such a file. Without it, --untie-head alone is done: the
    vocabulary stays, of whatever kind, and so do the files beside the weights."""
    init: Init = "mean"
    """Rows of new pieces: the mean of the base's rows for the same text (the paper's); for ablations random ones as
    spread as the base's, the mean of all rows, or the mean weighted by how frequent the base's pieces are in --text."""
    text: tuple[Path, ...] = ()
    """Text to count the base's pieces in, for --init frequency-weighted-mean: files, patterns, or hf: data sets."""
    pad_to_multiple: int = 1
    """Add rows until their number is a multiple of this, 64 say. They are defined, and no text is encoded to them; they
    have less than the average probability, and generation_config.json forbids them."""
    untie_head: bool = False
    """Write an LM head of its own where the base uses its embedding matrix for both."""
    seed: int = 0
    """Of --init random."""


def adapt(options: Adapt) -> dict[str, Any]:
    """Writes `options.output`, complete or not at all.

    Memory holds one of the base's tensors and a block of new rows at a time.

    Rows of the base that no piece of its tokenizer.model has are left out, but for control tokens of a name that the
    new vocabulary has, too.

    Returns:
        The report: counts of pieces `by_role`, `copied`, `averaged` (new rows, by whatever `init`) and, among these,
        `averaged_with_bytes` (the base spells some of their text in bytes); the `worst` rows, those made of most
        pieces; `vocab_size` and how many of these rows are `padding`; what of the base is `left_out`: added tokens,
        rows that pad its matrices, buffers and settings of its config.json; SHA-256 of both tokenizer models. In
        adapt.json there are `base_ids` too: for each new id the id of the base that it continues, or null.

    Raises:
        InputError: a file is missing or damaged, the model is none that can be adapted, or its vocabulary and its
            weights do not match; OUTPUT exists, or OUTPUT.partial holds other work.
    """
    if options.tokenizer is None:
        _require_untying_alone(options)
        return untie_head(options.base, options.output)
    require(options, pad_to_multiple=(options.pad_to_multiple >= 1, "positive"))
    if (options.init == "frequency-weighted-mean") != bool(options.text):
        raise InputError("--text: --init frequency-weighted-mean needs it, and nothing else does")
    refuse_existing(options.output)
    new_file, base_file = find_model(options.tokenizer), base_model(options.base)
    new, base = read_model(new_file), read_model(base_file)
    refuse_inexact(new, new_file)
    config, weights = read_config(options.base), WeightFiles(options.base)
    refuse_added(new_file, [piece.piece for piece in new.pieces])
    added = read_added_tokens(base_file, [piece.piece for piece in base.pieces])
    padding_left_out = padding_rows(base_file, len(base.pieces), added, config.vocab_size)
    heads = _choose_head(options, weights, config)

    sources = find_sources(base, base_file, new, added.control)
    frequencies = piece_frequencies(base_file, options.text) if options.text else None
    padding = -len(new.pieces) % options.pad_to_multiple
    maker = RowMaker(sources, options.init, frequencies, padding, options.seed)
    report = {
        **sources.report(new),
        "init": options.init,
        "vocab_size": maker.rows,
        "padding": padding,
        "left_out": {
            "added_tokens": [
                text for text, index in (added.all() | added.without_row).items() if index not in sources.base_ids
            ],
            "padding_rows": padding_left_out,
            "buffers": len(weights.ignored),
            "settings": [name for name in _NO_LONGER_TRUE if read_json(options.base / CONFIG_NAME).get(name)],
        },
        "base_tokenizer_sha256": sha256_of(base_file),
        "tokenizer_sha256": sha256_of(new_file),
    }
    record = {**report, "base_ids": [*sources.base_ids, *[None] * padding]}
    files = sorted(file for file in options.base.iterdir() if file.suffix in (".safetensors", ".json"))
    work = {
        "report": record,
        "untie_head": options.untie_head,
        "seed": options.seed,
        "frequencies": None if frequencies is None else frequencies.tolist(),
        "base": {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files},
        "max_shard_bytes": MAX_SHARD_BYTES,
    }
    with resumable_directory(options.output, work) as directory:
        _write_weights(weights, directory, maker, heads)
        _write_configs(options, directory, config, new, maker.rows)
        export_tokenizer(new_file, directory)
        write_text(directory / REPORT_NAME, json_text(record) + "\n")
    return report


def _require_untying_alone(options: Adapt) -> None:
    if not options.untie_head:
        raise InputError("--tokenizer: give the new one, or --untie-head to keep the base's and part its head")
    if options != Adapt(options.base, options.output, untie_head=True):
        raise InputError("--tokenizer: --init, --text, --pad-to-multiple and --seed are of a new one's rows; give it")


def _choose_head(options: Adapt, weights: WeightFiles, config: ModelConfig) -> dict[str, str]:
    """The matrices that the adapted model has, and which of the base's each is made of."""
    tied = config.tie_word_embeddings
    if options.untie_head and not tied:
        raise InputError(f"{options.base}: its head is untied already; leave --untie-head out")
    matrix = torch.empty(config.vocab_size, config.hidden_size, device="meta")
    stored = (EMBEDDING,) if tied and HEAD not in weights.tensors else (EMBEDDING, HEAD)
    weights.require(dict.fromkeys(stored, matrix), alone=False)
    if tied and not options.untie_head:
        weights.leave_out_tied_head()
        return {EMBEDDING: EMBEDDING}
    return {EMBEDDING: EMBEDDING, HEAD: EMBEDDING if tied and not weights.has_own_head() else HEAD}


def _write_weights(weights: WeightFiles, directory: Path, maker: RowMaker, matrices: dict[str, str]) -> None:
    """The base's tensors, with rows of the new vocabulary in the `matrices`, each made of the one it names."""
    tensors = weights.tensors | {
        name: weights.tensors[source].new_empty(maker.rows, weights.tensors[source].shape[1])
        for name, source in matrices.items()
    }
    with progress_bar("weights", len(tensors)) as advance:

        def adapted(name: str) -> Tensor | Iterator[Tensor]:
            advance(1)
            old = weights.read_finite(matrices.get(name, name))
            return maker.blocks(old, name) if name in matrices else old

        write_weights(directory, tensors, adapted, MAX_SHARD_BYTES)


def _write_configs(options: Adapt, directory: Path, config: ModelConfig, new: Any, rows: int) -> None:
    """config.json and generation_config.json of the base, with what the vocabulary changes."""
    roles = role_ids(new)
    token_ids = {f"{role}_token_id": roles.get(role) for role in ("bos", "eos", "pad")}
    values = {
        **read_json(options.base / CONFIG_NAME),
        **token_ids,
        "vocab_size": rows,
        # Readers of transformers 4 look for the first, of transformers 5 for the second.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
    }
    for name in _NO_LONGER_TRUE:
        values.pop(name, None)
    if options.untie_head:
        values["tie_word_embeddings"] = False
    write_text(directory / CONFIG_NAME, json_text(values, ensure_ascii=True, indent=2) + "\n")
    generation = options.base / _GENERATION_NAME
    ends = [index for index, piece in enumerate(new.pieces) if piece.type == CONTROL and piece.piece == CHAT_PIECES[1]]
    if generation.exists() or ends or rows > len(new.pieces):
        settings = {**(read_json(generation) if generation.exists() else {}), **token_ids}
        if ends:  # what ends an answer once the model is tuned on chats
            settings["eos_token_id"] = [end for end in (roles.get("eos"), *ends) if end is not None]
        if rows > len(new.pieces):
            settings["suppress_tokens"] = list(range(len(new.pieces), rows))
        write_text(directory / _GENERATION_NAME, json_text(settings, ensure_ascii=True, indent=2) + "\n")
