"""Benchmarks along training: the right answers, the same training, nothing lost or repeated when a run is stopped."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from corpora import write_jsonl
from training_runs import make_config, run_ranks, write_config

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'vikhr-fast[eval]'")

from vikhr_fast.config import RuntimeConfig, TrainConfig
from vikhr_fast.distributed.ranks import process_group
from vikhr_fast.distributed.sharding import load_model
from vikhr_fast.distributed.watchdog import Watch
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.command import Evaluate, evaluate
from vikhr_fast.evaluate.harness import ShardedModel
from vikhr_fast.evaluate.likelihood import encode_pair, likelihoods
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer.load import load_encoder
from vikhr_fast.train.checkpoint import Checkpoints
from vikhr_fast.train.evaluation import open_questions
from vikhr_fast.train.inputs import open_inputs
from vikhr_fast.train.loop import train
from vikhr_kernels import reference

STEPS = 6


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("questions")
    asked = [
        {"question": f"Где {n} дом?", "choices": ["там", "тут" * n, "нигде"], "answer": n % 3, "subject": "абв"[n % 3]}
        for n in range(1, 24)
    ]  # fmt: skip
    write_jsonl(directory / "mmlu.jsonl", asked)
    pairs = [{"premise": f"Идёт {n} дождь.", "hypothesis": "Сухо.", "label": n % 3} for n in range(7)]
    write_jsonl(directory / "nli.jsonl", pairs)
    return {"ru_mmlu": directory / "mmlu.jsonl", "ruxnli": directory / "nli.jsonl"}


def config_of(workspace: Path, output: Path, questions: dict[str, Path], **evaluation: Any) -> TrainConfig:
    schedule = {"max_steps": STEPS, "checkpoint_every": 2}
    wanted = {"tasks": questions, "every": 2, **evaluation}
    return make_config(workspace, output, schedule=schedule, evaluation=wanted)


def evaluations_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "evaluations.jsonl").read_text().splitlines()]


def losses_of(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(workspace: Path, questions: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluated") / "run"
    train(config_of(workspace, output, questions))
    return output


@pytest.mark.slow
def test_training_is_the_same_bit_for_bit(workspace: Path, finished: Path, tmp_path: Path) -> None:
    train(make_config(workspace, tmp_path / "plain", schedule={"max_steps": STEPS}))
    for file in ("model.safetensors", "config.json"):
        assert (finished / "model" / file).read_bytes() == (tmp_path / "plain" / "model" / file).read_bytes()
    assert losses_of(finished) == losses_of(tmp_path / "plain")
    assert not (tmp_path / "plain" / "evaluations.jsonl").read_text()


def test_results_are_those_of_the_command(finished: Path, questions: dict[str, Path], tmp_path: Path) -> None:
    lines = evaluations_of(finished)
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    tasks = tuple(f"{name}={path}" for name, path in questions.items())
    evaluate(Evaluate(finished / "model", tmp_path / "run", tasks, device="cpu"))
    found = json.loads((tmp_path / "run" / "results.json").read_text())["tasks"]
    assert set(found) == {"ru_mmlu", "ruxnli", "ruxnli_letters"}
    asked = json.loads((tmp_path / "run" / "config.json").read_text())["tasks"]
    for name, own in found.items():
        expected = {key: own[key] for key in ("accuracy", "standard_error", "chance", "questions")}
        digest = asked["ruxnli" if name.startswith("ruxnli") else name]["sha256"]
        assert lines[-1]["tasks"][name] == {**expected, "sha256": digest}


def test_what_became_of_questions_is_recorded(
    workspace: Path, questions: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [json.loads(line) for line in questions["ru_mmlu"].read_text().splitlines()]
    rows[0]["choices"] = ["там", "тут", "нигде", None, None]
    rows[1]["choices"][rows[1]["answer"]] = "N/A"
    padded = write_jsonl(tmp_path / "padded.jsonl", rows)
    caplog.set_level("INFO", "vikhr_fast")
    found = open_questions(config_of(workspace, tmp_path / "run", {"ru_mmlu": padded}, limit=5))["ru_mmlu"]
    assert (len(found.asked), found.counts) == (5, {"kept_in_order": 0, "stripped": 1, "rejected": 1})
    assert "evaluation.tasks ru_mmlu: 22 questions, 1 without padding options, 1 left out" in caplog.text


class Request:
    """What the harness asks: a continuation of a context."""

    def __init__(self, context: str, continuation: str) -> None:
        self.args = (context, continuation)


@pytest.mark.parametrize(("sequence_length", "micro_batch"), [(96, 2), (8, 1), (512, 1)])
def test_log_likelihoods_are_those_with_a_cache(workspace: Path, sequence_length: int, micro_batch: int) -> None:
    texts = [(f"Где {n} дом? " * (n + 1), answer) for n in range(6) for answer in (" там", " тут, за углом", "я")]
    texts.append(("слово " * 600, " длиннее, чем позиций у модели"))
    encoder = load_encoder(workspace / "model")
    plain = Mistral.from_pretrained(workspace / "model", torch.float64)
    expected = [likelihoods(plain, [[encode_pair(encoder, *text)]])[0][0].log for text in texts]
    with process_group(RuntimeConfig(device="cpu", threads=1)) as ranks:
        model = load_model(workspace / "model", ranks, ops=reference, compute=torch.float64)
        entered = []
        sharded = ShardedModel(model, encoder, ranks, sequence_length, micro_batch, 50, lambda: entered.append(1))
        found = [log for log, _ in sharded.loglikelihood([Request(*text) for text in texts])]
    assert found == pytest.approx(expected, rel=1e-9)
    assert len(entered) > 1


@pytest.mark.slow
def test_two_ranks_share_the_questions(
    workspace: Path, finished: Path, questions: dict[str, Path], tmp_path: Path
) -> None:
    config = config_of(workspace, tmp_path / "run", questions)
    run_ranks(write_config(config, tmp_path / "config.toml"), ranks=2)
    assert evaluations_of(tmp_path / "run") == evaluations_of(finished)


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 3, 12])  # before the first step, in the middle of that, after a later step
def test_a_signal_ends_an_evaluation_which_is_done_again(
    workspace: Path,
    finished: Path,
    questions: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
) -> None:
    config = config_of(workspace, tmp_path / "run", questions)
    _signal_at(call, monkeypatch)
    with pytest.raises(SystemExit):
        train(config)
    stopped = [line["step"] for line in evaluations_of(config.output)] if call > 3 else []
    assert not (config.output / "model").exists()
    train(config)
    assert len(stopped) < 4
    assert evaluations_of(config.output) == evaluations_of(finished)
    assert losses_of(config.output) == losses_of(finished)
    assert (config.output / "model" / "model.safetensors").read_bytes() == (
        finished / "model" / "model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_a_signal_during_the_last_evaluation(
    workspace: Path, finished: Path, questions: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(workspace, tmp_path / "run", questions, every=0)
    _signal_at(2, monkeypatch)
    with pytest.raises(SystemExit):
        train(config)
    assert not (config.output / "model").exists()
    assert len(losses_of(config.output)) == STEPS
    assert evaluations_of(config.output) == []
    train(config)
    assert len(losses_of(config.output)) == STEPS
    assert evaluations_of(config.output) == evaluations_of(finished)[-1:]


def _signal_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends SIGTERM in the n-th forward of evaluations."""
    real, calls = ShardedModel._score, 0

    def score(self: ShardedModel, texts: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, texts)

    monkeypatch.setattr(ShardedModel, "_score", score)


