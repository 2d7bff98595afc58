"""A tiny reward model learns planted preferences, and the filter by it keeps the good share, killed or not."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import assert_good
from corpora import directory_bytes, write_jsonl
from preferring import make_encoder, pairs_of

from vikhr_fast.chat.conversation import Conversation, read_conversations, write_conversations
from vikhr_fast.chat.template import Message
from vikhr_fast.errors import InputError
from vikhr_fast.instruct.convert import CONVERSATIONS
from vikhr_fast.instruct.filter import SCORES, FilterConversations, filter_conversations, kept_of
from vikhr_fast.instruct.preferences import Pair, read_pairs
from vikhr_fast.instruct.reward import Answered, RewardModel
from vikhr_fast.instruct.reward_report import reward_report, wilson
from vikhr_fast.instruct.train_reward import TrainReward, train_reward
from vikhr_fast.report.command import Report, report_run

CHUNK = 50


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an `encoder`, `pairs.jsonl` of one generator, and a `reward` model trained on them."""
    root = tmp_path_factory.mktemp("reward")
    make_encoder(root / "encoder", ("раз", "два"))
    write_jsonl(root / "pairs.jsonl", [pair._asdict() for pair in pairs_of("раз", 500, seed=1)])
    train_reward(training(root, root / "reward"))
    return root


def training(root: Path, output: Path, **more: Any) -> TrainReward:
    values = {"maximum_tokens": 64, "learning_rate": 3e-3, "epochs": 3, "batch": 16, **more}
    return TrainReward((root / "pairs.jsonl",), output, encoder=str(root / "encoder"), **values)


def test_planted_preferences_are_learnt(root: Path) -> None:
    pairs = pairs_of("два", 300, seed=2)  # not one word in common with training but the plant
    model = RewardModel.load(root / "reward", "cpu")
    chosen = model.score([Answered(pair.prompt, pair.chosen) for pair in pairs], 4096)
    rejected = model.score([Answered(pair.prompt, pair.rejected) for pair in pairs], 4096)
    report = reward_report(pairs, chosen, rejected)
    assert report.accuracy >= 0.95
    assert 0.35 < report.length_accuracy < 0.65
    stored = json.loads((root / "reward" / "reward.json").read_text())["held_out"]
    assert stored["accuracy"] >= 0.95
    assert 20 < stored["pairs"] < 100
    page = (root / "reward" / "report.html").read_text()
    assert "held-out pairs" in page
    assert "Calibration" in page


def test_scores_that_are_no_numbers_are_refused(root: Path) -> None:
    model = RewardModel.load(root / "reward", "cpu")
    for own in model.scorer.model.parameters():
        own.data.fill_(float("nan"))
    with pytest.raises(InputError, match="2 of 2 scores are no finite numbers: the encoder's weights hold NaN"):
        model.score([Answered("да", "нет"), Answered("а", "б")])


def test_the_report_can_be_made_again(root: Path, tmp_path: Path) -> None:
    page = report_run(Report((root / "reward",), tmp_path / "page.html"))
    assert page.read_bytes() == (root / "reward" / "report.html").read_bytes()
    assert len(assert_good(page, tmp_path).figures) == 1


