"""A step that would spoil the weights is skipped on all ranks alike, written down, and can be run again alone."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import make_config, run_ranks, write_config

from vikhr_fast.cli import main
from vikhr_fast.config import IncidentsConfig, TrainConfig, config_values
from vikhr_fast.data.packing import Batch
from vikhr_fast.errors import InputError
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.train.incidents import reason_to_skip
from vikhr_fast.train.inputs import open_inputs
from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import INCIDENTS, METRICS
from vikhr_fast.train.objective import Objective
from vikhr_fast.train.replay import replay_incident

POISONED = Path(__file__).parents[1] / "helpers" / "poisoned_run.py"
BAD_SEQUENCE = 19  # of step 3, which is made of sequences 16 to 23


def run(workspace: Path, output: Path, steps: int = 6, **changes: Any) -> TrainConfig:
    return make_config(
        workspace, output, schedule={"max_steps": steps, "checkpoint_every": 1, "keep_checkpoints": 9}, **changes
    )


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch, workspace: Path, tmp_path: Path) -> torch.Tensor:
    """Makes the loss of any micro-batch with the tokens of the bad sequence NaN; returns its tokens."""
    inputs = open_inputs(run(workspace, tmp_path / "unused"), verify=False)
    bad = inputs.corpus.batch([BAD_SEQUENCE]).tokens
    whole = Objective.__call__

    def poisoned(self: Objective, batch: Batch, *args: Any, **kwargs: Any) -> Any:
        loss, losses = whole(self, batch, *args, **kwargs)
        is_bad = any(torch.equal(part, bad) for part in batch.tokens.split(len(bad)))
        return (loss * math.nan if is_bad else loss), losses

    monkeypatch.setattr(Objective, "__call__", poisoned)
    return bad


def test_reasons() -> None:
    config = IncidentsConfig(spike_ratio=2.0)
    good = [1.0] * 8
    assert reason_to_skip(1.9, 5.0, good, config) is None
    assert reason_to_skip(100.0, 5.0, good[:7], config) is None  # too few to compare with
    assert reason_to_skip(100.0, 5.0, good, IncidentsConfig(spike_ratio=0)) is None
    assert reason_to_skip(math.nan, 5.0, good, config) == "the loss is nan"
    assert reason_to_skip(1.0, math.inf, good, config) == "the gradient norm is inf"
    assert "2.1000 is above 2 times the usual 1.0000" in str(reason_to_skip(2.1, 5.0, good, config))


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("master", ["float32", "split"])
def test_a_bad_step_leaves_everything_as_it_was(workspace: Path, tmp_path: Path, master: str) -> None:
    settings = {"optimizer": {"master": master}, "runtime": {"dtype": "bfloat16" if master == "split" else "float32"}}
    config = run(workspace, tmp_path / "run", 3, **settings)
    train(config)
    before, after = (_saved(config.output / "checkpoints" / f"step-0000000{step}") for step in (2, 3))
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    lines = read_lines(config.output / METRICS)
    assert [line["is_skipped"] for line in lines] == [False, False, True]
    assert lines[2]["loss"] is None
    [incident] = read_lines(config.output / INCIDENTS)
    assert (incident["step"], incident["reason"], incident["sequences"]) == (3, "the loss is nan", [16, 24])
    windows = [list(w[1:]) for i in range(16, 24) for w in open_inputs(config, verify=False).corpus.windows(i)]
    assert incident["documents"] == {"train": windows}


@pytest.mark.usefixtures("poison")
def test_a_run_with_an_incident_is_resumed_bit_for_bit(workspace: Path, tmp_path: Path) -> None:
    whole, parts = run(workspace, tmp_path / "whole"), tmp_path / "parts"
    train(whole)
    for steps in (2, 3, 6):
        model = train(run(workspace, parts, steps))
        if steps < 6:
            (model / "model.safetensors").unlink()
            for file in model.iterdir():
                file.unlink()
            model.rmdir()
    for name in (METRICS, INCIDENTS):
        first, second = ([_timeless(line) for line in read_lines(path / name)] for path in (whole.output, parts))
        assert first == second
    weights = (path / "model" / "model.safetensors" for path in (whole.output, parts))
    assert len({file.read_bytes() for file in weights}) == 1


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_replay_shows_the_bad_sequence_first_and_changes_nothing(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fraction: float
) -> None:
    config = run(workspace, tmp_path / "run", 4, kl={"fraction": fraction})
    train(config)
    before = {path: path.stat().st_mtime_ns for path in config.output.rglob("*")}
    rows = replay_incident(config, 1)
    assert rows[0].sequence == BAD_SEQUENCE
    assert not math.isfinite(rows[0].grad_norm)
    assert all(math.isfinite(row.grad_norm) for row in rows[1:])
    drawn = [row for row in rows if row.kl_factor]
    assert [row.kl_factor for row in drawn] == [1 / fraction] * round(8 * fraction)
    assert all(row.kl for row in drawn)
    assert all(row.kl is None for row in rows if not row.kl_factor)
    whole = {row.sequence: row for row in replay_incident(replace(config, kl=replace(config.kl, fraction=1.0)), 1)}
    for row in rows:
        assert row.ce == pytest.approx(whole[row.sequence].ce)
        assert row.kl == (pytest.approx(whole[row.sequence].kl) if row.kl_factor else None)
    assert sorted(row.sequence for row in rows) == list(range(16, 24))
    assert {path: path.stat().st_mtime_ns for path in config.output.rglob("*")} == before
    with pytest.raises(InputError, match="no incident 2: it has 1"):
        replay_incident(config, 2)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*_flags(config, tmp_path), "--replay-incident", "1"])
    assert ended.value.code == 0
    assert str(BAD_SEQUENCE) in capsys.readouterr().out


@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_a_spike_is_skipped(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fraction: float) -> None:
    calls = 0
    whole = Objective.__call__

    def spiking(self: Objective, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        loss, losses = whole(self, *args, **kwargs)
        return (loss * 100 if calls in range(4 * 9 + 1, 4 * 10 + 1) else loss), losses  # the tenth step's

    monkeypatch.setattr(Objective, "__call__", spiking)
    config = run(workspace, tmp_path / "run", 11, kl={"fraction": fraction})
    train(config)
    assert [line["step"] for line in read_lines(config.output / METRICS) if line["is_skipped"]] == [10]
    assert "times the usual" in read_lines(config.output / INCIDENTS)[0]["reason"]


def test_too_many_in_a_row_stop_the_run(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Objective.__call__

    def nan(self: Objective, *args: Any, **kwargs: Any) -> Any:
        loss, losses = whole(self, *args, **kwargs)
        return loss * math.nan, losses

    monkeypatch.setattr(Objective, "__call__", nan)
    config = run(workspace, tmp_path / "run", incidents={"most_in_a_row": 2})
    with pytest.raises(InputError, match=r"step 2: skipped, as 2 in a row: the loss is nan; .*doctor ") as caught:
        train(config)
    assert "incidents.jsonl" in str(caught.value)
    assert len(read_lines(config.output / INCIDENTS)) == 2
    assert not (config.output / "model").exists()


@pytest.mark.slow
def test_nan_on_one_rank_is_skipped_by_all(workspace: Path, tmp_path: Path) -> None:
    config = run(workspace, tmp_path / "run", 4)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_values(config)))
    run_ranks([str(POISONED), str(path), "1", "3"], ranks=2)
    assert [line["is_skipped"] for line in read_lines(config.output / METRICS)] == [False, False, True, False]
    assert [line["step"] for line in read_lines(config.output / INCIDENTS)] == [3]


def _flags(config: TrainConfig, directory: Path) -> list[str]:
    return ["train", *write_config(config, directory / "run.toml")[2:]]


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    clocks = ("seconds", "data_seconds", "tokens_per_second", "memory_bytes", "is_saving")
    return {name: value for name, value in line.items() if name not in clocks}


def _saved(checkpoint: Path) -> dict[str, torch.Tensor]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    metadata = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    values = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    load(values, checkpoint_id=checkpoint)
    return values
