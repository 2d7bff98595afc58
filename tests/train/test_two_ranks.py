"""What one rank no longer covers, since it shards nothing: FSDP2, in every way to keep the masters, here on two."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import make_config, run_ranks

from vikhr_fast.config import TrainConfig, config_values
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import METRICS

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[1] / "helpers" / "runs_in_turn.py"
STEPS = 6
# The model, its dtype and masters; and how far losses of other splits may be apart: float32's rounding, and that of
# gradients that FSDP2 makes in bf16.
WAYS = {
    "whole": ("model", "float32", "float32", 1e-4),
    "copied": ("model", "bfloat16", "float32", 2e-2),
    "split": ("model", "bfloat16", "split", 2e-2),
    "tied": ("tied", "float32", "float32", 1e-4),
    "tied and split": ("tied", "bfloat16", "split", 2e-2),
}


def config_of(workspace: Path, output: Path, way: str, steps: int) -> TrainConfig:
    model, dtype, master, _ = WAYS[way]
    return make_config(
        workspace,
        output,
        model,
        optimizer={"master": master, "max_grad_norm": 0.5, "weight_decay": 0.1},
        runtime={"dtype": dtype},
        schedule={"max_steps": steps},
    )


@pytest.fixture(scope="module")
def runs(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every way: `alone` on one rank, `two` on two, `parts` on two in two parts, `switched` on 1, 2 and 1 rank."""
    root = tmp_path_factory.mktemp("runs")
    on_two: list[str] = []
    for way in WAYS:
        train(config_of(workspace, root / way / "alone", way, STEPS))
        train(config_of(workspace, root / way / "switched", way, 2))
        for run, steps in (("two", STEPS), ("parts", 3), ("parts", STEPS), ("switched", 4)):
            file = root / f"{way}-{run}-{steps}.json"
            file.write_text(json.dumps(config_values(config_of(workspace, root / way / run, way, steps))))
            on_two.append(str(file))
    run_ranks([str(PROGRAM), *on_two], 2)
    for way in WAYS:
        shutil.rmtree(root / way / "switched" / "model")
        train(config_of(workspace, root / way / "switched", way, STEPS))
    return root


def lines_of(run: Path) -> list[dict[str, Any]]:
    lines = read_lines(run / METRICS)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return lines


def losses_of(run: Path) -> torch.Tensor:
    names = ("loss", "ce", "grad_norm")
    return torch.tensor([[line[name] for name in names] for line in lines_of(run)], dtype=torch.float64)


@pytest.mark.parametrize("way", WAYS)
def test_kl_is_exactly_zero_at_the_first_step_and_training_helps(runs: Path, way: str) -> None:
    lines = lines_of(runs / way / "two")
    # A split master's upper half rounds ties up, the reference's weights round them to even.
    assert lines[0]["kl"] <= (1e-6 if "split" in way else 0.0)
    assert lines[1]["kl"] > 0.0
    assert lines[-1]["ce"] < lines[0]["ce"]


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_goes_on_bit_for_bit(runs: Path, way: str) -> None:
    assert torch.equal(losses_of(runs / way / "parts"), losses_of(runs / way / "two"))
    parts, whole = (load_file(runs / way / run / "model" / "model.safetensors") for run in ("parts", "two"))
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("run", ["two", "switched"])
def test_ranks_make_no_difference_but_of_rounding(runs: Path, way: str, run: str) -> None:
    torch.testing.assert_close(losses_of(runs / way / run), losses_of(runs / way / "alone"), rtol=WAYS[way][3], atol=0)
