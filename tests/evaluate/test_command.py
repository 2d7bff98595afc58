"""The command: results in a run directory, an interruption costs nothing, what is wrong is one line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from corpora import write_jsonl
from safetensors.torch import load_file, save_file

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'vikhr-fast[eval]'")

from vikhr_fast.cli import main
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate import harness
from vikhr_fast.evaluate.command import Evaluate, evaluate
from vikhr_fast.evaluate.options import option_texts
from vikhr_fast.report.command import Report, report_run

QUESTION = {"question": "Где дом?", "choices": ["там", "тут", "нигде"], "answer": 1}
PAIR = {"premise": "Идёт дождь.", "hypothesis": "Сухо.", "label": 2}


def results_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return found


def test_an_interrupted_evaluation_is_taken_up_again(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [{**QUESTION, "question": f"Где {n} дом?", "answer": "ABC"[n % 3]} for n in range(9)]
    write_jsonl(tmp_path / "mmlu.jsonl", asked)
    write_jsonl(tmp_path / "nli.jsonl", [{**PAIR, "premise": f"Идёт {n} дождь."} for n in range(4)])
    tasks = (f"ru_mmlu={tmp_path / 'mmlu.jsonl'}", f"ruxnli={tmp_path / 'nli.jsonl'}")
    text = (f"validation={workspace / 'validation.txt'}",)
    plain = Evaluate(workspace / "model", tmp_path / "plain", tasks, text, batch=2, device="cpu")
    evaluate(plain)

    real, calls, stop_at = harness.likelihoods, 0, {3, 7}

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in stop_at:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(harness, "likelihoods", interrupted)
    again = replace(plain, output=tmp_path / "again")
    for _ in stop_at:
        with pytest.raises(KeyboardInterrupt):
            evaluate(again)
        assert not (again.output / "results.json").exists()
    evaluate(again)
    assert calls == 5 + 2 + 2 + len(stop_at)  # batches of two: of 9, 4 and 4 questions, none twice
    assert results_of(again.output) == results_of(plain.output)
    monkeypatch.setattr(harness, "likelihoods", None)
    evaluate(again)  # nothing is computed again
    with pytest.raises(InputError, match="this run began with other values of seed; use another --output"):
        evaluate(replace(again, seed=1))
    record = again.output / "config.json"
    values = json.loads(record.read_text())
    del values["sequence_length"], values["keep_order"]  # as an earlier version might have written it
    record.write_text(json.dumps(values))
    evaluate(again)
    with pytest.raises(InputError, match="other values of sequence_length;"):
        evaluate(replace(again, sequence_length=64))


def test_texts_are_scored_without_the_harness(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (f"own={workspace / 'validation.txt'}", f"other={workspace / 'other.txt'}")
    flags = ["--sequence-length", "96", "--device", "cpu", "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(workspace / "model"), "--text", *text, *flags])
    assert ended.value.code == 0
    found = results_of(tmp_path / "run")["texts"]
    num_bytes = len((workspace / "validation.txt").read_bytes())
    assert abs(found["own"]["num_bytes"] - num_bytes) < 8  # the blank lines between paragraphs
    assert 1 < found["own"]["bits_per_byte"] < 10
    assert found["own"]["perplexity"] > 100
    assert "bits per byte" in capsys.readouterr().out


def test_what_becomes_of_questions_is_counted(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    padding = ["N/A"] * 7
    rows = [
        {**QUESTION, "choices": [*QUESTION["choices"], *padding]},
        {**QUESTION, "choices": ["там", "тут", "A и B", "ни один из перечисленных"]},
        {**QUESTION, "choices": ["там", *padding]},
        {**QUESTION, "choices": [1, 2]},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    command = [
        "evaluate",
        str(workspace / "model"),
        "--tasks",
        f"ru_mmlu_pro={tmp_path / 'rows.jsonl'}",
        "--device",
        "cpu",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--output", str(tmp_path / "run")])
    assert ended.value.code == 0
    result = results_of(tmp_path / "run")["tasks"]["ru_mmlu_pro"]
    assert (result["kept_in_order"], result["stripped"], result["rejected"], result["questions"]) == (1, 1, 1, 3)
    assert result["chance"] == pytest.approx((1 / 3 + 1 / 4 + 1 / 2) / 3)
    rejected = json.loads((tmp_path / "run" / "ru_mmlu_pro.rejected.jsonl").read_text())
    assert (rejected["line"], rejected["file"]) == (3, str(tmp_path / "rows.jsonl"))
    assert "'N/A' only fills a place" in rejected["reason"]
    assert "without padding options" in capsys.readouterr().out
    assert report_run(Report((tmp_path / "run",))) == tmp_path / "run" / "report.html"
    row = '<th scope="row">run</th><td>ru_mmlu_pro</td><td>1</td><td>1</td><td>1</td>'
    assert row in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(SystemExit) as ended:
        main([*command, "--output", str(tmp_path / "run"), "--keep-order"])
    assert ended.value.code == 3
    assert "other values of keep_order" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([*command, "--output", str(tmp_path / "kept"), "--keep-order"])
    assert results_of(tmp_path / "kept")["tasks"]["ru_mmlu_pro"]["kept_in_order"] == 3


@pytest.mark.parametrize(
    ("name", "rows", "reason"),
    [
        ("ru_mmlu", [], "no questions in it"),
        ("ru_mmlu", [{"text": "да"}], r"line 1: no field 'choices' \(it has 'text'\)"),
        ("ru_mmlu", [QUESTION, {**QUESTION, "answer": 3}], "line 2: field 'answer': 3: none of the 3 choices"),
        ("ru_mmlu", [{**QUESTION, "answer": "AB"}], "line 1: field 'answer': 'AB': none"),
        ("ru_mmlu", [{**QUESTION, "answer": True}], "line 1: field 'answer'"),
        ("ru_mmlu", [{**QUESTION, "choices": ["да"]}], "must be a list of 2 to 10 answers"),
        ("ru_mmlu", [{**QUESTION, "choices": ["да", " "]}], "'choices': holds no text"),
        ("ru_mmlu_pro", [{**QUESTION, "question": None}], "line 1: field 'question': holds no text"),
        ("ru_mmlu_pro", [{**QUESTION, "question": "\ud800"}], "half of a surrogate pair"),
        ("ruxnli", [PAIR, {**PAIR, "label": -1}], "line 2: field 'label': -1: must be 0, 1, 2 or one of entailment"),
        ("ruxnli", [{"premise": "да", "label": 1}], r"line 1: no field 'hypothesis' \(it has 'premise', 'label'\)"),
    ],
)
def test_questions_that_cannot_be_used(
    workspace: Path, tmp_path: Path, name: str, rows: list[dict[str, Any]], reason: str
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = Evaluate(workspace / "model", tmp_path / "run", tasks=(f"{name}={tmp_path / 'rows.jsonl'}",))
    with pytest.raises(InputError, match=reason) as error:
        evaluate(options)
    assert str(tmp_path / "rows.jsonl") in str(error.value)
    assert not options.output.exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "nothing to evaluate"),
        ({"tasks": ("ru_mmlu=absent.jsonl",)}, "absent.jsonl: no such file"),
        ({"tasks": ("ru_mmlu=absent-*.jsonl",)}, "no file has such a name"),
        ({"tasks": ("ru_mmlu=hf:owner/name",)}, "must name the raw files of the data set"),
        ({"tasks": ("mmlu=a.jsonl",)}, "--tasks mmlu: must be of ruxnli, ru_mmlu, ru_mmlu_pro"),
        ({"tasks": ("ru_mmlu",)}, "--tasks ru_mmlu: must be NAME=SOURCE"),
        ({"text": ("a=b.txt", "a=c.txt")}, "--text a=c.txt: must be NAME=SOURCE, a name .* only once"),
        ({"text": ("a=absent.txt",)}, "absent.txt: no such file"),
        ({"text": ("a=b.txt",), "batch": 0}, "--batch 0: must be 1 or more"),
        ({"text": ("a=b.txt",), "sequence_length": 1}, "--sequence-length 1: must be 2 or more"),
    ],
)
def test_settings_that_cannot_be_used(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=reason):
        evaluate(Evaluate(workspace / "model", tmp_path / "run", **changes))


def test_a_model_whose_answers_are_no_numbers_is_refused(workspace: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(workspace / "model", broken)
    for file in broken.glob("*.safetensors"):
        save_file({name: torch.full_like(own, torch.nan) for name, own in load_file(file).items()}, file)
    plain = Evaluate(broken, tmp_path / "text", text=(f"a={workspace / 'validation.txt'}",), device="cpu")
    with pytest.raises(InputError, match="broken: a: the loss is nan nats a token; the model's weights hold NaN"):
        evaluate(plain)
    write_jsonl(tmp_path / "mmlu.jsonl", [QUESTION])
    with pytest.raises(InputError, match="a log-likelihood of the model is no finite number"):
        evaluate(replace(plain, output=tmp_path / "task", text=(), tasks=(f"ru_mmlu={tmp_path / 'mmlu.jsonl'}",)))
    assert not list(tmp_path.glob("*/results.json"))


def test_a_directory_that_is_no_model(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model with its tokenizer; give a Hugging Face directory"):
        evaluate(Evaluate(tmp_path, tmp_path / "run", text=(f"a={workspace / 'validation.txt'}",)))


@pytest.mark.parametrize(
    "damaged", ["[]", "null", "{}", '{"accuracy": "0.5"}', "[" * 100_000, '{"accuracy": ' + "1" * 5000 + "}"]
)
def test_a_result_of_another_shape_is_one_line(workspace: Path, tmp_path: Path, damaged: str) -> None:
    write_jsonl(tmp_path / "mmlu.jsonl", [QUESTION] * 2)
    options = Evaluate(workspace / "model", tmp_path / "run", (f"ru_mmlu={tmp_path / 'mmlu.jsonl'}",), device="cpu")
    evaluate(options)
    (tmp_path / "run" / "ru_mmlu.json").write_text(damaged)
    with pytest.raises(InputError, match=r"ru_mmlu\.json: damaged: .*; remove it and run the same command again"):
        evaluate(options)


def test_options_that_are_numbers_of_any_size_are_read() -> None:
    assert option_texts([10**400, 0.5, "да"])[0] == str(10**400)
