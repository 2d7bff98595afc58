"""SLERP and linear merge of two models."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, MistralForCausalLM

from vikhr_fast.errors import InputError
from vikhr_fast.model.config import write_config
from vikhr_fast.model.mistral import Mistral, ModelConfig
from vikhr_fast.publish.merge import Merge, merge, slerp

SHAPE = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=32,
    initializer_range=0.5,
)


@pytest.fixture
def models(workspace: Path, tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("first", "second")]
    for seed, path in enumerate(paths):
        Mistral(SHAPE, seed=seed).save_pretrained(path)
        shutil.copyfile(workspace / "tokenizer" / "tokenizer.model", path / "tokenizer.model")
    return paths


def mergekit_slerp(t: float, v0: np.ndarray, v1: np.ndarray) -> np.ndarray:
    """The definition in plain float64: directions, the angle between them, and its two sines."""
    a, b = (v / np.linalg.norm(v) if np.linalg.norm(v) > 1e-8 else v for v in (v0, v1))
    dot = np.sum(a * b)
    if np.abs(dot) > 0.9995:
        return (1 - t) * v0 + t * v1
    angle = np.arccos(dot)
    return np.sin(angle - angle * t) / np.sin(angle) * v0 + np.sin(angle * t) / np.sin(angle) * v1


@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(-1, 1))
def test_slerp_is_mergekits(seed: int, factor: float, alike: float) -> None:
    drawn = np.random.default_rng(seed)
    a = drawn.normal(size=(5, 7))
    b = alike * a + (1 - abs(alike)) * drawn.normal(size=(5, 7))
    expected = mergekit_slerp(factor, a, b)
    np.testing.assert_allclose(slerp(torch.tensor(a), torch.tensor(b), factor), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["slerp", "linear"])
def test_the_ends_are_the_models(models: list[Path], tmp_path: Path, method: str) -> None:
    for factor, model in zip((0.0, 1.0), models, strict=True):
        output = tmp_path / f"{method}{factor}"
        merge(Merge(*models, output, method, factor))
        merged, whole = (load_file(path / "model.safetensors") for path in (output, model))
        for name, value in whole.items():
            torch.testing.assert_close(merged[name], value, rtol=1e-6, atol=1e-7)


def test_the_result_is_a_model_with_its_tokenizer(models: list[Path], tmp_path: Path) -> None:
    merge(Merge(*models, tmp_path / "merged", factor=0.3))
    merged, first, second = (load_file(p / "model.safetensors") for p in (tmp_path / "merged", *models))
    name = "model.layers.0.mlp.up_proj.weight"
    expected = mergekit_slerp(0.3, first[name].double().numpy(), second[name].double().numpy())
    np.testing.assert_allclose(merged[name], expected, rtol=1e-5, atol=1e-7)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(loaded.state_dict()[name], merged[name])
    assert (tmp_path / "merged" / "tokenizer.model").read_bytes() == (models[0] / "tokenizer.model").read_bytes()


def test_what_does_not_fit_is_refused(models: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "merged"
    with pytest.raises(InputError, match=r"factor: 1.5, must be between 0 and 1"):
        merge(Merge(*models, output, factor=1.5))
    (models[1] / "tokenizer.model").write_bytes(b"others")
    with pytest.raises(InputError, match=r"second: another tokenizer than .*first's"):
        merge(Merge(*models, output))
    for path in models:  # as models come that never had a SentencePiece model
        (path / "tokenizer.model").unlink()
        (path / "tokenizer.json").write_text(path.name)
    with pytest.raises(InputError, match=r"second: another tokenizer than .*first's"):
        merge(Merge(*models, output))
    shutil.rmtree(models[1])
    Mistral(ModelConfig(**{**SHAPE.__dict__, "rope_theta": 1e6})).save_pretrained(models[1])
    with pytest.raises(InputError, match=r"second.config.json: rope_theta is 1000000.0, but 10000.0 in .*first"):
        merge(Merge(*models, output))
    shutil.rmtree(models[1])
    Mistral(ModelConfig(**{**SHAPE.__dict__, "vocab_size": 41})).save_pretrained(models[1])
    with pytest.raises(InputError, match=r"second.config.json: vocab_size is 41, but 40 in .*--pad-to-multiple"):
        merge(Merge(*models, output))
    with pytest.raises(InputError, match="nowhere"):
        merge(Merge(models[0], tmp_path / "nowhere", output))
    assert not output.exists()
    assert json.loads((models[0] / "config.json").read_text())["vocab_size"] == 40


@pytest.mark.parametrize("changes", [{"sliding_window": 8}, {"max_position_embeddings": 99}, {"rms_norm_eps": 1e-6}])
def test_settings_that_weights_do_not_show_must_agree(models: list[Path], tmp_path: Path, changes: dict) -> None:
    ((name, value),) = changes.items()
    values = json.loads((models[1] / "config.json").read_text())
    (models[1] / "config.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises(InputError, match=f"second.config.json: {name} is {value}, but "):
        merge(Merge(*models, tmp_path / "merged"))


def test_a_tied_model_is_merged_as_one_and_with_no_other(models: list[Path], tmp_path: Path) -> None:
    tied = [tmp_path / name for name in ("tied", "tied-too")]
    for seed, path in enumerate(tied):
        Mistral(replace(SHAPE, tie_word_embeddings=True), seed=seed).save_pretrained(path)
    with pytest.raises(InputError, match=r"first.config.json: tie_word_embeddings is False, .*adapt --untie-head"):
        merge(Merge(tied[0], models[0], tmp_path / "merged"))
    tensors = load_file(tied[0] / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()  # stored all the same
    save_file(tensors, tied[0] / "model.safetensors")
    merge(Merge(*tied, tmp_path / "merged"))
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.tie_word_embeddings


@pytest.mark.parametrize("kinds", [("llama", "mistral"), ("mistral", "llama"), ("llama", "llama")])
def test_the_result_is_called_as_the_first_is(
    models: list[Path], tmp_path: Path, kinds: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    for path, kind in zip(models, kinds, strict=True):
        write_config(path, replace(SHAPE, model_type=kind), torch.float32)
    with caplog.at_level("INFO"):
        merge(Merge(*models, tmp_path / "merged"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(loaded) is {"llama": LlamaForCausalLM, "mistral": MistralForCausalLM}[kinds[0]]
    assert (f"merged: a {kinds[0]} as " in caplog.text) == (kinds[0] != kinds[1])


def test_nan_is_named(models: list[Path], tmp_path: Path) -> None:
    tensors = load_file(models[1] / "model.safetensors")
    tensors["lm_head.weight"][3, 2] = torch.nan
    save_file(tensors, models[1] / "model.safetensors")
    with pytest.raises(InputError, match=r"second.model.safetensors: lm_head.weight: 1 of 640 numbers are NaN"):
        merge(Merge(*models, tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()
