"""Hybrid sharding: replicas of sharded weights train as one copy does."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import make_config, run_ranks

from vikhr_fast.config import config_values
from vikhr_fast.errors import InputError
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.train import checkpoint
from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import METRICS

pytestmark = pytest.mark.slow

PROGRAM = """
import json, sys
from pathlib import Path
from vikhr_fast.config import train_config
from vikhr_fast.train import checkpoint
from vikhr_fast.train.loop import train
checkpoint._require_space = lambda directory, size: Path(sys.argv[2]).write_text(str(size))
train(train_config(json.load(open(sys.argv[1])), sys.argv[1]))
"""
RUNS = [(1, 1, "float64"), (2, 2, "float64"), (4, 2, "float64"), (4, 2, "bfloat16")]


def test_replicas_of_one_and_of_two_ranks(workspace: Path, tmp_path: Path) -> None:
    outcomes = []
    for ranks, replicas, dtype in RUNS:
        output = tmp_path / f"{ranks}-{dtype}"
        config = make_config(
            workspace,
            output,
            batch={"micro_batch": 1},
            runtime={"replicas": replicas, "dtype": dtype},
            optimizer={"master": "split" if dtype == "bfloat16" else "float32", "max_grad_norm": 0.5},
            schedule={"max_steps": 3},
        )
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config_values(config)))
        run_ranks(["-c", PROGRAM, str(file), str(tmp_path / "needed")], ranks)
        written = sum(path.stat().st_size for path in output.glob("checkpoints/*/*"))
        needed = int((tmp_path / "needed").read_text()) - (ranks // replicas) * checkpoint._SPARE_BYTES
        assert abs(needed - written) < 0.5 * written  # each replica holds all of it, one writes
        lines = read_lines(output / METRICS)
        losses = torch.tensor([(line["loss"], line["grad_norm"]) for line in lines], dtype=torch.float64)
        outcomes.append((losses, load_file(output / "model" / "model.safetensors")))
    (expected, weights), *same, (split, _) = outcomes
    for losses, trained in same:
        torch.testing.assert_close(losses, expected, rtol=1e-9, atol=0)
        for name, value in weights.items():
            torch.testing.assert_close(trained[name], value, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(split, expected, rtol=2e-2, atol=0)


def test_replicas_must_divide_the_ranks(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"runtime.replicas: 2 doesn't divide the 1 ranks"):
        train(make_config(workspace, tmp_path / "run", runtime={"replicas": 2}))
