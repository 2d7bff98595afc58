"""A run killed at any moment and started again gives the bits of one that never stopped."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import make_config, start_ranks, write_config

from vikhr_fast.config import TrainConfig
from vikhr_fast.errors import InputError
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import METRICS, VALIDATION
from vikhr_fast.train.objective import Objective
from vikhr_fast.train.signals import Interruption

pytestmark = pytest.mark.slow

KILLS = 4


def small_run(workspace: Path, output: Path, **changes: Any) -> TrainConfig:
    return make_config(
        workspace,
        output,
        **{
            "data": {"validation": {"held_out": workspace / "validation"}},
            "runtime": {"dtype": "float32"},
            "kl": {"combine": "slerp"},  # its weights come from the checkpoint
            "schedule": {"max_steps": 14, "checkpoint_every": 2, "validate_every": 5},
            **changes,
        },
    )


def outcome(output: Path) -> tuple[list[Any], list[Any], dict[str, torch.Tensor]]:
    """What must be equal bit for bit: losses of every step, validations, final weights."""
    steps = [
        [line[name] for name in ("step", "loss", "ce", "kl", "grad_norm", "tokens")]
        for line in read_lines(output / METRICS)
    ]
    return steps, read_lines(output / VALIDATION), load_file(output / "model" / "model.safetensors")


def assert_equal_outcomes(actual: Path, expected: Path) -> None:
    steps, validations, weights = outcome(actual)
    expected_steps, expected_validations, expected_weights = outcome(expected)
    assert steps == expected_steps
    assert validations == expected_validations
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, expected_weights[name]), name


def wait_for(condition: Any, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline and all(process.poll() is None for process in processes):
        time.sleep(0.002)


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_runs_end_with_the_same_bits(workspace: Path, tmp_path: Path, ranks: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for process in start_ranks(write_config(small_run(workspace, whole), tmp_path / "whole.toml"), ranks):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    command = write_config(small_run(workspace, killed), tmp_path / "killed.toml")
    random_moment = random.Random(ranks)
    checkpoints = killed / "checkpoints"
    for kill in range(KILLS):
        processes = start_ranks(command, ranks)
        done = len(read_lines(killed / METRICS))
        if kill % 2 == 0:  # while a checkpoint is being written
            wait_for(lambda: any(checkpoints.glob(".step-*.partial/*")), processes)
        else:
            wait_for(lambda done=done: len(read_lines(killed / METRICS)) > done + 2, processes)
            time.sleep(random_moment.uniform(0, 0.05))
        victim = random_moment.choice(processes)
        victim.kill()
        assert victim.wait() == -signal.SIGKILL
        for process in processes:
            process.kill()
            process.communicate(timeout=60)
    assert not (killed / "model").exists()
    for process in start_ranks(command, ranks):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert_equal_outcomes(killed, whole)
    assert not list(checkpoints.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_exits_with_143(workspace: Path, tmp_path: Path, number: signal.Signals) -> None:
    output = tmp_path / "run"
    config = small_run(workspace, output, schedule={"max_steps": 100_000}, data={"epochs": 5000})
    [process] = start_ranks(write_config(config, tmp_path / "run.toml"), ranks=1)
    wait_for(lambda: len(read_lines(output / METRICS)) >= 2, [process])
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    steps = len(read_lines(output / METRICS))
    assert [path.name for path in (output / "checkpoints").iterdir()] == [f"step-{steps:08d}"]
    assert "Traceback" not in errors


def test_sigterm_may_come_twice_but_ctrl_c_after_any_signal_ends_the_run() -> None:
    """Once from whoever stops all processes of a job, and from torchrun, which is one of them and passes it on."""
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        for number in (signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert interruption.exit_code == 143
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_in_the_middle_of_a_step_does_not_wait_for_its_end(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(small_run(workspace, whole))
    calls = _signal_at(4 * 6 + 2, monkeypatch)  # the second of the seventh step's four micro-batches
    with pytest.raises(SystemExit) as ended:
        train(small_run(workspace, stopped))
    assert ended.value.code == 143
    assert len(calls) == 4 * 6 + 2
    assert len(read_lines(stopped / METRICS)) == 6
    assert (stopped / "checkpoints" / "step-00000006").exists()
    train(small_run(workspace, stopped))
    assert_equal_outcomes(stopped, whole)


def test_a_signal_in_the_last_micro_batch_lets_the_run_end(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _signal_at(4 * 2, monkeypatch)
    assert (train(small_run(workspace, tmp_path / "run", schedule={"max_steps": 2})) / "model.safetensors").exists()


def _signal_at(call: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sends SIGTERM in the n-th micro-batch; returns a list with an item for each so far."""
    calls: list[int] = []
    objective = Objective.__call__

    def signalling(self: Objective, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls) + 1)
        if calls[-1] == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return objective(self, *args, **kwargs)

    monkeypatch.setattr(Objective, "__call__", signalling)
    return calls


