"""A run killed at any moment and started again gives the bits of one that never stopped."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import make_config, start_ranks, write_config

from vikhr_fast.config import TrainConfig
from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.errors import InputError
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.io.files import remove, sha256_of
from vikhr_fast.train import checkpoint, loop
from vikhr_fast.train.loop import Training, train
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


@pytest.mark.parametrize(
    ("ranks", "model", "reference"),
    [
        (1, "model", None), (2, "model", None), (2, "tied", None),
        (1, "model", "original"), (2, "model", "original"), (4, "model", "original"),
    ],
)  # fmt: skip
def test_killed_runs_end_with_the_same_bits(
    workspace: Path, tmp_path: Path, ranks: int, model: str, reference: str | None
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kl = {"combine": "slerp", "reference": reference and workspace / reference, "fraction": 0.5 if reference else 1.0}
    configs = [small_run(workspace, output, model=model, kl=kl) for output in (whole, killed)]
    for process in start_ranks(write_config(configs[0], tmp_path / "whole.toml"), ranks):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    command = write_config(configs[1], tmp_path / "killed.toml")
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
    """Where nothing that takes long is due after it; a validation would be stopped."""
    _signal_at(4 * 2, monkeypatch)
    run = small_run(workspace, tmp_path / "run", data={}, schedule={"max_steps": 2})
    assert (train(run) / "model.safetensors").exists()


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
    config = small_run(workspace, tmp_path / "run", schedule={"max_steps": 2, "checkpoint_every": 1})
    model = train(config)
    before = model.stat().st_mtime_ns
    assert train(config) == model
    shutil.rmtree(config.output / "checkpoints" / "step-00000002")  # to save room, say
    assert train(config) == model
    assert model.stat().st_mtime_ns == before


def test_a_run_that_is_past_its_end_is_refused_and_left_as_it_was(workspace: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    model = train(small_run(workspace, output, schedule={"max_steps": 3}))
    refused = pytest.raises(InputError, match=r"schedule.max_steps: 2, but the run has come to step 3; make it 3 or")
    with refused:
        train(small_run(workspace, output, schedule={"max_steps": 2}))
    shutil.rmtree(model)
    with refused:
        train(small_run(workspace, output, schedule={"max_steps": 2}))
    assert not model.exists()
    assert len(read_lines(output / METRICS)) == 3
    assert train(small_run(workspace, output, schedule={"max_steps": 3})) == model


def test_a_run_that_ends_where_it_was_stopped_is_validated(workspace: Path, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"data": {"validation": {"held_out": workspace / "validation"}}}
    schedule = {"max_steps": 4, "checkpoint_every": 2}
    train(small_run(workspace, tmp_path / "run", schedule=schedule, **shared))
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    train(small_run(workspace, tmp_path / "run", schedule={**schedule, "max_steps": 2}, **shared))
    assert [line["step"] for line in read_lines(tmp_path / "run" / VALIDATION)] == [2]


def die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("call", [1, 2, 4, 6])  # before the first step, within that, after step 2, after the last
def test_a_signal_ends_a_validation_which_is_done_again(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    changes: dict[str, Any] = {"batch": {"micro_batch": 1}, "schedule": {"max_steps": 4, "validate_every": 2}}
    train(small_run(workspace, tmp_path / "whole", **changes))
    stopped = small_run(workspace, tmp_path / "stopped", **changes)
    forwards = 0
    advancing = Interruption.advancing

    def signalling(self: Interruption, doing: str, ranks: Ranks) -> Callable[[], None]:
        advance = advancing(self, doing, ranks)

        def count_and_advance() -> None:
            nonlocal forwards
            forwards += 1
            if forwards == call:
                os.kill(os.getpid(), signal.SIGTERM)
            advance()

        return count_and_advance

    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "advancing", signalling)
        with pytest.raises(SystemExit) as ended:
            train(stopped)
    assert ended.value.code == 143
    assert forwards == call
    assert not (stopped.output / "model").exists()
    with monkeypatch.context() as patch:  # once more, and killed as soon as it is validated
        patch.setattr(Training, "_take_step", die)
        patch.setattr(loop, "save_model", die)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    train(stopped)
    assert_equal_outcomes(stopped.output, tmp_path / "whole")


def test_old_checkpoints_are_deleted(workspace: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(small_run(workspace, output, schedule={"max_steps": 5, "checkpoint_every": 1, "keep_checkpoints": 2}))
    names = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000005"]


def test_no_checkpoint_is_kept_once_the_model_is_written(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    schedule = {"max_steps": 5, "checkpoint_every": 1, "keep_checkpoints": 0}
    output, kept = tmp_path / "run", tmp_path / "kept"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_model", killed)
        with pytest.raises(KeyboardInterrupt):
            train(small_run(workspace, output, schedule=schedule))
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000005"]
    train(small_run(workspace, output, schedule=schedule))
    assert not list((output / "checkpoints").iterdir())
    train(small_run(workspace, kept, schedule=schedule | {"keep_every": 2}))
    assert sorted(path.name for path in (kept / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize(("base", "kind"), [("model", "MistralForCausalLM"), ("tied", "LlamaForCausalLM")])
def test_exported_model_is_the_trained_one(workspace: Path, tmp_path: Path, base: str, kind: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = train(small_run(workspace, tmp_path / "run", model=base, schedule={"max_steps": 3}))
    loaded, report = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values())
    assert type(loaded).__name__ == kind
    assert loaded.config.tie_word_embeddings == (base == "tied")
    for name, weight in load_file(model / "model.safetensors").items():
        assert torch.equal(loaded.state_dict()[name], weight)
    assert AutoTokenizer.from_pretrained(model)("Привет")["input_ids"]


def _flip_a_bit(checkpoint: Path) -> None:
    part = next(checkpoint.glob("*.distcp"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)


def _cut_short(checkpoint: Path) -> None:
    part = next(checkpoint.glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-100])


def _replace(name: str, content: str) -> Callable[[Path], None]:
    """With a right checksum in the manifest, where it isn't the manifest itself."""

    def damage(checkpoint: Path) -> None:
        manifest = checkpoint / "manifest.json"
        digests = json.loads(manifest.read_text())
        (checkpoint / name).write_text(content)
        if name != manifest.name:
            manifest.write_text(json.dumps({**digests, name: sha256_of(checkpoint / name)}))

    return damage


