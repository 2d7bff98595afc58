"""Every kind of directory has its page, fit for a phone's browser, or its tables; both say what the files say."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import assert_good
from corpora import write_jsonl

from vikhr_fast.errors import InputError
from vikhr_fast.instruct.filter import SCORES
from vikhr_fast.report.command import Report, report_run
from vikhr_fast.tokenizer.extend import ExtendTokenizer, extend_tokenizer

EVALUATION = {
    "tasks": {
        "ru_mmlu": {
            "task": "ru_mmlu", "accuracy": 0.5, "standard_error": 0.25, "chance": 0.25, "questions": 4,
            "subjects": {
                "история <b>": {"accuracy": 1.0, "standard_error": 0.0, "questions": 2},
                "физика": {"accuracy": 0.0, "standard_error": None, "questions": 2},
            },
        }
    },
    "texts": {"held": {"loss": 2.0, "bits_per_byte": 1.2345, "tokens": 1000, "num_bytes": 4321, "perplexity": 7.389}},
}  # fmt: skip


def write_evaluation(directory: Path, chosen: list[int], digest: str = "a") -> Path:
    """A finished evaluation of four questions whose right answers are all 0."""
    directory.mkdir()
    results = json.loads(json.dumps(EVALUATION))
    results["tasks"]["ru_mmlu"]["accuracy"] = chosen.count(0) / 4
    config = {"tasks": {"ru_mmlu": {"sha256": digest}}, "model": {"directory": str(directory)}}
    for name, values in {"results": results, "config": config, "environment": {"commit": "c0ffee"}}.items():
        (directory / f"{name}.json").write_text(json.dumps(values))
    write_jsonl(directory / "ru_mmlu.answers.jsonl", [{"answer": 0, "chosen": one} for one in chosen])
    return directory


def shown(*paths: Path, output: Path) -> str:
    """The page as text, looked at in a browser where there is one."""
    page = report_run(Report(paths, output))
    assert page == output
    try:
        assert_good(page, output.parent)
    except pytest.skip.Exception:
        print("not looked at: chromium is not installed")
    return html.unescape(page.read_text(encoding="utf-8").replace(' class="text"', ""))


Printed = Callable[..., list[list[str]]]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """The rows of the tables of some paths, cell by cell."""

    def rows(*paths: Path) -> list[list[str]]:
        assert report_run(Report(paths)) is None
        lines = capsys.readouterr().out.splitlines()
        return [[cell.strip() for cell in re.split("[│┃]", line.strip("│┃"))] for line in lines]

    return rows


def test_an_evaluation(tmp_path: Path) -> None:
    page = shown(write_evaluation(tmp_path / "run", [0, 0, 1, 1]), output=tmp_path / "page.html")
    assert '<th scope="row">ru_mmlu</th><td>0.500 ± 0.250</td><td>0.250</td><td>4</td>' in page
    assert '<th scope="row">физика</th><td>0.000</td><td>2</td>' in page
    assert '<th scope="row">held</th><td>run</td><td>1.2345</td><td>7.39</td><td>1,000</td><td>4,321</td>' in page
    assert "c0ffee" in page


def test_evaluations_side_by_side(tmp_path: Path) -> None:
    runs = [
        write_evaluation(tmp_path / "base", [0, 1, 1, 1]),
        write_evaluation(tmp_path / "tuned", [1, 0, 0, 0]),
        write_evaluation(tmp_path / "other", [0, 0, 0, 0], digest="b"),
    ]
    page = shown(*runs, output=tmp_path / "page.html")
    cells = "".join(f"<td>{share:.3f} ± 0.250</td>" for share in (0.25, 0.75, 1))
    assert f'<th scope="row">ru_mmlu</th>{cells}<td>0.250</td>' in page
    differences = page[page.index("Paired differences to base") :]
    # by hand: -1, 1, 1, 1 have the mean 0.5 and the standard error 1 / √4
    assert '<th scope="row">ru_mmlu</th><td>tuned</td><td>+0.500 ± 0.500</td><td>3</td><td>1</td>' in differences
    assert "<td>other</td>" not in differences.split("</table>")[0]  # it was asked something else


def test_a_tokenizer(workspace: Path, tmp_path: Path, printed: Printed) -> None:
    heading = ["tokenizer", "pieces", "single bytes", "control", "unreachable"]
    rows = printed(workspace / "tokenizer")
    assert heading in rows
    assert ["tokenizer", "520", "256", "4", "0"] in rows
    extended = tmp_path / "extended"
    options = ExtendTokenizer(
        base=workspace / "tokenizer", input=(workspace / "other.txt",), output=extended, vocab_size=560
    )
    report = extend_tokenizer(options)
    assert ["learnt", str(report["learnt"])] in printed(extended)
    rows = printed(workspace / "tokenizer", extended)
    assert [*heading, "shared with tokenizer", "shared with extended"] in rows
    assert ["extended", "560", "256", "4", "0", "520", "560"] in rows


def test_an_adapted_model(workspace: Path, tmp_path: Path, printed: Printed) -> None:
    (tmp_path / "tokenizer.model").write_bytes((workspace / "tokenizer" / "tokenizer.model").read_bytes())
    report = {"by_role": 3, "copied": 300, "averaged": 217, "worst": [{"id": 519, "piece": "▁слово", "base_pieces": 9}]}
    (tmp_path / "adapt.json").write_text(json.dumps({**report, "base_ids": [7] * 520}))
    rows = printed(tmp_path)
    assert ["303 of 520 pieces keep the base's rows, 217 are new."] in rows
    assert ["by role", "3"] in rows
    assert ["▁слово", "519", "9"] in rows
    assert "7 7 7" not in str(rows)


def test_conversations(tmp_path: Path, printed: Printed) -> None:
    rows = [
        {"id": str(n), "source": "ab"[n % 2], "language": "ru", "messages": [
            {"role": "user", "content": f"Вопрос {n}?"}, {"role": "assistant", "content": "да" * 600}
        ]}
        for n in range(9)
    ]  # fmt: skip
    write_jsonl(tmp_path / "conversations.jsonl", rows)
    write_jsonl(tmp_path / "removed.jsonl", [{"id": "10", "source": "a", "by": "question", "kept": "1"}] * 3)
    scores = [{"id": str(n), "source": "ab"[n % 2], "score": n / 10, "kept": n > 2} for n in range(12)]
    write_jsonl(tmp_path / SCORES, scores)
    (tmp_path / "manifest.json").write_text('{"stage": "instruct convert", "dropped_columns": {"url": 7}}')
    found = printed(tmp_path)
    assert ["dropped_columns.url", "7"] in found
    assert ["9 conversations of 2 sources."] in found
    assert ["a", "5", "1.00", "1,200", "5"] in found
    assert ["by question", "3"] in found
    assert ["b", "6", "5", "0.700"] in found
    assert ["a", "Вопрос 0?", "да" * 32] in found
    assert "Вопрос 8?" not in str(found)  # a sample
    assert any(row[-1].endswith(" …") for row in found)


def test_token_shards(workspace: Path, printed: Printed) -> None:
    manifest = json.loads((workspace / "train" / "manifest.json").read_text())
    counts = [f"{manifest[name]:,}" for name in ("num_documents", "num_tokens", "num_trained")]
    rows = printed(workspace / "train")
    assert ["train", *counts, f"{manifest['num_bytes'] / manifest['num_trained']:.2f}"] in [row[:5] for row in rows]
    assert ["train", manifest["sha256"]] in rows


def write_answers(path: Path, answers: list[str], prompts: tuple[str, ...] = ("Где дом?", "Кто там?")) -> Path:
    rows = zip(prompts, answers, strict=True)
    write_jsonl(path, [{"prompt": prompt, "answer": answer, "complete": True} for prompt, answer in rows])
    return path


def test_answers_of_several_models_side_by_side(tmp_path: Path, printed: Printed) -> None:
    files = [
        write_answers(tmp_path / "base.jsonl", ["the house is here", "[b]я[/b]"]),
        write_answers(tmp_path / "tuned.jsonl", ["дом тут", ""]),
    ]
    rows = printed(*files)
    assert ["prompt", "base", "tuned"] in rows
    assert ["Где дом?", "the house is here", "дом тут"] in rows
    assert ["Кто там?", "[b]я[/b]", "(no answer: it is empty)"] in rows
    assert ["Latin-script words", "83.3%", "0.0%"] in rows
    assert printed(tmp_path) == rows  # the directory of both
    other = write_answers(tmp_path / "other.jsonl", ["да", "нет"], prompts=("Где дом?", "Что там?"))
    with pytest.raises(InputError, match=r"other.jsonl: answers to other prompts than .*base.jsonl"):
        report_run(Report((*files, other)))
    with pytest.raises(InputError, match=r"--output .*page.html: of answers there is no page, only tables"):
        report_run(Report(tuple(files), tmp_path / "page.html"))


def figure(*values: float) -> dict[str, Any]:
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values)
    error = (spread / (len(values) - 1) / len(values)) ** 0.5 if len(values) > 1 else None
    return {"values": values, "mean": mean, "standard_error": error}


def test_an_ablation(tmp_path: Path) -> None:
    bits = {"name": "russian.bits_per_byte", "label": "bits per byte, Russian", "digits": 3}
    values = {
        "format": "vikhr-fast ablation", "version": 1, "name": "kl", "table": 9, "scale": "demo",
        "title": "the KL term", "text": "held-out Russian", "seeds": [0, 1, 2], "notes": ["One <b>note</b>."],
        "columns": [{"name": "perplexity", "label": "perplexity", "digits": 2}, bits],
        "arms": {
            "ce": {"label": "CE", "figures": {"perplexity": figure(10, 12, 14), bits["name"]: figure(2, 2, 2)}},
            "ce-kl": {"label": "CE + KL", "figures": {bits["name"]: figure(1, 2, 3)}},
        },
        "comparisons": [{"arm": "ce-kl", "against": "ce", "label": "KL", "figures": {bits["name"]: figure(-1, 0, 1)}}],
    }  # fmt: skip
    (tmp_path / "ablation.json").write_text(json.dumps(values))
    page = shown(tmp_path, output=tmp_path / "page.html")
    assert "Table 9, demo scale: the KL term" in page
    assert '<th scope="row">CE</th><td>12.00 ± 1.15</td><td>2.000 ± 0.000</td>' in page
    assert '<th scope="row">CE + KL</th><td>–</td><td>2.000 ± 0.577</td>' in page
    assert '<th scope="row">KL</th><td>+0.000 ± 0.577</td>' in page
    assert "CE 2.000; CE + KL 2.000" in page
    assert page.count("<svg") == 1  # one column has a single arm


def write_conversations(directory: Path) -> Path:
    directory.mkdir()
    messages = [{"role": "user", "content": "Где?"}, {"role": "assistant", "content": "Тут."}]
    row = {"id": "1", "source": "a", "language": "ru", "messages": messages}
    write_jsonl(directory / "conversations.jsonl", [row])
    return directory


Made = Callable[[Path], tuple[Any, ...]]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda _: (), "name a directory"),
        (lambda path: (path / "absent",), "absent: no such directory"),
        (lambda path: (path,), r"nothing to report on; looked for .*metrics.jsonl \(a training run\), results.json"),
        (lambda path: (write_evaluation(path / "run", [0] * 4), write_answers(path / "a.jsonl", ["", ""])), "of diff"),
        (
            lambda path: (write_conversations(path / "a"), write_conversations(path / "b")),
            "conversations: one at a time",
        ),
        (lambda path: (write_evaluation(path / "run", [0] * 4),) * 2, "run: stands there twice; name each once"),
        (lambda path: (write_evaluation(path / "x", [0] * 4), write_evaluation(path / "y", [0] * 4)), "--output: name"),
    ],
)
def test_what_there_is_no_page_for(tmp_path: Path, made: Made, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        report_run(Report(made(tmp_path)))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.html"))


def test_damaged_directories(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path / "run", [0] * 4)
    for content, reason in (
        ('{"tasks": {}}', "damaged: not what an evaluation holds: KeyError"),
        ("[1]", "results.json: damaged: must hold a JSON object, holds a list"),
        ("\x00{", "results.json: damaged"),
    ):
        (run / "results.json").write_text(content)
        with pytest.raises(InputError, match=reason):
            report_run(Report((run,)))
    assert not (run / "report.html").exists()
