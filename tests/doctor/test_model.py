"""`vikhr-fast doctor MODEL` names what a model has that a command would stumble over, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vikhr_fast.doctor.model import model_findings
from vikhr_fast.tokenizer.export import read_model


@pytest.fixture
def model(workspace: Path, tmp_path: Path) -> Path:
    """A tiny model with its tokenizer that a test may damage."""
    shutil.copytree(workspace / "model", tmp_path / "model")
    return tmp_path / "model"


def change_config(model: Path, **changes: Any) -> None:
    values = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(values | changes))


def remove_template(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": None}))


def change_weights(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def pad(model: Path) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("lm_head.weight", "model.embed_tokens.weight"):
            tensors[name] = torch.cat([tensors[name], tensors[name][:8]])

    change_weights(model, widen)
    change_config(model, vocab_size=528)


def change_norm(model: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    name = "model.norm.weight"
    change_weights(model, lambda tensors: tensors.update({name: change(tensors[name])}))


def add_angles(model: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_weights(model, lambda tensors: tensors.update({name: torch.ones(2)}))


def tie(model: Path) -> None:
    change_weights(model, lambda tensors: tensors.pop("lm_head.weight"))
    change_config(model, tie_word_embeddings=True)


def tie_and_store(model: Path) -> None:
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    change_weights(model, lambda tensors: tensors.update({head: tensors[embedding].clone()}))
    change_config(model, tie_word_embeddings=True)


def normalise(model: Path) -> None:
    values = read_model(model / "tokenizer.model")
    values.normalizer_spec.remove_extra_whitespaces = True
    (model / "tokenizer.model").write_bytes(values.SerializeToString())


DAMAGES: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "inv_freq": (add_angles, "weights", "note", "1 buffers of rotary embeddings"),
    "missing": (lambda m: change_weights(m, lambda t: t.pop("model.norm.weight")), "weights", "mend", "norm.weight: m"),
    "two dtypes": (lambda m: change_norm(m, torch.Tensor.half), "weights", "note", "more than one dtype"),
    "nan": (lambda m: change_norm(m, lambda t: t / 0), "numbers", "mend", "model.norm.weight: "),
    "tied": (tie, "head", "ok", "the embedding matrix; `vikhr-fast adapt --untie-head`"),
    "tied but stored": (lambda m: change_config(m, tie_word_embeddings=True), "head", "mend", "--untie-head"),
    "tied and stored": (tie_and_store, "head", "note", "lm_head.weight is stored all the same, and read over"),
    "quantised": (lambda m: change_config(m, quantization_config={"bits": 4}), "config", "note", "quantization_config"),
    "scaled": (lambda m: change_config(m, rope_scaling={"rope_type": "yarn"}), "config", "mend", "rope_scaling"),
    "padding": (pad, "rows", "note", "8 of 528"),
    "normalising": (normalise, "tokenizer", "note", "remove_extra_whitespaces"),
    "word": (lambda m: (m / "added_tokens.json").write_text('{"слово": 519}'), "added", "mend", "'слово' (519)"),
    "control": (
        lambda m: [pad(m), (m / "added_tokens.json").write_text('{"<|user|>": 520}')],
        "added", "note", "'<|user|>' (520)",
    ),
    "no row": (lambda m: (m / "added_tokens.json").write_text('{"<pad>": 520}'), "added", "note", "no row"),
    "no template": (remove_template, "chat", "note", "tokenizer export"),
    "a template that never ends": (
        lambda m: (m / "chat_template.jinja").write_text("{% if 3**(10**8) > 0 %}{% endif %}"),
        "chat", "note", "chat_template.jinja: rendering takes more than",
    ),
    "no tokenizer": (lambda m: [f.unlink() for f in m.glob("tokenizer*")], "tokenizer", "mend", "neither tok"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_there_is_to_know_is_named(model: Path, damage: str) -> None:
    before = {finding.subject: finding.mark for finding in model_findings(model)}
    assert set(before.values()) == {"ok"}
    change, subject, mark, words = DAMAGES[damage]
    change(model)
    after = {finding.subject: finding for finding in model_findings(model)}
    assert after[subject].mark == mark, after[subject]
    assert words in after[subject].text
    assert "\n" not in after[subject].text


def test_a_tied_model_needs_no_mending(model: Path) -> None:
    tie(model)
    assert {finding.mark for finding in model_findings(model)} == {"ok"}


def test_an_adapter_is_no_model(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    (finding,) = model_findings(model)
    assert finding.mark == "mend"
    assert "merge_and_unload" in finding.text
