"""Whatever a run, a set, a source or a model is called: every page and table is made, and shows the name as it is."""

import io
import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpora import write_documents, write_jsonl
from hostile import WORST, Page, file_names, is_seen, names, squeezed
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vikhr_fast.chat.template import Message
from vikhr_fast.config import PRESETS
from vikhr_fast.corpus import stage, stats
from vikhr_fast.corpus.scrub import REPLACED
from vikhr_fast.corpus.stats import Stats
from vikhr_fast.doctor.findings import Finding, show_findings
from vikhr_fast.evaluate import command as evaluate
from vikhr_fast.experiments.ablate import command as ablate
from vikhr_fast.experiments.ablate.page import ablation_page
from vikhr_fast.experiments.results import Ablation, Arm, Column, Comparison, Figure
from vikhr_fast.inference.compare import side_by_side
from vikhr_fast.io.console import PlainConsole
from vikhr_fast.io.html import print_tables, write_report
from vikhr_fast.plan.command import Plan, plan
from vikhr_fast.report.command import Report, report_run
from vikhr_fast.tokenizer.report import ReportTokenizers, report_tokenizers
from vikhr_fast.train.replay import Replayed, replay_table

TASK = {"accuracy": 0.5, "standard_error": 0.25, "chance": 0.25, "questions": 4, "sha256": "a"}
TEXT = {"loss": 2.0, "bits_per_byte": 1.2345, "tokens": 1000, "num_bytes": 4321, "window": 1024, "perplexity": 7.389}
STEP = {
    "tokens": 9, "seconds": 1.0, "data_seconds": 0.1, "memory_bytes": 9, "kl": 0.5, "loss": 2.0, "ce": 1.5,
    "grad_norm": 1.0, "learning_rate": 0.1, "tokens_per_second": 9.0, "mfu": None,
}  # fmt: skip


def write_run(directory: Path, found: list[str]) -> Path:
    """What is left of a training on sets of these names."""
    directory.mkdir(parents=True)
    for name in ("config", "environment"):
        (directory / f"{name}.json").write_text(json.dumps({name: found, "data": dict.fromkeys(found, name)}))
    lines = {
        "metrics": STEP,
        "validation": {"sets": dict.fromkeys(found, TEXT)},
        "evaluations": {"tasks": dict.fromkeys(found, TASK)},
        "incidents": {"incident": 1, "reason": found[0], "documents": dict.fromkeys(found)},
    }
    for name, line in lines.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps({**line, "step": n}) + "\n" for n in (1, 2)))
    return directory


def write_evaluation(directory: Path, found: list[str]) -> Path:
    directory.mkdir(parents=True)
    subjects = dict.fromkeys((*found, "other"), TASK)
    results = {"tasks": {"ru_mmlu": {**TASK, "subjects": subjects}}, "texts": dict.fromkeys(found, TEXT)}
    for name, values in {"results": results, "config": {}, "environment": {}}.items():
        (directory / f"{name}.json").write_text(json.dumps(values))
    return directory


def an_ablation(found: list[str]) -> Ablation:
    figures = {"tokens": Figure((1.0, 2.0)), "reward": Figure((3.0, 5.0))}
    labels = itertools.cycle(found)
    return Ablation(
        name="kl", table=9, scale=found[0], title=found[-1], text=found[0], seeds=(0, 1),
        columns=tuple(Column(name=name, label=next(labels)) for name in figures),
        arms={name: Arm(label=name, figures=figures) for name in (*found, "other")},
        comparisons=(Comparison(arm="a", against="b", label=found[0], figures=figures),), notes=(found[0],),
    )  # fmt: skip


def page_of(kind: str, scratch: Path, found: list[str], directories: list[str]) -> str:
    """The text of a page."""
    output = scratch / "page.html"
    if kind == "an ablation":
        directory = scratch / "ablation"
        ablate._write(an_ablation([name.replace("\ud800", "") for name in found]), directory)
        assert (directory / "table.md").read_text(encoding="utf-8").count("\n| --- |") == 2
        write_report(output, *ablation_page(directory))
    elif kind in ("a run", "an evaluation"):
        write = write_run if kind == "a run" else write_evaluation
        report_run(Report(tuple(write(scratch / name, found) for name in directories), output))
    elif kind == "a corpus":
        for name in ("1-collect", "2-dedup"):
            write_documents(scratch / name, found)
        shards = {f"{split}/{name}": {"tokens": 9} for split in ("train", "validation") for name in found}
        (scratch / "8-shards").mkdir()
        (scratch / "8-shards" / "manifest.json").write_text(json.dumps({"shards": shards}))
        report_run(Report((scratch,), output))
    else:
        directory = write_documents(scratch / "scrubbed", found, email=1)
        sample = {"kind": "email", "before": found[0], "found": found[-1], "after": ""}
        samples = [{**sample, "source": name.replace("\ud800", "")} for name in found]
        (directory / REPLACED).write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        report_run(Report((directory,), output))
    return Page(output.read_text(encoding="utf-8")).text


PAGES = ("a run", "an evaluation", "a corpus", "what was scrubbed", "an ablation")


def assert_seen(found: list[str], text: str) -> None:
    for name in found:
        assert is_seen(name.replace("\ud800", ""), text.replace(r"\ud800", "")), name


@pytest.mark.parametrize("kind", PAGES)
def test_pages_show_the_worst_names(kind: str, tmp_path: Path) -> None:
    directories = [re.sub("[/\x00]", "", name) for name in WORST[:2]] if kind != "a run" else ["[x]$"]
    found = list(WORST[:5])
    text = page_of(kind, tmp_path, found, directories)
    assert_seen([*found, *(directories if kind in PAGES[:2] else [])], text)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAGES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a run's plots take a second
