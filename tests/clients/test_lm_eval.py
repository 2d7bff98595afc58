"""lm_eval by its own command, over the same files: the accuracies and log-likelihoods of `vikhr-fast evaluate`."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from clients import run_client, sentencepiece_model
from corpora import write_jsonl

import vikhr_fast

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'vikhr-fast[eval]'")

import lm_eval.tasks

from vikhr_fast.evaluate.command import Evaluate, evaluate

pytestmark = pytest.mark.nightly
WORDS = ["дом", "река", "письмо", "вечер", "новая", "книга", "старый", "лес", "белый", "день", "вода", "слово"]
MMLU = Path(vikhr_fast.__file__).parent / "evaluate" / "tasks" / "ru_mmlu.yaml"
XNLI = Path(lm_eval.tasks.__file__).parent / "xnli" / "xnli_ru.yaml"
LOCAL = """
include: {include}
task: local_{name}
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {file}}}}}
training_split: null
validation_split: null
test_split: test
"""


def questions() -> dict[str, list[dict[str, Any]]]:
    draw = random.Random(0)

    def said(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    choice = [
        {
            "question": f"{said(5)}?",
            "choices": [f"{word} {number}" for word in draw.sample(WORDS, 4)],
            "answer": number % 4,
            "subject": draw.choice(["history", "physics"]),
            "letters": ["A", "B", "C", "D"],
        }
        for number in range(24)
    ]
    inference = [{"premise": said(4), "hypothesis": said(3), "label": number % 3} for number in range(24)]
    return {"ru_mmlu": choice, "ruxnli": inference}


def harness(model: Path, directory: Path, names: list[str]) -> dict[str, Any]:
    """By task its accuracy, and the log-likelihoods of each question's choices."""
    arguments = f"pretrained={model},add_bos_token=True,dtype=float32"
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", arguments, "--device", "cpu",
        "--tasks", ",".join(f"local_{name}" for name in names), "--include_path", directory, "--batch_size", "4",
        "--output_path", directory / "theirs", "--log_samples",
    ]  # fmt: skip
    run_client(command)
    [results] = (directory / "theirs").rglob("results_*.json")
    measured = json.loads(results.read_text(encoding="utf-8"))["results"]
    found = {}
    for name in names:
        [samples] = (directory / "theirs").rglob(f"samples_local_{name}_*.jsonl")
        rows = sorted(map(json.loads, samples.read_text(encoding="utf-8").splitlines()), key=lambda row: row["doc_id"])
        logs = [[float(answer[0]) for answer in row["filtered_resps"]] for row in rows]
        found[name] = (measured[f"local_{name}"]["acc,none"], logs)
    return found


def test_the_same_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    model, asked = sentencepiece_model(tmp_path), questions()
    for name, include in {"ru_mmlu": MMLU, "ruxnli": XNLI}.items():
        file = write_jsonl(tmp_path / f"{name}.jsonl", asked[name])
        (tmp_path / f"{name}.yaml").write_text(LOCAL.format(include=include, name=name, file=file))
    tasks = tuple(f"{name}={tmp_path / f'{name}.jsonl'}" for name in asked)
    evaluate(Evaluate(model, tmp_path / "ours", tasks, device="cpu"))
    results = json.loads((tmp_path / "ours" / "results.json").read_text(encoding="utf-8"))["tasks"]
    for name, (accuracy, logs) in harness(model, tmp_path, list(asked)).items():
        lines = (tmp_path / "ours" / f"{name}.answers.jsonl").read_text(encoding="utf-8").splitlines()
        ours = [json.loads(line)["log_likelihoods"] for line in lines]
        assert len(ours) == len(logs) == 24
        for own, other in zip(ours, logs, strict=True):
            assert own == pytest.approx(other, rel=1e-5, abs=1e-4)
        assert results[name]["accuracy"] == pytest.approx(accuracy, abs=1e-12)
        assert 0 < accuracy < 1
