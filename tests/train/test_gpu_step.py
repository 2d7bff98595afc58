"""A whole step on a GPU never waits for it, but for the numbers that it reports at its end.

pytest -m gpu
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import make_config

from vikhr_fast.model import Mistral, ModelConfig
from vikhr_fast.ranks import process_group
from vikhr_fast.train.inputs import open_inputs, record_inputs
from vikhr_fast.train.interruption import Interruption
from vikhr_fast.train.loop import Training
from vikhr_fast.train.split_adamw import SplitAdamW

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def write_model(workspace: Path, directory: Path) -> None:
    """One that the kernels can run, of the workspace's vocabulary."""
    small = json.loads((workspace / "model" / "config.json").read_text())
    shape = ModelConfig(
        vocab_size=small["vocab_size"],
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
    )
    Mistral(shape).save_pretrained(directory)


@pytest.mark.parametrize("optimizer", [{}, {"master": "split"}, {"master": "split", "moments": "bfloat16"}], ids=str)
@pytest.mark.parametrize(
    "runtime", [{}, {"compile": True}, {"float8_reference": True}, {"checkpointing": "selective"}], ids=str
)
def test_a_step_waits_for_nothing_but_its_report(
    workspace: Path, tmp_path: Path, optimizer: dict[str, Any], runtime: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(workspace, tmp_path / "model")
    if "float8_reference" in runtime and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU with float8")
    config = make_config(
        workspace,
        tmp_path / "run",
        batch={"micro_batch": 2},
        optimizer=optimizer,
        runtime={"device": "cuda", "dtype": "bfloat16", **runtime},
        schedule={"max_steps": 6},
    )
    config = type(config)(**{**vars(config), "model": tmp_path / "model"})
    reports: list[object] = []
    to_list = torch.Tensor.tolist

    def report(tensor: torch.Tensor) -> object:
        if not tensor.is_cuda:
            return to_list(tensor)
        torch.cuda.set_sync_debug_mode("default")
        reports.append(to_list(tensor))
        torch.cuda.set_sync_debug_mode("error")
        return reports[-1]

    inputs = open_inputs(config)
    record_inputs(config, inputs)
    with process_group(config.runtime) as ranks:
        training = Training(config, inputs, ranks, Interruption())
        for step, batches in training._batches():
            if step == 3:  # the steps before compile and fill the caches
                monkeypatch.setattr(torch.Tensor, "tolist", report)
            torch.cuda.set_sync_debug_mode("error" if step >= 3 else "default")
            try:
                training._step(step, batches)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert len(reports) == 3


def test_gradients_are_taken_however_late(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(workspace, tmp_path / "model")
    config = make_config(
        workspace,
        tmp_path / "run",
        optimizer={"master": "split"},
        runtime={"device": "cuda", "dtype": "bfloat16", "reduce_each_micro_batch": True},
    )
    config = type(config)(**{**vars(config), "model": tmp_path / "model"})
    take = SplitAdamW._take

    def late(optimizer: SplitAdamW, parameters: list[torch.Tensor], reduced: torch.Tensor) -> None:
        torch.cuda._sleep(20_000_000)  # longer than a layer's backward
        take(optimizer, parameters, reduced)

    norms = []
    inputs = open_inputs(config)
    record_inputs(config, inputs)
    with process_group(config.runtime) as ranks:
        for taking in (take, late):
            monkeypatch.setattr(SplitAdamW, "_take", taking)
            training = Training(config, inputs, ranks, Interruption())
            measured = training._step(*next(training._batches()))
            assert measured is not None
            norms.append(measured.grad_norm)
    assert norms[0] == norms[1]
