"""A training run's page, or that of several side by side, from the files in their directories."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vikhr_fast.errors import InputError
from vikhr_fast.report import Figure, Line, Page, Section, Table, line_plot
from vikhr_fast.run_directory import CONFIG
from vikhr_fast.run_report.evaluation import accuracy
from vikhr_fast.run_report.making import flat, making, read_values
from vikhr_fast.train.metrics import EVALUATIONS, INCIDENTS, METRICS, VALIDATION, read_lines

_SHOWN_INCIDENTS = 50

Lines = list[dict[str, Any]]


class _Run(NamedTuple):
    directory: Path
    metrics: Lines
    validations: Lines
    evaluations: Lines
    incidents: Lines


def training_page(directories: dict[str, Path]) -> Page:
    """The page of runs by the names to show; InputError where one has no steps."""
    runs = {name: _read(directory) for name, directory in directories.items()}
    return _single_page(*runs.values()) if len(runs) == 1 else _comparison_page(runs)


def _read(directory: Path) -> _Run:
    lines = [read_lines(directory / file) for file in (METRICS, VALIDATION, EVALUATIONS, INCIDENTS)]
    if not lines[0]:
        raise InputError(f"{directory / METRICS}: no steps in it; give the directory of a training run that has some")
    return _Run(directory, *lines)


def _single_page(run: _Run) -> Page:
    sections = [_losses(run.metrics), _speed(run.metrics)]
    if run.validations:
        sections.append(_validations(run.validations))
    if run.evaluations:
        sections.append(_evaluations(run.evaluations))
    sections += [_incidents(run.incidents), making(run.directory)]
    return Page(f"Training run {run.directory.resolve().name}", _summary(run), sections)


def _comparison_page(runs: dict[str, _Run]) -> Page:
    sections = [_compared_losses(runs)]
    if any(run.validations for run in runs.values()):
        sections.append(_compared_validations(runs))
    if any(run.evaluations for run in runs.values()):
        sections.append(_compared_evaluations(runs))
    sections.append(_differences(runs))
    return Page("Training runs", " ".join(f"{name}: {_summary(run)}" for name, run in runs.items()), sections)


def _summary(run: _Run) -> str:
    last, seconds = run.metrics[-1], sum(line["seconds"] for line in run.metrics)
    said = [f"{last['step']:,} steps over {last['tokens']:,} tokens in {_duration(seconds)}."]
    for name in run.validations[-1]["sets"] if run.validations else ():
        said.append(f"Held-out {name}: {_course(*_validation_curve(run.validations, name))} bits per byte.")
    said.append(f"Steps skipped: {len(run.incidents):,}.")
    return " ".join(said)


def _losses(metrics: Lines) -> Section:
    has_kl = any(line["kl"] for line in metrics)
    names = {"loss": "loss", "ce": "cross-entropy", "kl": "KL"} if has_kl else {"loss": "loss"}
    said = (
        "Loss, the cross-entropy in it, and the KL to the reference" if has_kl else "Cross-entropy, which is the loss"
    )
    return Section(
        "Losses",
        ("Means over the tokens of a step, in nats. A step without a finite value has a gap.",),
        (
            _plot(f"{said}.", "nats a token", metrics, names),
            _plot("Norm of the gradient before clipping.", "gradient norm", metrics, {"grad_norm": "gradient norm"}),
            _plot("Learning rate.", "learning rate", metrics, {"learning_rate": "learning rate"}),
        ),
    )


def _speed(metrics: Lines) -> Section:
    parts = [_plot("Tokens a second, all ranks together.", "tokens/s", metrics, {"tokens_per_second": "tokens/s"})]
    if any(line["mfu"] for line in metrics):
        said = "Share of the GPUs' bf16 peak, 6 N + attention, without the reference's forward."
        parts.append(_plot(said, "MFU", metrics, {"mfu": "MFU"}))
    waiting, seconds = (sum(line[name] for line in metrics) for name in ("data_seconds", "seconds"))
    memory = max(line["memory_bytes"] for line in metrics) / 2**30
    said = f"Waiting for batches took {waiting / seconds:.1%} of the time. The main rank held {memory:.2f} GiB at most."
    return Section("Speed and memory", (said,), tuple(parts))


def _validations(validations: Lines) -> Section:
    curves = {name: _validation_curve(validations, name) for name in validations[-1]["sets"]}
    rows = tuple(
        (name, f"{values[0]:.4f}", f"{min(values):.4f}", f"{values[-1]:.4f}", f"{steps[-1]:,}")
        for name, (steps, values) in curves.items()
    )
    return Section(
        "Validation",
        parts=(
            _curves("Bits per byte of held-out text, lower is better.", "bits per byte", curves),
            Table("Bits per byte.", ("set", "first", "best", "last", "at step"), rows),
        ),
    )


def _evaluations(evaluations: Lines) -> Section:
    last = evaluations[-1]["tasks"]
    curves = {name: _evaluation_curve(evaluations, name) for name in last}
    rows = tuple(
        (
            name,
            f"{curves[name][1][0]:.3f}",
            f"{max(curves[name][1]):.3f}",
            accuracy(own),
            f"{own['chance']:.3f}",
            f"{own['questions']:,}",
        )
        for name, own in last.items()
    )
    header = ("benchmark", "first", "best", "last ± standard error", "chance", "questions")
    return Section(
        "Benchmarks along training",
        parts=(
            _curves("Accuracy@1, higher is better.", "accuracy", curves),
            Table("Accuracy@1; the best of many is partly luck.", header, rows),
        ),
    )


def _compared_losses(runs: dict[str, _Run]) -> Section:
    parts = []
    for key, label in (("ce", "cross-entropy"), ("kl", "KL")):
        curves = {
            name: ([line["step"] for line in run.metrics], _values(run.metrics, key))
            for name, run in runs.items()
            if any(line[key] for line in run.metrics)
        }
        if curves:
            caption = f"{label[0].upper()}{label[1:]}, mean over the tokens of a step."
            parts.append(_curves(caption, "nats a token", curves, markers=False))
    return Section("Losses", parts=tuple(parts))


def _compared_validations(runs: dict[str, _Run]) -> Section:
    names = dict.fromkeys(name for run in runs.values() for line in run.validations[-1:] for name in line["sets"])
    parts: list[Figure | Table] = []
    rows = []
    for name in names:
        curves = {label: _validation_curve(run.validations, name) for label, run in runs.items()}
        curves = {label: curve for label, curve in curves.items() if curve[0]}
        parts.append(_curves(f"Bits per byte of held-out {name}, lower is better.", "bits per byte", curves))
        for label, (steps, values) in curves.items():
            rows.append((name, label, *(f"{v:.4f}" for v in (values[0], min(values), values[-1])), f"{steps[-1]:,}"))
    parts.append(Table("Bits per byte.", ("set", "run", "first", "best", "last", "at step"), tuple(rows)))
    return Section("Validation", parts=tuple(parts))


def _compared_evaluations(runs: dict[str, _Run]) -> Section:
    names = dict.fromkeys(name for run in runs.values() for line in run.evaluations[-1:] for name in line["tasks"])
    parts: list[Figure | Table] = []
    rows = []
    for name in names:
        own = {label: run.evaluations for label, run in runs.items() if run.evaluations}
        own = {label: lines for label, lines in own.items() if name in lines[-1]["tasks"]}
        curves = {label: _evaluation_curve(lines, name) for label, lines in own.items()}
        parts.append(_curves(f"Accuracy@1 of {name}, higher is better.", "accuracy", curves))
        rows += [(name, label, accuracy(lines[-1]["tasks"][name])) for label, lines in own.items()]
    parts.append(Table("At the last evaluation.", ("benchmark", "run", "accuracy@1"), tuple(rows)))
    return Section("Benchmarks along training", parts=tuple(parts))


def _differences(runs: dict[str, _Run]) -> Section:
    """The settings in which the runs differ."""
    settings = {name: flat(read_values(run.directory / CONFIG)) for name, run in runs.items()}
    keys = dict.fromkeys(key for own in settings.values() for key in own)
    shown = {key: [str(own.get(key, "")) for own in settings.values()] for key in keys}
    rows = tuple((key, *values) for key, values in shown.items() if len(set(values)) > 1)
    return Section("Where their settings differ", parts=(Table("Settings.", ("name", *runs), rows),))


def _incidents(incidents: Lines) -> Section:
    if not incidents:
        return Section("Incidents", ("None: every step was used.",))
    rows = tuple(
        (str(one["incident"]), f"{one['step']:,}", one["reason"], ", ".join(one["documents"]))
        for one in incidents[-_SHOWN_INCIDENTS:]
    )
    caption = f"Steps whose gradients were not used; {len(rows)} of {len(incidents)}, the last ones."
    said = "vikhr-fast train --replay-incident N, with the flags of this run, shows the texts of one."
    return Section("Incidents", (said,), (Table(caption, ("incident", "step", "reason", "sources"), rows),))


def _plot(caption: str, y_label: str, metrics: Lines, names: dict[str, str]) -> Figure:
    """Curves of the metrics with these names over steps."""
    steps = [line["step"] for line in metrics]
    curves = {label: (steps, _values(metrics, key)) for key, label in names.items()}
    return _curves(caption, y_label, curves, markers=False)


def _curves(
    caption: str, y_label: str, curves: dict[str, tuple[list[int], list[float]]], markers: bool = True
) -> Figure:
    """Values over steps, the plot in words beside it."""
    ends = "; ".join(f"{label} {_course(*curve)}" for label, curve in curves.items())
    lines = [
        Line(label, steps, values, colour=number, style=number // 5, markers=markers)
        for number, (label, (steps, values)) in enumerate(curves.items())
    ]
    return line_plot(caption, f"{caption} {ends}.", "step", y_label, lines)


def _values(metrics: Lines, key: str) -> list[float]:
    return [float("nan") if line[key] is None else line[key] for line in metrics]


def _validation_curve(validations: Lines, name: str) -> tuple[list[int], list[float]]:
    """Steps and bits per byte of one set, where it was scored."""
    scored = [line for line in validations if name in line["sets"]]
    return [line["step"] for line in scored], [line["sets"][name]["bits_per_byte"] for line in scored]


def _evaluation_curve(evaluations: Lines, name: str) -> tuple[list[int], list[float]]:
    """Steps and accuracies of one benchmark, where it was asked what it was asked at last."""
    asked = evaluations[-1]["tasks"][name]["sha256"]
    same = [line for line in evaluations if line["tasks"].get(name, {}).get("sha256") == asked]
    return [line["step"] for line in same], [line["tasks"][name]["accuracy"] for line in same]


def _course(steps: Sequence[int], values: Sequence[float]) -> str:
    """How a curve goes, in words."""
    return f"from {values[0]:.4g} at step {steps[0]:,} to {values[-1]:.4g} at step {steps[-1]:,}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
