"""What a run directory protects: one process, the same inputs, nothing of the user's deleted."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from training_runs import make_config

from vikhr_fast.config import TrainConfig
from vikhr_fast.errors import InputError
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.io.console import logger
from vikhr_fast.io.run_directory import locked, record_run
from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import METRICS


def short_run(workspace: Path, output: Path, max_steps: int = 1, **changes: Any) -> TrainConfig:
    return make_config(workspace, output, schedule={"max_steps": max_steps}, **changes)


def test_a_second_process_is_kept_out(workspace: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(InputError, match="another process"):
        train(short_run(workspace, tmp_path / "run"))


def test_an_output_that_is_not_a_run_is_refused(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file"):
        train(short_run(workspace, tmp_path / "file"))
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="not empty"):
        train(short_run(workspace, tmp_path / "directory"))
    assert (tmp_path / "directory" / "thesis.tex").exists()


def test_a_start_killed_between_its_two_files_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text("{}")
    record_run(tmp_path, {"seed": 1})
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 1}


def test_nested_changes_are_named_and_permitted_ones_are_not(tmp_path: Path) -> None:
    record_run(tmp_path, {"a": {"b": 1, "c": 2}, "d": 3})
    record_run(tmp_path, {"a": {"b": 1, "c": 5}, "d": 4}, may_change=("a.c", "d"))
    with pytest.raises(InputError, match=r"values of a\.b, d;"):
        record_run(tmp_path, {"a": {"b": 0, "c": 5}, "d": 4}, may_change=("a.c",))


def test_what_goes_on_otherwise_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record_run(tmp_path, {"a": {"b": 1, "c": 2}, "d": 3})
    with caplog.at_level("INFO", logger=logger.name):
        record_run(tmp_path, {"a": {"b": 1, "c": 5}, "d": 3}, may_change=("a",))
    assert [record.message for record in caplog.records] == [
        "goes on with another a.c than the run began with: 5 instead of 2"
    ]


def test_a_record_of_an_earlier_version_lacks_what_is_new(
    workspace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = short_run(workspace, tmp_path / "run")
    shutil.rmtree(train(config))
    record = config.output / "config.json"
    values = json.loads(record.read_text())
    for section, key in (("kl", "fraction"), ("runtime", "keep_gathered"), ("batch", "micro_batch")):
        del values[section][key]
    del values["seed"], values["incidents"], values["inputs"]["reference"]
    record.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"other values of seed;"):
        train(replace(config, seed=1))
    with caplog.at_level("INFO", logger=logger.name):
        train(config)
    [said] = [record.message for record in caplog.records if "than the run began with" in record.message]
    assert said == "goes on with another batch.micro_batch than the run began with: 2 instead of 3"  # 3 is the default
    with pytest.raises(InputError, match=r"other values of kl\.fraction;"):
        train(replace(config, kl=replace(config.kl, fraction=0.5)))


def test_changed_weights_are_refused(workspace: Path, tmp_path: Path) -> None:
    shutil.copytree(workspace / "model", tmp_path / "model")
    config = replace(short_run(workspace, tmp_path / "run"), model=tmp_path / "model")
    shutil.rmtree(train(config))
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(InputError, match=r"inputs\.model\.model\.safetensors"):
        train(config)


def test_changed_shards_are_refused(workspace: Path, tmp_path: Path) -> None:
    config = short_run(workspace, tmp_path / "run")
    train(config)
    other = short_run(workspace, tmp_path / "run", data={"train": {"train": workspace / "other"}})
    with pytest.raises(InputError, match=r"data\.train\.train, inputs\.train\.train"):
        train(other)


def test_the_order_of_sources_does_not_matter(workspace: Path, tmp_path: Path) -> None:
    sources = {"train": workspace / "train", "other": workspace / "other"}
    losses = []
    for name, named in (("one", sources), ("two", dict(reversed(sources.items())))):
        train(short_run(workspace, tmp_path / name, 3, data={"train": named}, kl={"source_weights": {"other": 0.1}}))
        losses.append([(line["ce"], line["kl"]) for line in read_lines(tmp_path / name / METRICS)])
    assert losses[0] == losses[1]


def test_a_finished_run_says_how_to_go_on(workspace: Path, tmp_path: Path) -> None:
    model = train(short_run(workspace, tmp_path / "run", max_steps=2))
    with pytest.raises(InputError, match="finished at step 2; remove it to go on to step 3"):
        train(short_run(workspace, tmp_path / "run", max_steps=3))
    shutil.rmtree(model)
    train(short_run(workspace, tmp_path / "run", max_steps=3))
    assert [line["step"] for line in read_lines(tmp_path / "run" / METRICS)] == [1, 2, 3]


def test_leftovers_go_and_the_users_copies_stay(workspace: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = make_config(workspace, run, schedule={"max_steps": 3, "checkpoint_every": 1, "keep_checkpoints": 1})
    shutil.rmtree(train(config))
    shutil.copytree(run / "checkpoints" / "step-00000003", run / "checkpoints" / "step-00000003-best")
    for leftover in (".model.x.partial", "checkpoints/.step-00000004.partial", "checkpoints/.step-00000001.deleted"):
        (run / leftover).mkdir()
    train(config)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000003", "step-00000003-best"]
    assert not list(run.glob(".model*"))


def test_only_the_tokenizers_files_go_with_the_model(workspace: Path, tmp_path: Path) -> None:
    shutil.copytree(workspace / "model", tmp_path / "model")
    (tmp_path / "model" / ".cache").mkdir()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"old")
    model = train(replace(short_run(workspace, tmp_path / "run"), model=tmp_path / "model"))
    assert (model / "tokenizer.model").exists()
    assert (model / "tokenizer.json").exists()
    assert not (model / "pytorch_model.bin").exists()


def test_dtype_may_not_change(workspace: Path, tmp_path: Path) -> None:
    shutil.rmtree(train(short_run(workspace, tmp_path / "run")))
    with pytest.raises(InputError, match=r"runtime\.dtype"):
        train(short_run(workspace, tmp_path / "run", runtime={"dtype": "float32"}))


def test_damaged_metrics_are_named(workspace: Path, tmp_path: Path) -> None:
    shutil.rmtree(train(short_run(workspace, tmp_path / "run")))
    (tmp_path / "run" / METRICS).write_text("{broken\n")
    with pytest.raises(InputError, match=METRICS):
        train(short_run(workspace, tmp_path / "run"))


def test_sequences_longer_than_the_models_positions_are_refused(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.sequence_length: 513"):
        train(short_run(workspace, tmp_path / "run", data={"sequence_length": 513}))
    assert not (tmp_path / "run").exists()
