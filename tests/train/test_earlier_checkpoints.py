"""A checkpoint of an earlier version, whose single rank was under FSDP2, goes on here.

`checkpoints_of_a3c2540.tar.xz` holds a tiny model, its shards, runs of three ways to keep the masters that were stopped
after step 3 of 6, and the losses of those that went on there.
"""

import json
import tarfile
from pathlib import Path

import pytest
from training_runs import make_config, run_ranks, write_config

from vikhr_fast.config import TrainConfig
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import METRICS

pytestmark = pytest.mark.slow

ARCHIVE = Path(__file__).with_name("checkpoints_of_a3c2540.tar.xz")
WAYS = {
    # In float64 masters only the order of summation differs; in bf16 a micro-batch's gradients are no longer rounded.
    "float64": ("float64", "float32", 1e-9),
    "masters": ("bfloat16", "float32", 1e-3),
    "split": ("bfloat16", "split", 1e-3),
}


def config_of(root: Path, way: str) -> TrainConfig:
    """As the run began there."""
    dtype, master, _ = WAYS[way]
    return make_config(
        root,
        root / way,
        data={"train": {"train": root / "shards"}, "sequence_length": 48},
        batch={"micro_batch": 1, "sequences_per_step": 4},
        optimizer={"master": master, "weight_decay": 0.1},
        runtime={"dtype": dtype},
        schedule={"max_steps": 6, "checkpoint_every": 3},
    )


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_it_goes_on(tmp_path: Path, way: str, ranks: int) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    config = config_of(tmp_path, way)
    record = config.output / "config.json"
    record.write_text(record.read_text().replace("ROOT", str(tmp_path)))
    before = read_lines(config.output / METRICS)
    train(config) if ranks == 1 else run_ranks(write_config(config, tmp_path / "run.toml"), ranks)
    lines, expected = read_lines(config.output / METRICS), json.loads((tmp_path / "losses.json").read_text())[way]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[:3] == before  # with their times: the run didn't begin anew
    for line, right in zip(lines, expected, strict=True):
        assert line["tokens"] == right["tokens"]
        for name in ("loss", "ce", "grad_norm"):
            assert line[name] == pytest.approx(right[name], rel=WAYS[way][2])
        assert line["kl"] == pytest.approx(right["kl"], rel=10 * WAYS[way][2], abs=1e-12)