@pytest.mark.slow
def test_the_same_pairs_give_the_same_bytes(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = []
    for name in ("first", "second"):
        train_reward(training(root, tmp_path / name, epochs=1))
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert capsys.readouterr().out == ""


_KILLED = """
import os, signal, sys
from contextlib import contextmanager
from vikhr_fast.cli import main
from vikhr_fast.encoder import training as encoder_training
real, saves = encoder_training.atomic_file, 0

@contextmanager
def killed_in_the_third(path):
    global saves
    saves += 1
    with real(path) as file:
        yield file
        if saves == 3:
            os.kill(os.getpid(), signal.SIGKILL)

encoder_training.atomic_file = killed_in_the_third
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_training_killed_while_it_saves_goes_on_to_the_same_bytes(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = ["instruct", "train-reward", str(root / "pairs.jsonl"), "--encoder", str(root / "encoder")]
    flags = ["--maximum-tokens", "64", "--learning-rate", "3e-3", "--epochs", "3", "--batch", "16", "--save-every", "5"]
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, *command, *flags, "--output", str(tmp_path / "killed")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as in this process
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed").exists()
    with caplog.at_level("INFO", "vikhr_fast"):
        train_reward(training(root, tmp_path / "killed", save_every=5))
    assert "going on after step 10" in caplog.text
    train_reward(training(root, tmp_path / "whole", save_every=5))
    resumed, whole = (directory_bytes(tmp_path / name) for name in ("killed", "whole"))
    for files in (resumed, whole):
        files["reward.json"] = re.sub(rb'"output": "[^"]*"', b"", files["reward.json"])
    assert resumed == whole
    assert not (tmp_path / "killed.partial").exists()


def planted(tmp_path: Path) -> tuple[Path, dict[str, bool]]:
    """Conversations of two sources, of which a third and two thirds are good."""
    chance = random.Random(3)
    made, good = [], {}
    for number, pair in enumerate(pairs_of("два", 240, seed=4)):
        source = "ab"[number % 2]
        is_good = chance.random() < (1 / 3 if source == "a" else 2 / 3)
        messages = (Message("user", pair.prompt), Message("assistant", pair.chosen if is_good else pair.rejected))
        made.append(Conversation(str(number), source, "ru", messages))
        good[str(number)] = is_good
    write_conversations(tmp_path / "in.jsonl", made)
    return tmp_path / "in.jsonl", good


def test_the_filter_keeps_the_good_share(root: Path, tmp_path: Path) -> None:
    path, good = planted(tmp_path)
    shares = {s: sum(not good[str(n)] for n in range(240) if "ab"[n % 2] == s) / 120 for s in "ab"}
    options = FilterConversations((path,), root / "reward", tmp_path / "out", drops=shares, chunk=CHUNK, device="cpu")
    filter_conversations(options)
    kept = {one.id for one in read_conversations([tmp_path / "out" / CONVERSATIONS])}
    hits = sum(good[one] for one in kept)
    assert 2 * hits / (len(kept) + sum(good.values())) >= 0.9
    scores = [json.loads(line) for line in (tmp_path / "out" / SCORES).read_text().splitlines()]
    assert [entry["id"] for entry in scores] == list(good)
    assert {entry["id"] for entry in scores if entry["kept"]} == kept
    middle = float(np.median([entry["score"] for entry in scores]))
    filter_conversations(replace(options, output=tmp_path / "above", drops={}, threshold=middle))
    above = {one.id for one in read_conversations([tmp_path / "above" / CONVERSATIONS])}
    assert above == {entry["id"] for entry in scores if entry["score"] >= middle}


@pytest.mark.slow
def test_a_killed_filter_goes_on_to_the_same_bytes(root: Path, tmp_path: Path) -> None:
    path, _ = planted(tmp_path)
    options = FilterConversations(
        (path,), root / "reward", tmp_path / "killed", drop=0.5, chunk=4, batch_tokens=64, device="cpu"
    )
    flags = ["--drop", "0.5", "--chunk", "4", "--batch-tokens", "64", "--device", "cpu"]
    command = ["instruct", "filter", str(path), "--reward", str(root / "reward"), "--output", str(tmp_path / "killed")]
    process = subprocess.Popen(
        [sys.executable, "-m", "vikhr_fast", *command, *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as in this process
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    scratch = tmp_path / "killed.partial" / "scratch"
    deadline = time.monotonic() + 120
    while len(list(scratch.glob("scores-*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= len(list(scratch.glob("scores-*.json"))) < 60
    assert not (tmp_path / "killed").exists()
    filter_conversations(options)
    filter_conversations(replace(options, output=tmp_path / "whole"))
    assert directory_bytes(tmp_path / "killed") == directory_bytes(tmp_path / "whole")
    assert not (tmp_path / "killed.partial").exists()


def test_shares_are_of_each_source_and_equals_share_their_fate() -> None:
    scores = np.array([1.0, 2, 3, 4, 1, 1, 1, 9])
    options = FilterConversations((), Path(), Path(), drop=0.5, drops={"b": 0.25})
    kept = kept_of(scores, ["a"] * 4 + ["b"] * 4, options)
    assert kept.tolist() == [False, False, True, True, True, True, True, True]
    both = kept_of(scores, ["a"] * 4 + ["b"] * 4, replace(options, threshold=3.5))
    assert both.tolist() == [False, False, False, True, False, False, False, True]


def test_the_report_tells_length_from_quality() -> None:
    pairs = [Pair("?", "длинный ответ" * (n % 3), "ответ " * 2) for n in range(300)]
    by_length = [np.array([float(len(getattr(pair, side))) for pair in pairs]) for side in ("chosen", "rejected")]
    report = reward_report(pairs, *by_length)
    assert report.length_correlation == pytest.approx(1)
    assert (report.accuracy_chosen_longer, report.accuracy_chosen_shorter) == (1, 0)
    assert report.accuracy == report.length_accuracy
    nothing = reward_report(pairs, np.zeros(300), np.zeros(300))
    assert (nothing.accuracy, nothing.length_correlation) == (0.5, 0)
    assert nothing.calibration == ((0.5, 0.5, 600),)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-3)
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)


def test_probabilities_of_a_calibrated_model_are_on_the_diagonal() -> None:
    generator = np.random.default_rng(0)
    margin = generator.normal(0, 2, 20_000)
    is_right = generator.random(20_000) < 1 / (1 + np.exp(-margin))
    chosen = np.where(is_right, margin, -margin)  # the chosen answer's lead
    report = reward_report([Pair("", "", "")] * 20_000, chosen, np.zeros(20_000))
    assert all(abs(predicted - observed) < 0.03 for predicted, observed, _ in report.calibration)


def test_pairs_of_every_kind(tmp_path: Path) -> None:
    nectar = {
        "prompt": "\n\nHuman: Q\n\nAssistant: ",
        "answers": [{"answer": "b", "rank": 2}, {"answer": "a", "rank": 1}, {"answer": "c", "rank": 2}],
    }
    messages = {"q": [{"role": "user", "content": "вопрос"}], "w": [{"role": "assistant", "content": "да"}], "l": "нет"}
    path = write_jsonl(tmp_path / "in.jsonl", [nectar, messages])
    assert list(read_pairs([path], ("q", "w", "l"))) == [
        Pair("Q", "a", "b"),
        Pair("Q", "a", "c"),
        Pair("вопрос", "да", "нет"),
    ]
    with pytest.raises(InputError, match=r"in\.jsonl: line 2: no text in field 'chosen'"):
        list(read_pairs([path], ("q", "chosen", "l")))
    (tmp_path / "half.jsonl").write_text('{"q": "\\ud800", "w": "a", "l": "b"}')
    with pytest.raises(InputError, match=r"half\.jsonl: line 1: half of a surrogate pair"):
        list(read_pairs([tmp_path / "half.jsonl"], ("q", "w", "l")))


def test_a_pair_whose_cell_cannot_be_read_is_named(tmp_path: Path) -> None:
    text = pa.array([b"a", b"\xff"], pa.binary())
    broken, good = pa.Array.from_buffers(pa.string(), 2, text.buffers()), pa.array(["b", "c"])
    columns = {"prompt": good, "chosen": good, "rejected": good, "note": broken}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    assert list(read_pairs([tmp_path / "in.parquet"], ("prompt", "chosen", "rejected"))) == [Pair(*"bbb"), Pair(*"ccc")]
    with pytest.raises(InputError, match=r"in\.parquet: row 2: column 'note': invalid UTF-8; mend or remove it"):
        list(read_pairs([tmp_path / "in.parquet"], ("prompt", "chosen", "note")))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"held_out": 1.0}, "--held-out"),
        ({"batch": 0}, "--batch 0"),
        ({"held_out": 1e-9}, "500 pairs to train on and 0 held out"),
        ({"columns": ("prompt", "a", "b")}, "no text in field 'a'"),
    ],
)
def test_impossible_training(root: Path, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        train_reward(training(root, tmp_path / "out", **changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "give --threshold, --drop or --drops"),
        ({"drop": 1.0}, "--drop 1.0: must be 0 or more"),
        ({"drops": {"z": 0.5}}, "no such source; there are a, b"),
        ({"threshold": 1e9}, "no conversation is left; the best score is"),
        ({"drop": 0.5, "reward": Path("absent")}, "absent: no reward model"),
    ],
)
def test_impossible_filters(root: Path, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path, _ = planted(tmp_path)
    options = FilterConversations((path,), root / "reward", tmp_path / "out", device="cpu")
    with pytest.raises(InputError, match=reason):
        filter_conversations(replace(options, **changes))
    assert not (tmp_path / "out").exists()