def _in_place_of(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        remove(checkpoint / name)
        make(checkpoint / name)

    return damage


def _become_a_file(checkpoint: Path) -> None:
    remove(checkpoint)
    checkpoint.write_text("")


def _become_a_link(checkpoint: Path) -> None:
    remove(checkpoint)
    checkpoint.symlink_to("nowhere")


def _take_the_name(checkpoint: Path) -> None:
    _flip_a_bit(checkpoint)
    checkpoint.with_name(f"{checkpoint.name}.damaged").symlink_to("nowhere")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped bit": _flip_a_bit,
    "cut short": _cut_short,
    "part gone": lambda checkpoint: next(checkpoint.glob("*.distcp")).unlink(),
    "no manifest": lambda checkpoint: (checkpoint / "manifest.json").unlink(),
    "manifest of nothing": _replace("manifest.json", "{}"),
    "manifest of a list": _replace("manifest.json", "[]"),
    "manifest too deep": _replace("manifest.json", "[" * 100_000),
    "manifest not UTF-8": lambda checkpoint: (checkpoint / "manifest.json").write_bytes(b"{\xff}"),
    "manifest of other files": _replace("manifest.json", '{"state.json": "", ".metadata": "", "../../../x": ""}'),
    "manifest of no parts": _replace("manifest.json", '{"state.json": "", ".metadata": ""}'),
    "manifest of impossible names": _replace("manifest.json", '{"state.json": "", ".metadata": "", "\\u0000": ""}'),
    "manifest of halves": _replace("manifest.json", '{"state.json": "", ".metadata": "", "\\ud800": ""}'),
    "manifest a pipe": _in_place_of("manifest.json", os.mkfifo),
    "manifest a directory": _in_place_of("manifest.json", Path.mkdir),
    "manifest a loop of links": _in_place_of("manifest.json", lambda path: path.symlink_to(path)),
    "state a directory": _in_place_of("state.json", Path.mkdir),
    "state no object": _replace("state.json", "[]"),
    "state of another step": _replace("state.json", '{"step": 3}'),
    "state with another type": _replace("state.json", '{"step": 4, "recent_losses": "many"}'),
    "a file": _become_a_file,
    "a link to nothing": _become_a_link,
    "a name that is taken by a link": _take_the_name,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    workspace: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = {"max_steps": 4, "checkpoint_every": 2}
    run = small_run(workspace, tmp_path / "run", schedule=schedule)
    model = train(run)
    before = outcome(run.output)
    shutil.rmtree(model)
    last = run.output / "checkpoints" / "step-00000004"
    DAMAGES[damage](last)
    with caplog.at_level("WARNING"):
        train(run)
    assert "step-00000002 goes on" in caplog.text
    steps, validations, weights = outcome(run.output)
    assert (steps, validations) == before[:2]
    assert all(torch.equal(weight, before[2][name]) for name, weight in weights.items())
    assert [path for path in last.parent.iterdir() if path.name.startswith(f"{last.name}.damaged") and path != last]


@pytest.mark.parametrize("become", [lambda path: path.symlink_to("nowhere"), Path.touch])
def test_checkpoints_that_cannot_be_listed_are_not_none(
    workspace: Path, tmp_path: Path, become: Callable[[Path], None]
) -> None:
    run = small_run(workspace, tmp_path / "run", schedule={"max_steps": 4, "checkpoint_every": 2})
    shutil.rmtree(train(run))
    (run.output / "checkpoints").rename(tmp_path / "elsewhere")
    become(run.output / "checkpoints")
    logs = (run.output / METRICS).read_bytes()
    with pytest.raises(InputError, match=r"run/checkpoints: .*; make it readable, or begin in another --output"):
        train(run)
    assert (run.output / METRICS).read_bytes() == logs


def test_an_unreadable_checkpoint_gives_way_to_the_one_before(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = small_run(workspace, tmp_path / "run", schedule={"max_steps": 4, "checkpoint_every": 2})
    shutil.rmtree(train(run))
    real = checkpoint.sha256_of

    def broken(path: Path) -> str:
        if path.parent.name == "step-00000004" and path.suffix == ".distcp":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path)

    monkeypatch.setattr(checkpoint, "sha256_of", broken)
    with caplog.at_level("WARNING"):
        train(run)
    assert "Input/output error" in caplog.text
    assert "step-00000002 goes on" in caplog.text


def test_a_whole_checkpoint_that_is_not_the_runs_is_named_and_stays(workspace: Path, tmp_path: Path) -> None:
    run = small_run(workspace, tmp_path / "run", schedule={"max_steps": 4, "checkpoint_every": 2})
    shutil.rmtree(train(run))
    last = run.output / "checkpoints" / "step-00000004"
    _replace(".metadata", "no pickle")(last)
    with pytest.raises(InputError, match="step-00000004: whole, but not of this run"):
        train(run)
    assert last.exists()


def test_when_the_only_checkpoint_is_damaged_it_is_named(workspace: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(small_run(workspace, output, schedule={"max_steps": 2}))
    shutil.rmtree(output / "model")
    (output / "checkpoints" / "step-00000002" / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"step-00000002/state.json: its checksum differs"):
        train(small_run(workspace, output, schedule={"max_steps": 2}))
    assert (output / "checkpoints" / "step-00000002").exists()
