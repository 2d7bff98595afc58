"""A training run as a page: what its files say, in words and curves, fit for a phone, with no request."""

import html
import json
import re
from pathlib import Path

import pytest
from browser import assert_good
from training_runs import make_config

from vikhr_fast.cli import main
from vikhr_fast.errors import InputError
from vikhr_fast.report.command import Report, report_run
from vikhr_fast.train.loop import train

RESULT = {"standard_error": 0.125, "chance": 0.2, "questions": 1234}


NOT_FINITE = {"loss": None, "bits_per_byte": None, "tokens": 9, "num_bytes": 9}


@pytest.fixture(scope="module")
def run(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with KL, validated, to which a step without finite values and an incident are added."""
    directory = tmp_path_factory.mktemp("report") / "run"
    validation = {"validation": {"russian": workspace / "validation"}, "epochs": 1}
    train(make_config(workspace, directory, data=validation, schedule={"validate_every": 2}))
    metrics = (directory / "metrics.jsonl").read_text().splitlines()
    broken = {**json.loads(metrics[1]), "loss": None, "ce": None, "kl": None, "grad_norm": None, "is_skipped": True}
    metrics[1] = json.dumps(broken)
    (directory / "metrics.jsonl").write_text("\n".join(metrics) + "\n")
    worse = json.loads((directory / "validation.jsonl").read_text().splitlines()[-1])
    worse["sets"]["russian"]["bits_per_byte"] += 0.1
    with (directory / "validation.jsonl").open("a") as file:
        file.write(json.dumps({**worse, "step": worse["step"] + 1}) + "\n")
        file.write(json.dumps({**worse, "step": worse["step"] + 2, "sets": {"russian": NOT_FINITE}}) + "\n")
        file.write(json.dumps({**worse, "step": worse["step"] + 3}) + "\n")
    evaluations = [
        {"step": step, "tokens": 9, "tasks": {"ru_mmlu": {**RESULT, "accuracy": accuracy, "sha256": digest}}}
        for step, accuracy, digest in ((0, 0.1, "before"), (2, 0.25, "now"), (4, 0.75, "now"), (6, 0.5, "now"))
    ]
    (directory / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations))
    incident = {"incident": 1, "step": 2, "reason": "the loss is nan & <b>", "documents": {"train": [[0, 0, 9]]}}
    (directory / "incidents.jsonl").write_text(json.dumps(incident) + "\n")
    return directory


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return report_run(Report((run,))).read_text(encoding="utf-8")


def test_the_page_says_what_the_files_say(run: Path, page: str) -> None:
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validations = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    bits = [line["sets"]["russian"]["bits_per_byte"] for line in validations]
    shown = html.unescape(page)
    assert f"{metrics[-1]['step']} steps over {metrics[-1]['tokens']:,} tokens" in shown
    assert f"from {bits[0]:.4g} at step {validations[0]['step']} to {bits[-1]:.4g}" in shown
    for caption, key in (("Cross-entropy, mean over the tokens of a step.", "ce"), ("Learning rate.", "learning_rate")):
        course = f"from {metrics[0][key]:.4g} at step 1 to {metrics[-1][key]:.4g}"
        assert f"{caption} run {course} at step" in shown
    cells = "".join(f"<td>{value:.4f}</td>" for value in (bits[0], min(filter(None, bits)), bits[-1]))
    assert f'<th scope="row">russian</th><td>run</td>{cells}<td>{validations[-1]["step"]}</td>' in page
    assert "the loss is nan &amp; &lt;b&gt;" in page
    assert "optimizer.learning_rate" in page
    assert "packages.torch" in page
    assert "Steps skipped: 1." in page


def test_benchmarks_along_training(page: str) -> None:
    cells = "".join(f"<td>{cell}</td>" for cell in ("0.250", "0.750", "0.500 ± 0.125", "0.200", "1,234"))
    assert f'<th scope="row">ru_mmlu</th><td>run</td>{cells}' in page
    assert "run from 0.25 at step 2 to 0.5 at step 6" in page  # before, it was asked something else


def test_the_page_stands_alone(page: str) -> None:
    assert not re.search(r"\b(src|href|action)=[\"'](?!#)|url\((?!#)|@import|<script|<link|https?:", page)
    figures = re.findall(r"<figure>\s*<div role=\"img\" aria-label=\"([^\"]*)\">", page)
    assert len(figures) == page.count("<svg") == 8
    assert all(len(alt) > 30 for alt in figures)


def test_the_page_in_a_browser(run: Path, tmp_path: Path) -> None:
    page = report_run(Report((run,), tmp_path / "page.html"))
    assert len(assert_good(page, tmp_path).figures) == 8


def test_runs_side_by_side(run: Path, workspace: Path, tmp_path: Path) -> None:
    other = make_config(workspace, tmp_path / "other", optimizer={"learning_rate": 1e-3}, schedule={"max_steps": 3})
    train(other)
    page = report_run(Report((run, other.output), tmp_path / "page.html"))
    shown = html.unescape(page.read_text(encoding="utf-8").replace(' class="text"', ""))
    last = [json.loads((one / "metrics.jsonl").read_text().splitlines()[-1]) for one in (run, other.output)]
    for name, line in zip(("run", "other"), last, strict=True):
        assert f"{name}: {line['step']} steps over {line['tokens']:,} tokens" in shown
    assert '<th scope="row">optimizer.learning_rate</th><td>0.003</td><td>0.001</td>' in shown
    assert "batch.micro_batch" not in shown
    assert '<th scope="row">ru_mmlu</th><td>run</td><td>0.250</td><td>0.750</td><td>0.500 ± 0.125</td>' in shown
    assert_good(page, tmp_path)


def test_damaged_runs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "environment.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match=r"metrics.jsonl: no steps in it"):
        report_run(Report((tmp_path,)))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(InputError, match="damaged: not what a training run holds: KeyError"):
        report_run(Report((tmp_path,)))
    whole = (run / "metrics.jsonl").read_text()
    for name, value in (("seconds", "0.0"), ("memory_bytes", "9" * 400)):
        (tmp_path / "metrics.jsonl").write_text(re.sub(rf'("{name}": )[^,}}]+', rf"\g<1>{value}", whole))
        with pytest.raises(InputError, match=f"{tmp_path}: damaged: not what a training run holds: (Zero|Overflow)"):
            report_run(Report((tmp_path,)))
    (tmp_path / "metrics.jsonl").write_text(whole)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config.json: damaged: must hold a JSON object, holds a list"):
        report_run(Report((tmp_path,)))
    assert not list(tmp_path.glob("*.html"))
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run), "--output", str(tmp_path / "page.html")])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