@given(
    found=st.lists(names, min_size=1, max_size=4, unique=True),
    directories=st.lists(file_names, min_size=1, max_size=2, unique=True),
)
@example(found=["\ud800"], directories=["$x_{$"])
def test_pages_show_any_names(
    kind: str, found: list[str], directories: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = page_of(kind, tmp_path_factory.mktemp("names"), found, directories)
    assert_seen([*found, *(directories if kind in PAGES[:2] else [])], text)


def show_counts(_scratch: Path, found: list[str]) -> None:
    stage.show_counts(f"stage: {found[0]}", {name: {"documents": 1, found[-1]: 2} for name in found})


def show_stats(scratch: Path, found: list[str]) -> None:
    write_documents(scratch / "1-collect", found)
    stats.stats(Stats(scratch))


def show_stage(scratch: Path, found: list[str]) -> None:
    report_run(Report((write_documents(scratch / "stage", found),)))


def show_evaluation(_scratch: Path, found: list[str]) -> None:
    subjects = dict.fromkeys((*found, "other"), TASK)
    tasks = {name: {**TASK, "subjects": subjects} for name in found}
    evaluate._print_tables({"tasks": tasks, "texts": dict.fromkeys(found, TEXT)})


def show_answers(_scratch: Path, found: list[str]) -> None:
    chats = [[Message("user", name)] for name in found]
    print_tables([side_by_side(chats, {name: [name] * len(found) for name in found})])


def show_conversations(scratch: Path, found: list[str]) -> None:
    turns = [{"role": "user", "content": "Где?"}, {"role": "assistant", "content": "Тут."}]
    rows = [{"id": "1", "source": name, "language": name, "messages": turns} for name in found]
    write_jsonl(scratch / "conversations.jsonl", [json.loads(json.dumps(row).replace("\\ud800", "")) for row in rows])
    write_jsonl(scratch / "removed.jsonl", [{"reason": "no: " + name.replace("\ud800", "")} for name in found])
    report_run(Report((scratch,)))


def show_replay(_scratch: Path, found: list[str]) -> None:
    row = Replayed(0, 1.0, None, 1.0, 1.0, documents=found, beginning=found[0])
    PlainConsole(width=5_000).print(replay_table([row]))


def show_doctor(_scratch: Path, found: list[str]) -> None:
    show_findings([Finding("mend", "chat", f"{name}: no") for name in found], heading=found[0])


def show_ablation(scratch: Path, found: list[str]) -> None:
    ablate._write(an_ablation([name.replace("\ud800", "") for name in found]), scratch / "ablation")


TABLES: dict[str, Callable[[Path, list[str]], None]] = {
    name: value for name, value in globals().items() if name.startswith("show_") and name != "show_findings"
}


def in_one_line(found: list[str]) -> list[str]:
    """The names without a line break: in a row of a table it would cut the others, and in a line it is a space."""
    return [name for name in found if "".join(name.splitlines()) == name]


def printed(monkeypatch: pytest.MonkeyPatch, capsys: Any, show: Callable[[], None]) -> str:
    """Both streams of what is shown in a terminal that is wide enough."""
    monkeypatch.setenv("COLUMNS", "5000")
    error = io.StringIO()
    console = PlainConsole(file=error, width=5000, force_terminal=True, color_system=None)
    for module in (stage, stats):
        monkeypatch.setattr(module, "console", console)
    show()
    out: str = capsys.readouterr().out
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out + error.getvalue())
    return out + error.getvalue()


@pytest.mark.parametrize("name", TABLES)
def test_tables_show_the_worst_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, one in enumerate(WORST):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        text = printed(monkeypatch, capsys, lambda: TABLES[name](scratch, [one]))  # noqa: B023  called at once
        assert_seen(in_one_line([one]), text)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.lists(names, min_size=1, max_size=3, unique=True))
def test_tables_show_any_names(
    name: str,
    found: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = printed(monkeypatch, capsys, lambda: TABLES[name](tmp_path_factory.mktemp("names"), found))
    assert_seen(in_one_line(found), text)


def test_tokenizers_are_shown_by_any_names(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [re.sub("[/\x00]", "", name) for name in WORST]
    for name in models:
        shutil.copytree(workspace / "tokenizer", tmp_path / name)
    options = ReportTokenizers(
        models=tuple(tmp_path / name for name in models),
        text=(f"$x_{{$={workspace / 'train.txt'}", f"_[/x]={workspace / 'train.txt'}"),
        plot=tmp_path / "plot.png",
    )
    text = printed(monkeypatch, capsys, lambda: report_tokenizers(options))
    assert_seen([*in_one_line(models), "$x_{$", "_[/x]"], text)
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_shards_in_directories_of_any_names_are_shown(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ["$x_{$", "_name", "[x]", "deep/er"]
    for name in found:
        shutil.copytree(workspace / "train", tmp_path / "shards" / "train" / name)
    (tmp_path / "shards" / "train.toml").write_text("")
    assert_seen(found, printed(monkeypatch, capsys, lambda: report_run(Report((tmp_path / "shards",))) and None))


def test_a_plan_shows_the_name_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "[").mkdir()
    file = tmp_path / "[" / "x]$_{.toml"
    shutil.copy(PRESETS / "vikhr-7b-pretrain.toml", file)
    for gpus in (1, 8):
        text = printed(monkeypatch, capsys, lambda: plan(Plan(config=file, gpus=gpus)))  # noqa: B023  called at once
        assert squeezed(f"{file} on {gpus} x") in squeezed(text)
        assert ("Does not fit. Nearest that does: " in text) == (gpus == 1)
