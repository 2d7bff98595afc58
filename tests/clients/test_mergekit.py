"""mergekit's own SLERP of two models is what `vikhr-fast merge` writes."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from clients import installed, run_client
from safetensors.torch import load_file, save_file

from vikhr_fast.model.config import ModelConfig
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.model.weights import EMBEDDING
from vikhr_fast.publish.merge import Merge, merge

pytestmark = pytest.mark.nightly
SHAPE = ModelConfig(
    vocab_size=520,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    initializer_range=0.1,
)
PARALLEL = "model.layers.1.self_attn.o_proj.weight"
OPPOSITE = "model.layers.0.mlp.up_proj.weight"
EMPTY = "model.layers.1.mlp.down_proj.weight"


def two_models(workspace: Path, directory: Path, shape: ModelConfig, dtype: torch.dtype) -> list[Path]:
    """Models of random weights but for some tensors: nearly parallel, opposite, and of zeros in the first."""
    paths = [directory / name for name in ("first", "second")]
    for seed, path in enumerate(paths):
        Mistral(shape, seed=seed).save_pretrained(path)
        for file in (workspace / "tokenizer").iterdir():
            shutil.copy(file, path)
    first, second = (load_file(path / "model.safetensors") for path in paths)
    draw = torch.Generator().manual_seed(0)
    for tensors in (first, second):  # norms of new models are all ones, which turn nowhere
        for name, value in tensors.items():
            if "norm" in name:
                tensors[name] = value + 0.5 * torch.randn(value.shape, generator=draw)
    second[PARALLEL] = first[PARALLEL] + 1e-4 * second[PARALLEL]
    second[OPPOSITE] = -first[OPPOSITE]
    first[EMPTY] = torch.zeros_like(first[EMPTY])
    for tensors, path in zip((first, second), paths, strict=True):
        stored = {name: value.to(dtype) for name, value in tensors.items()}
        save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
        values = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**values, "dtype": str(dtype).removeprefix("torch.")}))
    return paths


def mergekit(models: list[Path], output: Path, factor: float, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors that mergekit writes, computed in float32."""
    named = [str(path) for path in models]
    config: dict[str, Any] = {
        "merge_method": "slerp",
        "base_model": named[0],
        "models": [{"model": name} for name in named],
        "parameters": {"t": factor},
        "dtype": "float32",
        "out_dtype": str(dtype).removeprefix("torch."),
    }
    file = output.with_suffix(".yaml")
    file.write_text(json.dumps(config))  # which is YAML, too
    run_client([sys.executable, "-m", "mergekit.scripts.run_yaml", file, output], installed("mergekit"))
    return load_file(output / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "dtype", "factor"),
    [
        ({}, torch.float32, 0.3),
        ({}, torch.bfloat16, 0.5),
        ({"tie_word_embeddings": True, "model_type": "llama"}, torch.float32, 0.8),
    ],
)
def test_slerp(workspace: Path, tmp_path: Path, changes: dict[str, Any], dtype: torch.dtype, factor: float) -> None:
    models = two_models(workspace, tmp_path, replace(SHAPE, **changes), dtype)
    merge(Merge(*models, tmp_path / "ours", factor=factor))
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    theirs = mergekit(models, tmp_path / "theirs", factor, dtype)
    assert ours.keys() == theirs.keys()
    first = load_file(models[0] / "model.safetensors")
    assert not torch.equal(ours[EMBEDDING], first[EMBEDDING]), "embeddings are merged as all others"
    for name, expected in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (dtype, expected.shape), name
        # Sums in another order: a step of float32's rounding, or, in bfloat16, of the rounding to it.
        rtol, atol = (2e-6, 1e-7) if dtype == torch.float32 else (2**-7, 0)
        torch.testing.assert_close(
            ours[name], expected, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
