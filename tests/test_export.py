"""A run's checkpoint becomes the model that the run itself would have written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import make_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from vikhr_fast.config import TrainConfig
from vikhr_fast.errors import InputError
from vikhr_fast.export import Export, export_checkpoint
from vikhr_fast.train.loop import train


def small_run(workspace: Path, output: Path, **changes: Any) -> TrainConfig:
    schedule = {"max_steps": 4, "checkpoint_every": 2}
    return make_config(workspace, output, **{"runtime": {"dtype": "bfloat16"}, "schedule": schedule, **changes})


@pytest.mark.parametrize("master", ["float32", "split"])
def test_the_last_checkpoint_is_the_final_model(workspace: Path, tmp_path: Path, master: str) -> None:
    train(small_run(workspace, tmp_path / "run", optimizer={"master": master}))
    assert export_checkpoint(Export(tmp_path / "run", tmp_path / "model")) == tmp_path / "model"
    exported, final = (load_file(p / "model.safetensors") for p in (tmp_path / "model", tmp_path / "run" / "model"))
    assert exported.keys() == final.keys()
    assert all(torch.equal(exported[name], final[name]) for name in final)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert torch.equal(loaded.lm_head.weight, final["lm_head.weight"])
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("слово").input_ids
    card = (tmp_path / "model" / "README.md").read_text()
    assert "4 steps" in card
    assert "frozen copy of itself" in card


def test_it_is_trained_on_from_there(workspace: Path, tmp_path: Path) -> None:
    train(small_run(workspace, tmp_path / "run"))
    export_checkpoint(Export(tmp_path / "run", tmp_path / "model", step=2, dtype="float32"))
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert {value.dtype for value in exported.values()} == {torch.float32}
    final = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert not torch.equal(exported["lm_head.weight"].bfloat16(), final["lm_head.weight"])
    again = small_run(workspace, tmp_path / "again")
    values = {**again.__dict__, "model": tmp_path / "model"}
    assert train(TrainConfig(**values)).exists()


def test_what_is_not_there_is_named(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config.json: no such file; give the --output of a training run"):
        export_checkpoint(Export(tmp_path, tmp_path / "model"))
    train(small_run(workspace, tmp_path / "run"))
    with pytest.raises(InputError, match=r"no checkpoint of step 3; there are 2, 4"):
        export_checkpoint(Export(tmp_path / "run", tmp_path / "model", step=3))
    part = next((tmp_path / "run" / "checkpoints" / "step-00000004").glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(InputError, match="its checksum differs"):
        export_checkpoint(Export(tmp_path / "run", tmp_path / "model"))
    (tmp_path / "run" / "config.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match=r"config.json: damaged"):
        export_checkpoint(Export(tmp_path / "run", tmp_path / "model"))
    assert not (tmp_path / "model").exists()
