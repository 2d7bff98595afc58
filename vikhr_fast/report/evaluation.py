"""The page of evaluations, one or several models' side by side."""

import math
import statistics
from pathlib import Path
from typing import Any

from vikhr_fast.data.read import read_objects
from vikhr_fast.evaluate.command import RESULTS, changes_of
from vikhr_fast.evaluate.questions import CHANGES
from vikhr_fast.io.guarded import read_json
from vikhr_fast.io.html import Figure, Page, Section, Table, bar_plot
from vikhr_fast.io.provenance import provenance
from vikhr_fast.io.run_directory import CONFIG

_Results = dict[str, dict[str, Any]]
"""By the model's name, from results.json."""


def evaluation_page(directories: dict[str, Path]) -> Page:
    """The page of evaluations by the names to show."""
    found = {name: read_json(directory / RESULTS) for name, directory in directories.items()}
    tasks = {task: own for results in found.values() for task, own in results["tasks"].items()}
    sections = []
    if tasks:
        guessing = {task: {**own, "accuracy": own["chance"], "standard_error": None} for task, own in tasks.items()}
        results = {name: own["tasks"] for name, own in found.items()} | {"chance": guessing}
        differences = (_differences(directories, list(tasks)),) if len(found) > 1 else ()
        shown = (_accuracies("Accuracy@1", "benchmark", results), *_changes(found))
        parts = (*shown, _bars(results, list(tasks)), *differences)
        sections.append(Section("Benchmarks", parts=parts))
    for task in tasks:
        subjects = {name: own["tasks"][task]["subjects"] for name, own in found.items() if task in own["tasks"]}
        if len({subject for own in subjects.values() for subject in own}) > 1:
            sections.append(Section(f"{task} by subject", parts=(_accuracies(task, "subject", subjects),)))
    sections += [*_texts(found), provenance(directories)]
    said = " ".join(_summary(name, results) for name, results in found.items())
    return Page(f"Evaluation: {', '.join(found)}", said, sections)


def _summary(name: str, results: dict[str, Any]) -> str:
    figures = [f"{task} {own['accuracy']:.1%}" for task, own in results["tasks"].items()]
    figures += [f"{text} {own['bits_per_byte']:.3f} bits per byte" for text, own in results["texts"].items()]
    return f"{name}: {', '.join(figures)}."


def _accuracies(caption: str, kind: str, found: _Results) -> Table:
    """By the names of the models what they answered of each benchmark, or of each subject of one."""
    rows = []
    for asked in dict.fromkeys(asked for own in found.values() for asked in own):
        results = [own.get(asked) for own in found.values()]
        questions = next(one["questions"] for one in results if one)
        rows.append((asked, *(accuracy(one) if one else "" for one in results), f"{questions:,}"))
    return Table(f"{caption} ± standard error.", (kind, *found, "questions"), tuple(rows))


def _changes(found: _Results) -> tuple[Table, ...]:
    """What was done to the questions before they were asked, if anything."""
    rows = tuple((name, *row) for name, own in found.items() for row in changes_of(own["tasks"]))
    caption = (
        "Questions whose options point at each other, had options that only filled a place, or have no one answer."
    )
    return (Table(caption, ("model", "benchmark", *CHANGES.values()), rows),) if rows else ()


def accuracy(result: dict[str, Any]) -> str:
    """With its standard error, where there is one."""
    error = result["standard_error"]
    return f"{result['accuracy']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _bars(found: _Results, tasks: list[str]) -> Figure:
    bars = {name: [own.get(task, {}).get("accuracy", math.nan) for task in tasks] for name, own in found.items()}
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
            before, after = (_correct(directories[name], task) for name in (first, other))
            if before is None or after is None or before[0] != after[0]:
                continue
            changes = [now - then for then, now in zip(before[1], after[1], strict=True)]
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
    asked = read_json(directory / CONFIG)["tasks"]
    benchmark = next(name for name in sorted(asked, key=len, reverse=True) if task.startswith(name))
    return asked[benchmark]["sha256"], [int(row["answer"] == row["chosen"]) for _, row in read_objects(path)]


def _texts(found: _Results) -> list[Section]:
    rows = []
    for text in dict.fromkeys(text for results in found.values() for text in results["texts"]):
        for name, own in ((name, results["texts"].get(text)) for name, results in found.items()):
            if own:
                window = f"{own['window']:,}" if "window" in own else ""  # earlier versions didn't write it
                counts = (f"{own['tokens']:,}", f"{own['num_bytes']:,}", window)
                rows.append((text, name, f"{own['bits_per_byte']:.4f}", f"{own['perplexity']:.2f}", *counts))
    header = ("text", "model", "bits per byte", "perplexity", "tokens", "bytes", "tokens a window")
    said = "Bits per byte compare between vocabularies, in windows of one length; a token's perplexity only within one."
    table = Table("How well texts are predicted, lower is better.", header, tuple(rows))
    return [Section("Texts", (said,), (table,))] if rows else []
