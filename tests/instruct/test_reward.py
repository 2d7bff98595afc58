"""A tiny reward model learns planted preferences, and the filter by it keeps the good share, killed or not."""

import json
import os
import random
import re
import shutil
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
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from vikhr_fast.chat.conversation import Conversation, read_conversations, write_conversations
from vikhr_fast.chat.template import Message
from vikhr_fast.encoder.classifier import Scorer
from vikhr_fast.errors import InputError
from vikhr_fast.instruct.convert import CONVERSATIONS
from vikhr_fast.instruct.dedup import DedupConversations, dedup_conversations
from vikhr_fast.instruct.filter import SCORES, FilterConversations, filter_conversations, kept_of
from vikhr_fast.instruct.preferences import Pair, read_pairs
from vikhr_fast.instruct.rejected import REJECTED, Rejected
from vikhr_fast.instruct.reward import Answered, RewardModel
from vikhr_fast.instruct.reward_report import reward_page, reward_report, wilson
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


def test_settings_of_another_shape_are_one_line(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "reward.json"
    values = json.loads((root / "reward" / "reward.json").read_text())
    for name, value in (("maximum_tokens", 0), ("maximum_tokens", "64"), ("held_out", []), ("rejected", {})):
        file.write_text(json.dumps(values | {name: value}))
        with pytest.raises(InputError, match=rf"reward\.json: damaged: {name}"):
            RewardModel.load(tmp_path, "cpu") if name == "maximum_tokens" else reward_page(tmp_path)
    file.write_text(json.dumps(values | {"held_out": values["held_out"] | {"calibration": []}}))
    with pytest.raises(InputError, match=r"reward\.json: damaged: held_out\.calibration"):
        reward_page(tmp_path)
    file.write_text("[" * 100_000)
    for read in (RewardModel.load, reward_page):
        with pytest.raises(InputError, match=r"reward\.json: damaged: nested more than 100 deep"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, must be 1 to 1,000"),
        ("config.json", {"num_attention_heads": -1}, ""),
        ("config.json", {"hidden_size": "64"}, ""),
        ("config.json", {"hidden_act": "nope"}, "hidden_act in config.json is 'nope', which is unknown"),
        ("config.json", {"model_type": ["bert"]}, ""),
        ("tokenizer.json", {"model": None}, ""),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, ""),
    ],
)
def test_an_encoder_of_any_content_is_loaded_or_refused(
    root: Path, tmp_path: Path, name: str, changes: dict[str, Any], reason: str
) -> None:
    shutil.copytree(root / "encoder", tmp_path / "encoder")
    values = json.loads((tmp_path / "encoder" / name).read_text())
    (tmp_path / "encoder" / name).write_text(json.dumps(values | changes))
    with pytest.raises(InputError, match=rf"encoder: no encoder that can be loaded: .*{reason}"):
        Scorer.load(str(tmp_path / "encoder"), device="cpu")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_size": 64}, r"\S+ is \[32\], not \[64\], .*, and \d\d more; fetch all again"),
        (
            {"num_hidden_layers": 3},
            r"roberta\.encoder\.layer\.2\.attention\.output\.LayerNorm\.bias is missing, .* more;",
        ),
        (
            {"max_position_embeddings": 4},
            r"roberta\.embeddings\.position_embeddings\.weight is \[80, 32\], not \[4, 32\];",
        ),
    ],
)
@pytest.mark.parametrize("has_new_head", [False, True])
def test_sizes_that_do_not_fit_the_weights_are_refused(
    root: Path, tmp_path: Path, changes: dict[str, int], reason: str, has_new_head: bool
) -> None:
    """transformers would make up whatever does not fit, without a word."""
    encoder = changed_encoder(root / "encoder", tmp_path, changes)
    with pytest.raises(InputError, match=rf"config\.json: the weights beside it are of another model: .*{reason}"):
        Scorer.load(str(encoder), device="cpu", has_new_head=has_new_head)


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 4000}, {"vocab_size": 20_000_000}, {"intermediate_size": 50_000_000}]
)
def test_sizes_that_fill_the_memory_are_refused(root: Path, tmp_path: Path, changes: dict[str, int]) -> None:
    encoder = changed_encoder(root / "encoder", tmp_path, changes)
    with pytest.raises(
        InputError, match=r"config\.json: asks for [\d,]{11,} numbers, the files .* hold [\d,]{6,7} bytes"
    ):
        Scorer.load(str(encoder), device="cpu", has_new_head=True)