@pytest.mark.slow
def test_a_run_killed_before_its_checkpoint_repeats_no_line(
    workspace: Path, finished: Path, questions: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(workspace, tmp_path / "run", questions)
    real = Checkpoints.save

    def save(self: Checkpoints, optimizer: Any, state: Any) -> None:
        if state.step == 4:
            raise KeyboardInterrupt
        real(self, optimizer, state)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert [line["step"] for line in evaluations_of(config.output)] == [0, 2, 4]
    train(config)
    assert evaluations_of(config.output) == evaluations_of(finished)


def test_a_limit_takes_questions_from_all_over(workspace: Path, questions: dict[str, Path], tmp_path: Path) -> None:
    inputs = open_inputs(config_of(workspace, tmp_path / "run", questions, limit=5))
    numbers = [int(question["question"].split()[1]) for question in inputs.questions["ru_mmlu"].asked]
    assert numbers == [1, 5, 10, 14, 19]
    assert len(inputs.questions["ruxnli"].asked) == 5
    everything = open_inputs(config_of(workspace, tmp_path / "run", questions, limit=100))
    assert len(everything.questions["ruxnli"].asked) == 7


@pytest.mark.slow
def test_each_forward_is_a_phase_of_its_own(
    workspace: Path, questions: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases: list[str] = []
    enter, real = Watch.enter, ShardedModel._score

    def noted(self: Watch, phase: str) -> None:
        phases.append(phase)
        enter(self, phase)

    def slow(self: ShardedModel, texts: Any) -> torch.Tensor:
        time.sleep(1.2)
        return real(self, texts)

    monkeypatch.setattr(Watch, "enter", noted)
    monkeypatch.setattr(ShardedModel, "_score", slow)
    wanted = {"tasks": {"ru_mmlu": questions["ru_mmlu"]}, "limit": 3}
    schedule, runtime = {"max_steps": 1}, {"timeout_seconds": 3}
    config = make_config(workspace, tmp_path / "run", schedule=schedule, evaluation=wanted, runtime=runtime)
    train(config)  # would be ended by the watch if it took the evaluation for one thing
    forwards = [phase for phase in phases if phase.startswith("evaluation after step 1: ru_mmlu, forward ")]
    assert len(forwards) * 1.2 > 3


@pytest.mark.parametrize(
    ("evaluation", "reason"),
    [
        ({"tasks": {"mmlu": "a.jsonl"}}, "evaluation.tasks: mmlu: must be of ruxnli, ru_mmlu, ru_mmlu_pro"),
        ({"tasks": {"ru_mmlu": "absent.jsonl"}}, "absent.jsonl: no such file"),
        ({"every": 5}, "evaluation.tasks: none; name at least one"),
    ],
)
def test_what_is_wrong_is_said_at_the_start(
    workspace: Path, tmp_path: Path, evaluation: dict[str, Any], reason: str
) -> None:
    config = make_config(workspace, tmp_path / "run", evaluation=evaluation)
    with pytest.raises(InputError, match=reason):
        train(config)
    assert not config.output.exists()


def test_without_the_harness(
    workspace: Path, questions: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for name in [name for name in sys.modules if name.startswith(("lm_eval.", "vikhr_fast.evaluate.benchmarks"))]:
        monkeypatch.delitem(sys.modules, name)
    config = config_of(workspace, tmp_path / "run", questions)
    with pytest.raises(InputError, match=r"evaluation.tasks: needs lm_eval\S*; pip install 'vikhr-fast\[eval\]'"):
        train(config)
    assert not config.output.exists()
    train(make_config(workspace, tmp_path / "plain", schedule={"max_steps": 1}))  # which needs none
