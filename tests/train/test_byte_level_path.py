"""A byte-level base from its extension to its evaluation, by the commands, with kills in between."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_3 import make_base
from safetensors.torch import load_file
from training_runs import DATA, make_config, start_ranks, write_config

from vikhr_fast.cli import main
from vikhr_fast.errors import InputError
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer import JsonEncoder
from vikhr_fast.train.inputs import open_inputs
from vikhr_fast.train.metrics import METRICS

pytestmark = pytest.mark.slow
os.environ.setdefault("HF_HUB_OFFLINE", "1")
MAX_STEPS = 12


@pytest.fixture(scope="module", params=["llama-3", "tied"])
def adapted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace: `base`, its tokenizer extended, `model` adapted to it, and shards `train` and `validation`."""
    root = tmp_path_factory.mktemp("path")
    stories = (DATA / "russian" / "stories.txt").read_text(encoding="utf-8").split("\n\n")
    for name, paragraphs in {"train": stories[:40], "validation": stories[-3:]}.items():
        (root / f"{name}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    tokens = make_base(root / "base", is_tied=request.param == "tied")
    base, extended, model = (str(root / name) for name in ("base", "extended", "model"))
    size = str(tokens + 302)
    run(["tokenizer", "extend", base, "--input", str(root / "train.txt"), "--output", extended, "--vocab-size", size])
    run(["adapt", "--base", base, "--tokenizer", extended, "--output", model])
    for name in ("train", "validation"):
        shards = ["--tokenizer", model, "--output", str(root / name)]
        run(["corpus", "shard", "--input", str(root / f"{name}.txt"), *shards])
    return root


def run(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0


def command(workspace: Path, output: Path) -> list[str]:
    """CE + KL in bf16 with split masters, a checkpoint every second step."""
    config = make_config(
        workspace,
        output,
        data={"validation": {"held_out": workspace / "validation"}},
        optimizer={"master": "split"},
        runtime={"dtype": "bfloat16"},
        schedule={"max_steps": MAX_STEPS, "checkpoint_every": 2, "validate_every": 5},
    )
    return write_config(config, workspace / f"{output.name}.toml")


def outcome(output: Path) -> tuple[list[Any], dict[str, torch.Tensor]]:
    steps = [
        [line[name] for name in ("step", "loss", "ce", "kl", "grad_norm")] for line in read_lines(output / METRICS)
    ]
    return steps, load_file(output / "model" / "model.safetensors")


def test_trains_through_kills_to_a_model_that_transformers_has(adapted: Path) -> None:
    """The tied one on two ranks, which share its one matrix."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = json.loads((adapted / "base" / "config.json").read_text())
    is_tied = config["tie_word_embeddings"]
    ranks, whole, killed = 1 + is_tied, adapted / "whole", adapted / "killed"
    for process in start_ranks(command(adapted, whole), ranks):
        assert process.wait(timeout=300) == 0
    for moment in (3, 7):
        processes = start_ranks(command(adapted, killed), ranks)
        deadline = time.monotonic() + 300
        while len(read_lines(killed / METRICS) if (killed / METRICS).exists() else []) < moment:
            assert time.monotonic() < deadline
            assert processes[0].poll() is None
            time.sleep(0.01)
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    for process in start_ranks(command(adapted, killed), ranks):
        assert process.wait(timeout=300) == 0
    steps, weights = outcome(killed)
    expected_steps, expected_weights = outcome(whole)
    assert steps == expected_steps
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(weights[name], expected_weights[name]) for name in weights)
    assert steps[-1][2] < steps[0][2] - 0.5, "it learnt"

    config = json.loads((killed / "model" / "config.json").read_text())
    assert (config["model_type"], config["tie_word_embeddings"]) == ("llama", is_tied)
    assert ("lm_head.weight" in weights) is not is_tied
    model = AutoModelForCausalLM.from_pretrained(killed / "model", dtype=torch.float32)
    assert type(model).__name__ == "LlamaForCausalLM"
    text = "Утром туман поднялся над рекой, and 42"
    ids = AutoTokenizer.from_pretrained(killed / "model")(text)["input_ids"]
    assert ids == JsonEncoder.from_file(killed / "model" / "tokenizer.json").encode(text).tolist()
    ours = Mistral.from_pretrained(killed / "model")
    with torch.no_grad():
        found = ours.logits(ours(torch.tensor([ids])))
        torch.testing.assert_close(found, model(torch.tensor([ids])).logits, rtol=1e-4, atol=1e-5)


def test_evaluation_of_what_was_trained(adapted: Path) -> None:
    """It predicts held-out text better than before it was trained."""
    found = {}
    for name, model in (("before", adapted / "model"), ("after", adapted / "whole" / "model")):
        output = adapted / f"evaluated-{name}"
        text = f"held={adapted / 'validation.txt'}"
        run(["evaluate", str(model), "--output", str(output), "--text", text, "--device", "cpu"])
        found[name] = json.loads((output / "results.json").read_text())["texts"]["held"]["bits_per_byte"]
    assert found["after"] < found["before"] - 0.2


def test_shards_with_other_ends_of_documents_are_refused(adapted: Path, tmp_path: Path) -> None:
    """Another file than tokenizer.json, which is the same, says what they are."""
    shutil.copytree(adapted / "extended", tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer_config.json"
    ends = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    file.write_text(json.dumps(json.loads(file.read_text()) | ends))
    shards = ["--tokenizer", str(tmp_path / "tokenizer"), "--output", str(tmp_path / "train")]
    run(["corpus", "shard", "--input", str(adapted / "train.txt"), *shards])
    config = make_config(adapted, tmp_path / "out", data={"train": {"main": tmp_path / "train"}})
    with pytest.raises(InputError, match=r"train: documents begin and end with the ids 403 and 404, 0 and 1 in "):
        open_inputs(config)