def test_a_finished_run_is_not_done_again(workspace: Path, tmp_path: Path) -> None:
    config = small_run(workspace, tmp_path / "run", schedule={"max_steps": 2})
    model = train(config)
    before = model.stat().st_mtime_ns
    assert train(config) == model
    assert model.stat().st_mtime_ns == before


def test_a_run_that_is_past_its_end_only_writes_its_model(workspace: Path, tmp_path: Path) -> None:
    model = train(small_run(workspace, tmp_path / "run", schedule={"max_steps": 3}))
    before = (model / "model.safetensors").read_bytes()
    shutil.rmtree(model)
    assert train(small_run(workspace, tmp_path / "run", schedule={"max_steps": 2})) == model
    assert (model / "model.safetensors").read_bytes() == before
    assert len(read_lines(tmp_path / "run" / METRICS)) == 3


def test_old_checkpoints_are_deleted(workspace: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(small_run(workspace, output, schedule={"max_steps": 5, "checkpoint_every": 1, "keep_checkpoints": 2}))
    names = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000005"]


def test_exported_model_is_the_trained_one(workspace: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = train(small_run(workspace, tmp_path / "run", schedule={"max_steps": 3}))
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for name, weight in load_file(model / "model.safetensors").items():
        assert torch.equal(loaded.state_dict()[name], weight)
    assert AutoTokenizer.from_pretrained(model)("Привет")["input_ids"]


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "no manifest", "manifest of nothing", "file gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    workspace: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    train(small_run(workspace, tmp_path / "whole", schedule={"max_steps": 6, "checkpoint_every": 2}))
    damaged = tmp_path / "damaged"
    train(small_run(workspace, damaged, schedule={"max_steps": 4, "checkpoint_every": 2}))
    shutil.rmtree(damaged / "model")
    last = damaged / "checkpoints" / "step-00000004"
    part, manifest = next(last.glob("*.distcp")), last / "manifest.json"
    if damage == "flipped bit":
        data = bytearray(part.read_bytes())
        data[len(data) // 2] ^= 1
        part.write_bytes(data)
    elif damage == "cut short":
        part.write_bytes(part.read_bytes()[:-100])
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "manifest of nothing":
        manifest.write_text("{}")
    else:
        part.unlink()
    with caplog.at_level("WARNING"):
        train(small_run(workspace, damaged, schedule={"max_steps": 6, "checkpoint_every": 2}))
    assert "step-00000002 goes on" in caplog.text
    assert_equal_outcomes(damaged, tmp_path / "whole")
    assert last.with_name("step-00000004.damaged").exists()


def test_when_the_only_checkpoint_is_damaged_it_is_named(workspace: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(small_run(workspace, output, schedule={"max_steps": 2}))
    shutil.rmtree(output / "model")
    (output / "checkpoints" / "step-00000002" / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"step-00000002/state.json: its checksum differs"):
        train(small_run(workspace, output, schedule={"max_steps": 2}))
    assert (output / "checkpoints" / "step-00000002").exists()
