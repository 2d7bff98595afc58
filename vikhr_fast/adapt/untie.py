"""A tied model gets an LM head of its own, and keeps its vocabulary."""

from pathlib import Path
from typing import Any

import torch

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import atomic_file, json_text, write_text
from vikhr_fast.io.guarded import read_json
from vikhr_fast.io.progress import progress_bar
from vikhr_fast.io.resumable import resumable_directory
from vikhr_fast.model.config import CONFIG_NAME, read_config
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.model.weights import EMBEDDING, HEAD, INDEX_NAME, MAX_SHARD_BYTES, WeightFiles, write_weights

_BESIDE = (".json", ".model", ".txt", ".jinja")  # of tokenizers, whatever kind they are, and of generation


def untie_head(base: Path, output: Path) -> dict[str, Any]:
    """Writes `output`, complete or not at all: the base with a head, its embedding matrix or the one that is stored.

    Memory holds one of the base's tensors at a time; two to compare a stored head with the embedding.

    Returns:
        `head`: the stored tensor that it is now; `copied`: names of the files beside the weights.

    Raises:
        InputError: the base is damaged, or untied already; OUTPUT exists, or OUTPUT.partial holds other work.
    """
    config, weights = read_config(base), WeightFiles(base)
    if not config.tie_word_embeddings:
        raise InputError(f"{base}: its head is untied already, and without --tokenizer nothing else is to be done")
    weights.require_layers(config.num_hidden_layers)
    parameters = dict(Mistral(config, device="meta").named_parameters())
    weights.require(parameters | ({HEAD: parameters[EMBEDDING]} if HEAD in weights.tensors else {}))
    source = HEAD if weights.has_own_head() else EMBEDDING
    tensors = weights.tensors | {HEAD: torch.empty_like(weights.tensors[source])}
    files = sorted(file for file in base.iterdir() if file.suffix in (".safetensors", *_BESIDE) and file.is_file())
    copied = [file for file in files if file.suffix in _BESIDE and file.name not in (CONFIG_NAME, INDEX_NAME)]
    work = {
        "untied": {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files},
        "max_shard_bytes": MAX_SHARD_BYTES,
    }
    with resumable_directory(output, work) as directory, progress_bar("weights", len(tensors)) as advance:

        def value_of(name: str) -> torch.Tensor:
            advance(1)
            return weights.read_finite(source if name == HEAD else name)

        write_weights(directory, tensors, value_of, MAX_SHARD_BYTES)
        values = read_json(base / CONFIG_NAME) | {"tie_word_embeddings": False}
        write_text(directory / CONFIG_NAME, json_text(values, ensure_ascii=True, indent=2) + "\n")
        for path in copied:
            with atomic_file(directory / path.name) as file:
                file.write(path.read_bytes())
    return {"head": source, "copied": [path.name for path in copied]}
