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

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("optimizer", [{}, {"master": "split"}, {"master": "split", "moments": "bfloat16"}], ids=str)
@pytest.mark.parametrize(
    "runtime", [{}, {"compile": True}, {"float8_reference": True}, {"checkpointing": "selective"}], ids=str
)
def test_a_step_waits_for_nothing_but_its_report(
    workspace: Path, tmp_path: Path, optimizer: dict[str, Any], runtime: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
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
    Mistral(shape).save_pretrained(tmp_path / "model")
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
