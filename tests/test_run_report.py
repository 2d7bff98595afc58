"""A training run as a page: what its files say, in words and curves, fit for a phone, with no request."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from training_runs import make_config

from vikhr_fast.cli import main
from vikhr_fast.errors import InputError
from vikhr_fast.run_report import Report, report_run
from vikhr_fast.train.loop import train


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
    incident = {"incident": 1, "step": 2, "reason": "the loss is nan & <b>", "documents": {"train": [[0, 0, 9]]}}
    (directory / "incidents.jsonl").write_text(json.dumps(incident) + "\n")
    return directory


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return report_run(Report(run)).read_text(encoding="utf-8")


def test_the_page_says_what_the_files_say(run: Path, page: str) -> None:
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validations = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    bits = [line["sets"]["russian"]["bits_per_byte"] for line in validations]
    shown = html.unescape(page)
    assert f"{metrics[-1]['step']} steps over {metrics[-1]['tokens']:,} tokens" in shown
    assert f"from {bits[0]:.4g} at step {validations[0]['step']} to {bits[-1]:.4g}" in shown
    assert f"cross-entropy from {metrics[0]['ce']:.4g} at step 1 to {metrics[-1]['ce']:.4g}" in shown
    cells = "".join(f"<td>{value:.4f}</td>" for value in (bits[0], min(bits), bits[-1]))
    assert f'<th scope="row">russian</th>{cells}<td>{validations[-1]["step"]}</td>' in page
    assert "the loss is nan &amp; &lt;b&gt;" in page
    assert "optimizer.learning_rate" in page
    assert "packages.torch" in page
    assert "Steps skipped: 1." in page


def test_the_page_stands_alone(page: str) -> None:
    assert not re.search(r"\b(src|href|action)=[\"'](?!#)|url\((?!#)|@import|<script|<link|http", page)
    figures = re.findall(r"<figure>\s*<div role=\"img\" aria-label=\"([^\"]*)\">", page)
    assert len(figures) == page.count("<svg") == 5
    assert all(len(alt) > 30 for alt in figures)


def test_the_page_fits_a_phone(page: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("chromium is not installed")
    frame = f'<iframe id="f" style="width:380px;height:800px;border:0" srcdoc="{html.escape(page)}"></iframe>'
    script = (
        "addEventListener('load', () => { const root = document.getElementById('f').contentDocument.documentElement;"
        " document.title = `${root.clientWidth} ${root.scrollWidth}`; });"
    )
    (tmp_path / "phone.html").write_text(f"<!DOCTYPE html><title></title>{frame}<script>{script}</script>")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
        f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "phone.html").as_uri(),
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(\d+) (\d+)</title>", ended.stdout)
    assert title
    inner, needed = map(int, title.groups())
    assert 360 <= inner <= 380
    assert needed <= inner
    assert "CONSOLE" not in ended.stderr


def test_what_is_no_training_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"config.json: no such file; give the run directory of a training run"):
        report_run(Report(tmp_path))
    for name in ("config.json", "environment.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=r"metrics.jsonl: no steps in it"):
        report_run(Report(tmp_path))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(InputError, match="not what a training run writes"):
        report_run(Report(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="damaged: not a JSON object"):
        report_run(Report(tmp_path))
    assert not list(tmp_path.glob("*.html"))
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run), "--output", str(tmp_path / "page.html")])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