def test_layers_are_counted_before_a_configuration_lists_them(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ModernBERT's does."""
    monkeypatch.setattr(AutoConfig, "from_pretrained", None)
    encoder = changed_encoder(root / "encoder", tmp_path, {"num_hidden_layers": 1_000_000})
    with pytest.raises(InputError, match="num_hidden_layers is 1000000, must be 1 to 1,000"):
        Scorer.load(str(encoder), device="cpu")


def changed_encoder(encoder: Path, directory: Path, changes: dict[str, Any]) -> Path:
    """A copy of an encoder with another config.json."""
    shutil.copytree(encoder, directory / "encoder")
    file = directory / "encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return directory / "encoder"


SMALL = {
    "vocab_size": 400,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert", "deberta-v2", "albert"])
@pytest.mark.parametrize("task", [AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification])
def test_encoders_with_another_head_or_none_get_a_new_one(root: Path, tmp_path: Path, kind: str, task: Any) -> None:
    """Those of masked language modelling have no pooler, where others have one."""
    directory = tmp_path / "encoder"
    special = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "num_labels": 3}
    config = AutoConfig.for_model(kind, **SMALL, **special)
    shutil.copytree(root / "encoder", directory, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    task.from_config(config).save_pretrained(directory)
    Scorer.load(str(directory), device="cpu", has_new_head=True)
    with pytest.raises(InputError, match=r"config\.json: the weights beside it are of another model: \S+ is"):
        Scorer.load(str(directory), device="cpu")


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
    pairs, _ = pairs_in(tmp_path, [nectar, messages], ("q", "w", "l"))
    assert pairs == [Pair("Q", "a", "b"), Pair("Q", "a", "c"), Pair("вопрос", "да", "нет")]


def pairs_in(
    tmp_path: Path, rows: list[dict[str, Any]], columns: tuple[str, str, str] = ("prompt", "chosen", "rejected")
) -> tuple[list[Pair], list[tuple[int, str]]]:
    """The pairs, and the lines and reasons of what was rejected."""
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rejected = Rejected()
    pairs = list(read_pairs([tmp_path / "in.jsonl"], columns, rejected))
    return pairs, [(int(str(one["number"])), str(one["reason"])) for one in rejected]


def said(*turns: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]


def parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


SYSTEM = {"role": "system", "content": "Кратко."}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Как?", "chosen": "Так.", "rejected": "Сяк."}, "Как?"),
        ({"prompt": "Как?", "chosen": "Как? Так.", "rejected": "Как?\nСяк."}, "Как?"),
        ({"prompt": "Как?", "chosen": said("Как?", "Так."), "rejected": said("Как?", "Сяк.")}, "Как?"),
        ({"prompt": said("Как?"), "chosen": said("Как?", "Так."), "rejected": "Сяк."}, "Как?"),
        ({"chosen": said("Как?", "Так."), "rejected": said("Как?", "Сяк.")}, "Как?"),
        ({"prompt": None, "chosen": said("Кто?", "Я.", "Как?", "Так."), "rejected": said("Кто?", "Я.", "Как?", "Сяк.")},
         "Кто?\n\nЯ.\n\nКак?"),
        ({"prompt": "Как?", "chosen": said("Кто?", "Я.", "Как?", "Так."),
          "rejected": said("Кто?", "Я.", "Как?", "Сяк.")}, "Кто?\n\nЯ.\n\nКак?"),
        ({"prompt": [SYSTEM, *said("Как?")], "chosen": said("Как?", "Так."), "rejected": said("Как?", "Сяк.")},
         "Кратко.\n\nКак?"),
        ({"prompt": [{"role": "user", "content": parts("Как?")}],
          "chosen": [{"role": "assistant", "content": parts("Так.")}],
          "rejected": [{"from": "gpt", "value": "Сяк."}]}, "Как?"),
        ({"prompt": "Как?", "chosen": [{"from": "human", "value": "Как?"}, {"from": "gpt", "value": "Так."}],
          "rejected": [{"from": "human", "value": "Как?"}, {"from": "gpt", "value": "Сяк."}]}, "Как?"),
        ({"chosen": "\n\nHuman: Как?\n\nAssistant: Так.", "rejected": "\n\nHuman: Как?\n\nAssistant: Сяк."}, "Как?"),
        ({"prompt": "Как?", "chosen": "\n\nHuman: Как?\n\nAssistant: Так.",
          "rejected": "\n\nHuman: Как?\n\nAssistant: Сяк."}, "Как?"),
        ({"prompt": "Как?", "chosen": {"from": "gpt", "value": "Так."},
          "rejected": {"from": "gpt", "value": "Сяк."}}, "Как?"),
        ({"prompt": "Как?", "chosen": "Так.", "rejected": "Сяк.", "system": "Кратко.", "history": [["Кто?", "Я."]]},
         "Кратко.\n\nКто?\n\nЯ.\n\nКак?"),
        ({"prompt": "\n\nHuman: Как?\n\nAssistant:", "chosen": " Так.", "rejected": " Сяк."}, "Как?"),
        ({"prompt": "Как?\n", "chosen": "Как?\nТак.", "rejected": "Как?\nСяк."}, "Как?\n"),
        ({"chosen": [{"role": "system", "content": ""}, *said("Как?", "Так.")], "rejected": "Сяк."}, "Как?"),
    ],
)  # fmt: skip
def test_answers_are_what_comes_after_the_prompt(row: dict[str, Any], prompt: str, tmp_path: Path) -> None:
    pairs, rejected = pairs_in(tmp_path, [row])
    assert [Pair(pair.prompt, *(answer.strip() for answer in pair[1:])) for pair in pairs] == [
        Pair(prompt, "Так.", "Сяк.")
    ]
    assert rejected == []


