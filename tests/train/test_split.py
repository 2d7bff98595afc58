"""The run is the same for any split of a step into micro-batches and ranks."""

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from training_runs import make_config, run_ranks

from vikhr_fast.config import config_values
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.train.metrics import METRICS

pytestmark = pytest.mark.slow

STEPS = 10
RECORDER = Path(__file__).parents[1] / "helpers" / "record_gradients.py"


class Split(NamedTuple):
    model: str
    combine: str
    ranks: int
    micro_batch: int
    reduce_each: bool


RUNS = (("model", "sum"), ("model", "slerp"), ("tied", "sum"))
SPLITS = [(1, 2, False), (1, 1, False), (2, 4, False), (2, 1, False), (2, 2, True), (4, 1, True)]
FULL = (1, 8, False)


@pytest.fixture(scope="module")
def recordings(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Split, dict[str, Any]]:
    """Metrics and gradients of each step, for every split."""
    root = tmp_path_factory.mktemp("splits")
    runs = [Split(*run, *split) for run, split in itertools.product(RUNS, [FULL, *SPLITS])]
    for run in runs:
        directory = root / "-".join(map(str, run))
        config = make_config(
            workspace,
            directory / "run",
            run.model,
            data={"train": {"train": workspace / "train", "other": workspace / "other"}},
            batch={"micro_batch": run.micro_batch},
            optimizer={"max_grad_norm": 0.5},
            kl={"combine": run.combine, "source_weights": {"other": 0.3}},
            runtime={"reduce_each_micro_batch": run.reduce_each},
            schedule={"max_steps": STEPS},
        )
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config_values(config)))
    for ranks in (1, 2, 4):
        configs = [root / "-".join(map(str, run)) / "config.json" for run in runs if run.ranks == ranks]
        run_ranks([str(RECORDER), *map(str, configs)], ranks)
    return {
        run: torch.load(root / "-".join(map(str, run)) / "recorded.pt")
        | {"metrics": read_lines(root / "-".join(map(str, run)) / "run" / METRICS)}
        for run in runs
    }


@pytest.mark.parametrize("run", RUNS, ids=str)
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_losses_and_gradients_equal_the_full_batch(
    recordings: dict[Split, dict[str, Any]], run: tuple[str, str], split: tuple[int, int, bool]
) -> None:
    ours, full = recordings[Split(*run, *split)], recordings[Split(*run, *FULL)]
    assert len(ours["metrics"]) == len(full["metrics"]) == STEPS
    for actual, expected in zip(ours["metrics"], full["metrics"], strict=True):
        for name in ("loss", "ce", "kl", "grad_norm"):
            assert actual[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-14)
        assert actual["tokens"] == expected["tokens"]
    assert full["metrics"][-1]["kl"] > 1e-4  # or the KL wasn't tested
    for actual, expected in zip(ours["gradients"], full["gradients"], strict=True):
        for name, gradient in expected.items():
            assert (actual[name] - gradient).norm() <= 1e-9 * gradient.norm()
