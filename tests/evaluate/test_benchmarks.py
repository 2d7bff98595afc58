"""The harness's own model gives the same likelihoods and choices; planted answers give the accuracies they must."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from corpora import write_jsonl

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'vikhr-fast[eval]'")

from vikhr_fast.evaluate.benchmarks import BENCHMARKS, benchmark_questions, harness_task, run_task
from vikhr_fast.evaluate.command import Evaluate, evaluate
from vikhr_fast.evaluate.harness import HarnessModel
from vikhr_fast.evaluate.questions import BENCHMARK_NAMES, questions_sha256
from vikhr_fast.llm.answer_log import AnswerLog
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer.load import load_encoder

WORDS = ["дом", "река", "письмо", "вечер", "новая", "книга", "старый", "лес", "белый", "день", "вода", "слово"]


def inference_rows(count: int) -> list[dict[str, Any]]:
    draw = random.Random(1)
    return [
        {
            "premise": " ".join(draw.choices(WORDS, k=3)),
            "hypothesis": " ".join(draw.choices(WORDS, k=3)),
            "label": n % 3,
        }
        for n in range(count)
    ]


def choice_rows(count: int, choices: int, name: str = "choices") -> list[dict[str, Any]]:
    draw = random.Random(2)
    return [
        {
            "question": f"{' '.join(draw.choices(WORDS, k=5))}?",
            name: [f"{word} {number}" for word in draw.sample(WORDS, choices)],
            "answer": "ABCDEFGHIJ"[number % choices] if name == "options" else number % choices,
            "subject": draw.choice(["history", "physics"]),
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("benchmarks")
    rows = {
        "ruxnli": inference_rows(12),
        "ru_mmlu": choice_rows(16, 4),
        "ru_mmlu_pro": choice_rows(10, 10, "options"),
    }
    for name, own in rows.items():
        write_jsonl(root / f"{name}.jsonl", own)
    return {name: root / f"{name}.jsonl" for name in rows}


def test_the_harness_agrees(workspace: Path, sources: dict[str, Path], tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    directory = workspace / "model"
    model = Mistral.from_pretrained(directory, torch.float64)
    # In float64, but for transformers' norms, which are float32 in any model: with long texts that shows.
    theirs = HFLM(pretrained=str(directory), dtype="float64", device="cpu", batch_size=4)
    with AnswerLog(tmp_path / "log.jsonl") as log:
        ours = HarnessModel(model, load_encoder(directory), log, batch=3)
        assert set(sources) == set(BENCHMARKS) == set(BENCHMARK_NAMES)
        for benchmark, source in sources.items():
            questions = benchmark_questions(benchmark, source, seed=0).asked
            for name, files in BENCHMARKS[benchmark].descriptions.items():
                result, chosen = run_task(harness_task(name, files, questions), ours)
                expected, expected_chosen = run_task(harness_task(name, files, questions), theirs)
                assert result == expected
                assert result["questions"] == len(questions)
                for mine, other in zip(chosen, expected_chosen, strict=True):
                    assert mine["log_likelihoods"] == pytest.approx(other["log_likelihoods"], abs=1e-6)
                    assert (mine["chosen"], mine["answer"]) == (other["chosen"], other["answer"])


def test_planted_answers(workspace: Path, tmp_path: Path) -> None:
    rows = choice_rows(60, 4)
    write_jsonl(tmp_path / "first.jsonl", rows)
    options = Evaluate(workspace / "model", tmp_path / "first", tasks=(f"ru_mmlu={tmp_path / 'first.jsonl'}",))
    evaluate(options)
    lines = (tmp_path / "first" / "ru_mmlu.answers.jsonl").read_text().splitlines()
    chosen = [json.loads(line)["chosen"] for line in lines]
    drawn = random.Random(7).choices(range(4), k=60)
    planted = {
        "right": chosen,
        "wrong": [(choice + 1) % 4 for choice in chosen],
        "chance": drawn,
    }
    results = {}
    for name, answers in planted.items():
        own = [{**row, "answer": answer} for row, answer in zip(rows, answers, strict=True)]
        (tmp_path / f"{name}.json").write_text(json.dumps(own))
        evaluate(Evaluate(options.model, tmp_path / name, tasks=(f"ru_mmlu={tmp_path / f'{name}.json'}",)))
        results[name] = json.loads((tmp_path / name / "results.json").read_text())["tasks"]["ru_mmlu"]
    assert results["right"]["accuracy"] == 1
    assert results["right"]["standard_error"] == 0
    assert results["wrong"]["accuracy"] == 0
    assert results["chance"]["accuracy"] == sum(map(int.__eq__, chosen, drawn)) / 60
    assert abs(results["chance"]["accuracy"] - results["chance"]["chance"]) < 2 * results["chance"]["standard_error"]
    assert sum(own["questions"] for own in results["chance"]["subjects"].values()) == 60


def test_options_have_a_fixed_order(sources: dict[str, Path]) -> None:
    plain = [json.loads(line) for line in sources["ru_mmlu_pro"].read_text().splitlines()]
    once, again, other = (benchmark_questions("ru_mmlu_pro", sources["ru_mmlu_pro"], seed).asked for seed in (0, 0, 1))
    assert once == again != other
    for row, question in zip(plain, once, strict=True):
        assert sorted(question["choices"]) == sorted(row["options"])
        assert question["choices"][question["answer"]] == row["options"]["ABCDEFGHIJ".index(row["answer"])]
        assert "".join(question["letters"]) == "ABCDEFGHIJ"
    assert len({question["answer"] for question in once}) > 3


def test_options_that_name_others_keep_their_order(tmp_path: Path) -> None:
    plain = choice_rows(12, 5, "options")
    naming = [{**row, "options": [*row["options"][:3], "Верно и A, и B", "Все перечисленные"]} for row in plain[:6]]
    source = write_jsonl(tmp_path / "rows.jsonl", [*naming, *plain[6:]])
    found = benchmark_questions("ru_mmlu_pro", source, seed=0)
    assert found.counts == {"kept_in_order": 6, "stripped": 0, "rejected": 0}
    for row, question in zip(naming, found.asked, strict=False):
        assert question["choices"] == row["options"]
        assert question["answer"] == "ABCDE".index(row["answer"])
    shuffled = [question["choices"] != row["options"] for row, question in zip(plain[6:], found.asked[6:], strict=True)]
    assert any(shuffled)
    kept = benchmark_questions("ru_mmlu_pro", source, seed=0, keep_order=True)
    assert kept.counts["kept_in_order"] == 12
    assert [question["choices"] for question in kept.asked] == [row["options"] for row in [*naming, *plain[6:]]]
    assert benchmark_questions("ru_mmlu", source, seed=0).counts["kept_in_order"] == 0  # it shuffles none


def test_plain_questions_are_asked_as_ever(sources: dict[str, Path]) -> None:
    """Of sets without anything to mend the order and digests are those recorded by earlier versions."""
    digests = {
        name: questions_sha256(benchmark_questions(name, source, 0).asked)[:8] for name, source in sources.items()
    }
    assert digests == {"ruxnli": "bee51290", "ru_mmlu": "a63d1b13", "ru_mmlu_pro": "198b20e5"}


def test_a_prompt_shows_all_choices(sources: dict[str, Path]) -> None:
    questions = benchmark_questions("ru_mmlu", sources["ru_mmlu"], seed=0).asked
    task = harness_task("ru_mmlu", BENCHMARKS["ru_mmlu"].descriptions["ru_mmlu"], questions)
    shown = task.doc_to_text(task.test_docs()[0])
    letters = re.findall(r"^([A-D])\. (.+)$", shown, re.MULTILINE)
    assert letters == list(zip("ABCD", questions[0]["choices"], strict=True))
    assert shown.endswith("\nОтвет:")
    assert questions[0]["question"] in shown
