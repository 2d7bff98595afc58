"""TensorBoard and Weights & Biases get the numbers that the run writes itself."""

import builtins
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from training_runs import make_config

from vikhr_fast.config import TrainConfig
from vikhr_fast.errors import InputError
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import METRICS


def tracked(workspace: Path, output: Path, tracker: str, steps: int = 3) -> TrainConfig:
    config = make_config(
        workspace,
        output,
        data={"train": {"train": workspace / "train"}, "validation": {"held": workspace / "validation"}},
        schedule={"max_steps": steps, "checkpoint_every": 1},
    )
    return dataclasses.replace(config, **{tracker: True})


def test_tensorboard_events(workspace: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tracked(workspace, tmp_path / "run", "tensorboard"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    written = [event.value for event in events.Scalars("train/loss")]
    assert written == pytest.approx([line["loss"] for line in read_lines(tmp_path / "run" / METRICS)])
    assert len(events.Scalars("validation/held_bits_per_byte")) == 1


@pytest.mark.slow
def test_weights_and_biases_offline(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    output = tmp_path / "run"
    for steps in (2, 3):  # the second goes on in the same run
        if (output / "model").exists():
            (output / "model").rename(tmp_path / "model-of-2-steps")
        train(tracked(workspace, output, "wandb", steps))
    files = sorted((output / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert files[0].name == files[1].name  # the identity of the run
    for file, steps in zip(files, ((1, 2), (3,)), strict=True):
        content = file.read_bytes()
        assert b"train/loss" in content
        assert b"validation/held_bits_per_byte" in content
        losses = [line["loss"] for line in read_lines(output / METRICS) if line["step"] in steps]
        assert all(str(loss).encode() in content for loss in losses)


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_one_that_is_not_installed_is_named(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name in ("torch.utils.tensorboard", "wandb"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=rf"{tracker}: not installed; pip install 'vikhr-fast\[{tracker}\]'"):
        train(tracked(workspace, tmp_path / "run", tracker))
