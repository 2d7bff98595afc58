"""The page of an evaluation, or of several models' side by side."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.command import RESULTS
from vikhr_fast.report import Figure, Page, Section, Table, bar_plot
from vikhr_fast.run_directory import CONFIG
from vikhr_fast.run_report.making import making, read_values

_Results = dict[str, dict[str, Any]]
"""By the model's name what results.json holds."""


def evaluation_page(directories: dict[str, Path]) -> Page:
    """The page of evaluations by the names to show."""
    found = {name: read_values(directory / RESULTS) for name, directory in directories.items()}
    tasks = list(dict.fromkeys(task for results in found.values() for task in results["tasks"]))
    texts = list(dict.fromkeys(text for results in found.values() for text in results["texts"]))
    sections = []
    if tasks:
        differences = (_differences(directories, tasks),) if len(found) > 1 else ()
        sections.append(Section("Benchmarks", parts=(_accuracies(found, tasks), _bars(found, tasks), *differences)))
        sections += [section for task in tasks for section in _subjects(found, task)]
    if texts:
        sections.append(_texts(found, texts))
    if len(found) == 1:
        sections += [making(directory) for directory in directories.values()]
    title = f"Evaluation {next(iter(directories))}" if len(found) == 1 else "Evaluations side by side"
    return Page(title, _summary(found, tasks, texts), sections)


def _summary(found: _Results, tasks: list[str], texts: list[str]) -> str:
    said = []
    for name, results in found.items():
        figures = [f"{task} {results['tasks'][task]['accuracy']:.1%}" for task in tasks if task in results["tasks"]]
        figures += [
            f"{text} {results['texts'][text]['bits_per_byte']:.3f} bits per byte"
            for text in texts
            if text in results["texts"]
        ]
        said.append(f"{name}: {', '.join(figures)}." if len(found) > 1 else f"{', '.join(figures)}.")
    return " ".join(said)


def _accuracies(found: _Results, tasks: list[str]) -> Table:
    rows = []
    for task in tasks:
        own = {name: results["tasks"][task] for name, results in found.items() if task in results["tasks"]}
        first = next(iter(own.values()))
        figures = (accuracy(own[name]) if name in own else "" for name in found)
        rows.append((task, *figures, f"{first['chance']:.3f}", f"{first['questions']:,}"))
    names = ["accuracy@1"] if len(found) == 1 else list(found)
    return Table("Accuracy@1 ± standard error.", ("benchmark", *names, "chance", "questions"), tuple(rows))


def accuracy(result: dict[str, Any]) -> str:
    """With its standard error, where there is one."""
    error = result["standard_error"]
    return f"{result['accuracy']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _bars(found: _Results, tasks: list[str]) -> Figure:
    bars = {
        name: [results["tasks"].get(task, {}).get("accuracy", float("nan")) for task in tasks]
        for name, results in found.items()
    }
    chances = [next(r["tasks"][task]["chance"] for r in found.values() if task in r["tasks"]) for task in tasks]
    bars["chance"] = chances
    said = "; ".join(
        f"{task}: " + ", ".join(f"{name} {values[number]:.2f}" for name, values in bars.items())
        for number, task in enumerate(tasks)
    )
    caption = "Accuracy@1, and what guessing gives."
    return bar_plot(caption, f"Bars of accuracy. {said}.", "accuracy", tasks, bars)


def _differences(directories: dict[str, Path], tasks: list[str]) -> Table:
    """Of each later model to the first, question by question where they were asked the same."""
    first, *others = directories
    rows = []
    for task in tasks:
        for other in others:
            pair = [_correct(directories[name], task) for name in (first, other)]
            if pair[0] is None or pair[1] is None or pair[0][0] != pair[1][0]:
                continue
            changes = [after - before for before, after in zip(pair[0][1], pair[1][1], strict=True)]
            error = statistics.stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else math.nan
            lost, won = changes.count(-1), changes.count(1)
            rows.append((task, other, f"{statistics.fmean(changes):+.3f} ± {error:.3f}", f"{won:,}", f"{lost:,}"))
    header = ("benchmark", "model", "difference", "only it is right", f"only {first} is")
    return Table(f"Paired differences to {first}, question by question, ± standard error.", header, tuple(rows))


def _correct(directory: Path, task: str) -> tuple[str, list[int]] | None:
    """What tells the questions of a task, and which were answered rightly; none where it wasn't asked."""
    path = directory / f"{task}.answers.jsonl"
    if not path.exists():
        return None
    asked = read_values(directory / CONFIG)["tasks"]
    benchmark = next(name for name in sorted(asked, key=len, reverse=True) if task.startswith(name))
    try:
        answers = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise InputError(f"{path}: damaged: {error}") from None
    return asked[benchmark]["sha256"], [int(answer["answer"] == answer["chosen"]) for answer in answers]


def _subjects(found: _Results, task: str) -> list[Section]:
    own = {name: results["tasks"][task]["subjects"] for name, results in found.items() if task in results["tasks"]}
    subjects = dict.fromkeys(subject for results in own.values() for subject in results)
    if len(subjects) < 2:
        return []
    rows = []
    for subject in subjects:
        results = [subjects_of.get(subject) for subjects_of in own.values()]
        questions = next(result["questions"] for result in results if result)
        rows.append((subject, *(accuracy(result) if result else "" for result in results), f"{questions:,}"))
    names = ["accuracy@1"] if len(found) == 1 else list(own)
    table = Table(f"{task}, accuracy@1 ± standard error.", ("subject", *names, "questions"), tuple(rows))
    return [Section(f"{task} by subject", parts=(table,))]


def _texts(found: _Results, texts: list[str]) -> Section:
    rows = tuple(
        (
            text,
            *((name,) if len(found) > 1 else ()),
            f"{own['bits_per_byte']:.4f}",
            f"{own['perplexity']:.2f}",
            f"{own['tokens']:,}",
            f"{own['num_bytes']:,}",
        )
        for text in texts
        for name, results in found.items()
        if (own := results["texts"].get(text))
    )
    header = ("text", *(("model",) if len(found) > 1 else ()), "bits per byte", "perplexity", "tokens", "bytes")
    said = "Bits per byte compare between vocabularies; the perplexity of a token does only within one."
    return Section("Texts", (said,), (Table("How well texts are predicted, lower is better.", header, rows),))
