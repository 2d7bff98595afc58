"""The page of training runs, one or several side by side, from the files in their directories."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from vikhr_fast.errors import InputError
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.io.html import Figure, Line, Page, Section, Table, line_plot
from vikhr_fast.io.provenance import provenance
from vikhr_fast.report.evaluation import accuracy
from vikhr_fast.train.metrics import EVALUATIONS, INCIDENTS, METRICS, VALIDATION, number

_LOSSES = {
    "ce": ("Cross-entropy, mean over the tokens of a step.", "nats a token"),
    "kl": ("KL to the reference, mean over the tokens of a step.", "nats a token"),
    "loss": ("Loss, mean over the tokens of a step.", "nats a token"),
    "grad_norm": ("Norm of the gradient before clipping.", "gradient norm"),
    "learning_rate": ("Learning rate.", "learning rate"),
}
_SPEED = {
    "tokens_per_second": ("Tokens a second, all ranks together.", "tokens/s"),
    "mfu": ("Share of the GPUs' bf16 peak, 6 N + attention, without the reference's forward.", "MFU"),
}
_SHOWN_INCIDENTS = 50

_Lines = list[dict[str, Any]]
_Curve = tuple[list[int], list[float]]
"""Steps and values."""
_Run = dict[str, _Lines]
"""The lines of each file."""


def training_page(directories: dict[str, Path]) -> Page:
    """The page of runs by the names to show; InputError where one has no steps."""
    runs = {name: _read(directory) for name, directory in directories.items()}
    has_kl = any(line["kl"] for run in runs.values() for line in run[METRICS])
    losses = {key: shown for key, shown in _LOSSES.items() if key != "loss" or has_kl}  # else it is the cross-entropy
    sections = [Section("Losses", ("A step without a finite value has a gap.",), _plots(runs, losses)), _speed(runs)]
    sections += [*_validations(runs), *_evaluations(runs), _incidents(runs), provenance(directories)]
    said = " ".join(f"{name}: {_summary(run)}" for name, run in runs.items())
    return Page(f"Training: {', '.join(runs)}", said, sections)


def _read(directory: Path) -> _Run:
    run = {file: read_lines(directory / file) for file in (METRICS, VALIDATION, EVALUATIONS, INCIDENTS)}
    if not run[METRICS]:
        raise InputError(f"{directory / METRICS}: no steps in it; give the directory of a training run that has some")
    return run


def _summary(run: _Run) -> str:
    last, seconds = run[METRICS][-1], sum(line["seconds"] for line in run[METRICS])
    said = [f"{last['step']:,} steps over {last['tokens']:,} tokens in {timedelta(seconds=round(seconds))}."]
    for name in run[VALIDATION][-1]["sets"] if run[VALIDATION] else ():
        said.append(
            f"Held-out {name}: {_course(_curve(run[VALIDATION], 'sets', name, 'bits_per_byte'))} bits per byte."
        )
    said.append(f"Steps skipped: {len(run[INCIDENTS]):,}.")
    return " ".join(said)


def _plots(runs: dict[str, _Run], metrics: dict[str, tuple[str, str]]) -> tuple[Figure, ...]:
    """A plot of each metric that a run has, a line a run."""
    plots = []
    for key, (caption, y_label) in metrics.items():
        has_it = {name: run[METRICS] for name, run in runs.items() if any(line[key] for line in run[METRICS])}
        curves = {
            name: ([line["step"] for line in lines], [number(line[key]) for line in lines])
            for name, lines in has_it.items()
        }
        plots += [_plot(caption, y_label, curves, markers=False)] if curves else []
    return tuple(plots)


def _speed(runs: dict[str, _Run]) -> Section:
    rows = []
    for name, run in runs.items():
        waiting, seconds = (sum(line[key] for line in run[METRICS]) for key in ("data_seconds", "seconds"))
        memory = max(line["memory_bytes"] for line in run[METRICS]) / 2**30
        rows.append((name, f"{waiting / seconds:.1%}", f"{memory:.2f}"))
    header = ("run", "of the time waiting for batches", "GiB at most on the main rank")
    return Section("Speed and memory", parts=(*_plots(runs, _SPEED), Table("Of whole runs.", header, tuple(rows))))


def _validations(runs: dict[str, _Run]) -> list[Section]:
    lines = {name: run[VALIDATION] for name, run in runs.items() if run[VALIDATION]}
    plots, rows = [], []
    for text in dict.fromkeys(text for own in lines.values() for text in own[-1]["sets"]):
        found = {run: _curve(own, "sets", text, "bits_per_byte") for run, own in lines.items()}
        curves = {run: curve for run, curve in found.items() if curve[0]}
        plots.append(_plot(f"Bits per byte of held-out {text}, lower is better.", "bits per byte", curves))
        for run, (steps, values) in curves.items():
            window = lines[run][-1]["sets"][text].get("window", "")  # earlier versions didn't write it
            figures = (f"{v:.4f}" for v in (values[0], min(values), values[-1]))
            rows.append((text, run, *figures, f"{steps[-1]:,}", str(window)))
    header = ("set", "run", "first", "best", "last", "at step", "tokens a window")
    table = Table("Bits per byte.", header, tuple(rows))
    return [Section("Validation", parts=(*plots, table))] if rows else []


def _evaluations(runs: dict[str, _Run]) -> list[Section]:
    lines = {name: run[EVALUATIONS] for name, run in runs.items() if run[EVALUATIONS]}
    plots, rows = [], []
    for task in dict.fromkeys(task for own in lines.values() for task in own[-1]["tasks"]):
        asked = {run: own for run, own in lines.items() if task in own[-1]["tasks"]}
        curves = {run: _curve(own, "tasks", task, "accuracy") for run, own in asked.items()}
        plots.append(_plot(f"Accuracy@1 of {task}, higher is better.", "accuracy", curves))
        for run, (_, values) in curves.items():
            last = lines[run][-1]["tasks"][task]
            figures = (f"{values[0]:.3f}", f"{max(values):.3f}", accuracy(last), f"{last['chance']:.3f}")
            rows.append((task, run, *figures, f"{last['questions']:,}"))
    header = ("benchmark", "run", "first", "best", "last ± standard error", "chance", "questions")
    table = Table("Accuracy@1; the best of many is partly luck.", header, tuple(rows))
    return [Section("Benchmarks along training", parts=(*plots, table))] if rows else []


def _incidents(runs: dict[str, _Run]) -> Section:
    rows = tuple(
        (name, str(one["incident"]), f"{one['step']:,}", one["reason"], ", ".join(one["documents"]))
        for name, run in runs.items()
        for one in run[INCIDENTS][-_SHOWN_INCIDENTS:]
    )
    if not rows:
        return Section("Incidents", ("None: every step was used.",))
    caption = f"Steps whose gradients were not used, of each run the last {_SHOWN_INCIDENTS} at most."
    said = "vikhr-fast train --replay-incident N, with the flags of the run, shows the texts of one."
    return Section("Incidents", (said,), (Table(caption, ("run", "incident", "step", "reason", "sources"), rows),))


def _plot(caption: str, y_label: str, curves: dict[str, _Curve], markers: bool = True) -> Figure:
    """Values over steps, a line a run, and the plot in words beside it."""
    lines = [
        Line(label, steps, values, colour=number, style=number // 5, markers=markers)
        for number, (label, (steps, values)) in enumerate(curves.items())
    ]
    ends = "; ".join(f"{label} {_course(curve)}" for label, curve in curves.items())
    return line_plot(caption, f"{caption} {ends}.", "step", y_label, lines)


def _curve(lines: _Lines, kind: str, name: str, figure: str) -> _Curve:
    """A figure of one of the sets or tasks, where it was scored on what it was scored on at last."""
    asked = lines[-1][kind].get(name, {}).get("sha256")
    same = [line for line in lines if name in line[kind] and line[kind][name].get("sha256") == asked]
    return [line["step"] for line in same], [number(line[kind][name][figure]) for line in same]


def _course(curve: _Curve) -> str:
    """How a curve goes, in words."""
    steps, values = curve
    return f"from {values[0]:.4g} at step {steps[0]:,} to {values[-1]:.4g} at step {steps[-1]:,}"