@pytest.mark.parametrize(("given", "prompt"), [("7", "Чему равно?\n\n7"), ("", "Чему равно?"), (None, "Чему равно?")])
def test_the_input_belongs_to_the_instruction(given: str | None, prompt: str, tmp_path: Path) -> None:
    path, rejected = tmp_path / "p.jsonl", Rejected()
    write_jsonl(path, [{"instruction": "Чему равно?", "input": given, "chosen": "Да.", "rejected": "Нет."}])
    pairs = list(read_pairs([path], ("instruction", "chosen", "rejected"), rejected))
    assert (pairs, list(rejected)) == ([Pair(prompt, "Да.", "Нет.")], [])


def test_an_answer_may_begin_like_the_question(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Как?", "chosen": "Как? Так.", "rejected": "Сяк."},  # but one of them
        {"prompt": "А", "chosen": "Абрикос", "rejected": "Арбуз"},  # another word
    ]
    assert pairs_in(tmp_path, rows) == ([Pair(**row) for row in rows], [])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Как?", "chosen": "Так.", "rejected": " Так.\n"}, "both answers are equal"),
        ({"prompt": "Как?", "chosen": said("Как?", "Так."), "rejected": "Так."}, "both answers are equal"),
        ({"prompt": "Как?", "chosen": "", "rejected": "Сяк."}, "chosen: empty"),
        ({"prompt": "Как?", "chosen": "Как? Так.", "rejected": "Как? "}, "rejected: empty"),
        ({"prompt": "", "chosen": "Так.", "rejected": "Сяк."}, "prompt: empty"),
        ({"chosen": "Так.", "rejected": "Сяк."}, "no prompt in field 'prompt', nor before the answers"),
        ({"prompt": "Как?", "chosen": "\ud800", "rejected": "Сяк."}, "chosen: half of a surrogate pair"),
        ({"prompt": "Как?", "chosen": None, "rejected": "Сяк."}, "no text in field 'chosen'; name the fields"),
        ({"prompt": "Как?", "chosen": 5, "rejected": "Сяк."}, "field 'chosen' is no text and no list of messages"),
        ({"prompt": "Как?", "chosen": ["Так."], "rejected": ["Сяк."]}, "field 'chosen' is no text and no list of"),
        ({"prompt": "Как?", "chosen": [], "rejected": "Сяк."}, "field 'chosen' does not end with an answer"),
        ({"prompt": "Как?", "chosen": said("Как?"), "rejected": "Сяк."}, "field 'chosen' does not end with an answer"),
        ({"prompt": "Как?", "chosen": [{"role": "assistant", "content": None}], "rejected": "Сяк."},
         "NoneType, not text"),
        ({"prompt": "Как?", "chosen": "Так.", "rejected": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
         "has 'tool_calls', which"),
        ({"prompt": "Как?", "chosen": said("Как?", "Так."), "rejected": said("Кто?", "Сяк.")},
         "'chosen' and 'rejected' answer different messages"),
        ({"prompt": "Где?", "chosen": said("Как?", "Так."), "rejected": said("Как?", "Сяк.")},
         "'chosen' and 'rejected' begin with other messages than 'prompt'"),
        ({"prompt": "\n\nHuman: Q\n\nAssistant: ", "answers": [{"answer": "a", "rank": 1}, {"answer": "a", "rank": 2}]},
         "both answers are equal"),
        ({"prompt": "Как?", "answers": []}, "the prompt does not go"),
        ({"prompt": "Как?", "chosen": "Так.", "rejected": "Сяк.", "images": ["a.png"]}, "the row has 'images', which"),
        ({"chosen": said("Как?", "Так."), "rejected": said("Как?", "Сяк."), "system": "а", "system_prompt": "б"},
         "two system messages that differ"),
    ],
)  # fmt: skip
def test_what_holds_no_pair_is_rejected_with_its_place(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    good = {"prompt": "Как?", "chosen": "Так.", "rejected": "Сяк."}
    pairs, [(number, found)] = pairs_in(tmp_path, [good, row, good])
    assert pairs == [Pair(**good)] * 2
    assert number == 2
    assert reason in found


def test_rejected_pairs_are_counted_and_kept_with_their_reasons(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [pair._asdict() for pair in pairs_of("раз", 60, seed=1)]
    path = write_jsonl(tmp_path / "in.jsonl", [*rows, {**rows[0], "rejected": rows[0]["chosen"]}])
    options = replace(training(root, tmp_path / "out", epochs=1, held_out=0.3), input=(path,))
    with caplog.at_level("INFO", "vikhr_fast"):
        train_reward(options)
    assert "held out, 1 rejected" in caplog.text
    [entry] = [json.loads(line) for line in (tmp_path / "out" / REJECTED).read_text().splitlines()]
    assert (entry["number"], entry["reason"]) == (61, "both answers are equal")
    stored = json.loads((tmp_path / "out" / "reward.json").read_bytes())
    assert (stored["pairs"], stored["rejected"]) == (60, 1)
    assert "1 rows or pairs were rejected before, see rejected.jsonl" in (tmp_path / "out" / "report.html").read_text()


def test_a_set_without_any_pair_is_an_error(root: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "Как?", "chosen": "да", "rejected": "да"}] * 9)
    with pytest.raises(InputError, match=r"in\.jsonl: no pair can be used; both answers are equal"):
        train_reward(replace(training(root, tmp_path / "out"), input=(path,)))
    assert not (tmp_path / "out").exists()


