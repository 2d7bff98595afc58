"""A whole step on a GPU never waits for it, but for the numbers that it reports at its end.

pytest -m gpu
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import make_config

import vikhr_kernels
from vikhr_fast.config import RuntimeConfig
from vikhr_fast.distributed.ranks import process_group
from vikhr_fast.distributed.sharding import _shard, local
from vikhr_fast.model.config import read_config
from vikhr_fast.model.mistral import Mistral, ModelConfig
from vikhr_fast.train.batches import step_batches
from vikhr_fast.train.gradients import ReducedGradients
from vikhr_fast.train.inputs import open_inputs, record_inputs
from vikhr_fast.train.signals import Interruption
from vikhr_fast.train.state import TrainState
from vikhr_fast.train.step import TrainStep
from vikhr_kernels import GradientSum

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
@pytest.mark.parametrize("runtime", [{}, {"checkpointing": "selective"}], ids=str)
def test_a_step_waits_for_nothing_but_its_report(
    workspace: Path, tmp_path: Path, optimizer: dict[str, Any], runtime: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(workspace, tmp_path / "model")
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
        train_step, state = TrainStep(config, inputs, ranks, Interruption()), TrainState()
        for step, batches in enumerate(step_batches(config, inputs, ranks, 0)):
            if step == 3:  # the steps before compile and fill the caches
                monkeypatch.setattr(torch.Tensor, "tolist", report)
            torch.cuda.set_sync_debug_mode("error" if step >= 3 else "default")
            try:
                state = state.after(train_step(state, batches))
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert len(reports) == 3


def test_gradients_are_taken_however_late(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under FSDP2, here on a mesh of one rank: its streams are those of several."""
    write_model(workspace, tmp_path / "model")
    take = ReducedGradients._take

    def late(gradients: ReducedGradients, parameters: list[torch.Tensor], reduced: torch.Tensor) -> None:
        torch.cuda._sleep(20_000_000)  # longer than a layer's backward
        take(gradients, parameters, reduced)

    found = []
    with process_group(RuntimeConfig(device="cuda")) as ranks:
        tokens = torch.arange(256, device=ranks.device)[None]
        for taking in (take, late):
            monkeypatch.setattr(ReducedGradients, "_take", taking)
            model = Mistral(read_config(tmp_path / "model"), ops=vikhr_kernels, device="meta", dtype=torch.bfloat16)
            _shard(model, ranks, torch.bfloat16, keep_gathered=False)
            model.to_empty(device=ranks.device)
            for number, parameter in enumerate(model.parameters()):
                generator = torch.Generator(ranks.device).manual_seed(number)
                local(parameter.detach()).normal_(0, 0.1, generator=generator)
            gradients = ReducedGradients(model, ranks)
            model(tokens).float().square().mean().backward()
            found.append([gradients.of(parameter).clone() for parameter in model.model.parameters()])
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("optimizer", [{}, {"master": "split"}], ids=str)
def test_gradients_on_the_kernels_are_those_of_eager_operations(
    workspace: Path, tmp_path: Path, optimizer: dict[str, Any]
) -> None:
    """Sums made by wide products in place, slices read by attention and swiglu: a whole step, in bf16."""
    write_model(workspace, tmp_path / "model")
    found = []
    for kernels in ("triton", "eager"):
        config = make_config(
            workspace, tmp_path / kernels, optimizer=optimizer, runtime={"device": "cuda", "dtype": "bfloat16"}
        )
        config = type(config)(**{**vars(config), "model": tmp_path / "model", "kernels": kernels})
        inputs = open_inputs(config)
        record_inputs(config, inputs)
        with process_group(config.runtime) as ranks:
            train_step = TrainStep(config, inputs, ranks, Interruption())
            train_step.optimizer.update = lambda *_: None  # type: ignore[method-assign]
            train_step(TrainState(), next(step_batches(config, inputs, ranks, 0)))
            found.append({name: GradientSum.of(p).total.clone() for name, p in train_step.model.named_parameters()})
    for name, gradient in found[0].items():
        assert (gradient - found[1][name]).norm() <= 0.02 * found[1][name].norm(), name