def test_marks_of_answers_outlast_dedup_and_filter(root: Path, tmp_path: Path) -> None:
    turns = (
        Message("user", "Как?"),
        Message("assistant", "Сяк.", False),
        Message("user", "Как?"),
        Message("assistant", "Так."),
    )
    write_conversations(tmp_path / "in.jsonl", [Conversation("1", "s", "ru", turns)])
    dedup_conversations(DedupConversations((tmp_path / "in.jsonl",), tmp_path / "unique"))
    unique = tmp_path / "unique" / CONVERSATIONS
    filter_conversations(
        FilterConversations((unique,), root / "reward", tmp_path / "good", threshold=-1e9, device="cpu")
    )
    assert (tmp_path / "good" / CONVERSATIONS).read_bytes() == (tmp_path / "in.jsonl").read_bytes()
    assert b'"train": false' in unique.read_bytes()


def test_a_pair_whose_cell_cannot_be_read_is_rejected(tmp_path: Path) -> None:
    text = pa.array([b"a", b"\xff"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 2, text.buffers())
    columns = {"prompt": ["b", "c"], "chosen": ["да", "нет"], "rejected": ["х", "у"], "note": broken}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    rejected = Rejected()
    pairs = list(read_pairs([tmp_path / "in.parquet"], ("prompt", "chosen", "rejected"), rejected))
    assert (pairs, rejected) == ([Pair("b", "да", "х"), Pair("c", "нет", "у")], [])
    assert list(read_pairs([tmp_path / "in.parquet"], ("prompt", "chosen", "note"), rejected)) == [Pair("b", "да", "a")]
    assert [(one["number"], one["reason"]) for one in rejected] == [
        (2, "column 'note': invalid UTF-8; mend or remove it")
    ]


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


def test_ranks_of_any_size_are_compared(tmp_path: Path) -> None:
    answers = [{"answer": "лучший", "rank": 1}, {"answer": "худший", "rank": 10**400}]
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "\n\nHuman: Да?\n\nAssistant:", "answers": answers}])
    pairs = list(read_pairs([tmp_path / "a.jsonl"], ("prompt", "chosen", "rejected"), Rejected()))
    assert pairs == [Pair("Да?", "лучший", "худший")]
