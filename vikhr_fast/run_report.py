"""`vikhr-fast report`: a training run as one page, from the files in its directory."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from vikhr_fast.errors import InputError
from vikhr_fast.report import Figure, Line, Section, Table, line_plot, write_report
from vikhr_fast.run_directory import CONFIG, ENVIRONMENT
from vikhr_fast.train.metrics import INCIDENTS, METRICS, VALIDATION, read_lines

_SHOWN_INCIDENTS = 50


@dataclass(frozen=True)
class Report:
    """Writes one HTML page about a training run, finished or not: curves, validations, incidents, settings.

    The page holds everything in itself and asks nothing of the network.
    """

    run: Annotated[Path, Positional]
    """Run directory of `vikhr-fast train`."""
    output: Path | None = None
    """Page to write, replaced where it exists; RUN/report.html if not given."""


def report_run(options: Report) -> Path:
    """Writes the page and returns where it is.

    Raises:
        InputError: no run directory of training, or a damaged one.
    """
    config, environment = (_read(options.run / name) for name in (CONFIG, ENVIRONMENT))
    metrics, validations, incidents = (read_lines(options.run / name) for name in (METRICS, VALIDATION, INCIDENTS))
    if not metrics:
        raise InputError(f"{options.run / METRICS}: no steps in it; give the directory of a training run that has some")
    try:
        sections = [_losses(metrics), _speed(metrics)]
        if validations:
            sections.append(_validations(validations))
        sections += [_incidents(incidents), _making(config, environment)]
        summary = _summary(metrics, validations, incidents)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"{options.run}: not what a training run writes: {error!r}") from None
    page = options.output or options.run / "report.html"
    write_report(page, f"Training run {options.run.resolve().name}", summary, sections)
    return page


def _summary(metrics: list[dict[str, Any]], validations: list[dict[str, Any]], incidents: list[dict[str, Any]]) -> str:
    last = metrics[-1]
    said = [
        f"{last['step']:,} steps over {last['tokens']:,} tokens in {_duration(sum(m['seconds'] for m in metrics))}."
    ]
    for name in validations[-1]["sets"] if validations else ():
        steps, values = _validation_curve(validations, name)
        said.append(f"Held-out {name}: {_course(steps, values)} bits per byte.")
    said.append(f"Steps skipped: {len(incidents):,}.")
    return " ".join(said)


def _losses(metrics: list[dict[str, Any]]) -> Section:
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


def _speed(metrics: list[dict[str, Any]]) -> Section:
    parts = [_plot("Tokens a second, all ranks together.", "tokens/s", metrics, {"tokens_per_second": "tokens/s"})]
    if any(line["mfu"] for line in metrics):
        said = "Share of the GPUs' bf16 peak, 6 N + attention, without the reference's forward."
        parts.append(_plot(said, "MFU", metrics, {"mfu": "MFU"}))
    waiting, seconds = (sum(line[name] for line in metrics) for name in ("data_seconds", "seconds"))
    memory = max(line["memory_bytes"] for line in metrics) / 2**30
    said = f"Waiting for batches took {waiting / seconds:.1%} of the time. The main rank held {memory:.2f} GiB at most."
    return Section("Speed and memory", (said,), tuple(parts))


def _validations(validations: list[dict[str, Any]]) -> Section:
    curves = {name: _validation_curve(validations, name) for name in validations[-1]["sets"]}
    ends = "; ".join(f"{name} {_course(*curve)}" for name, curve in curves.items())
    lines = [
        Line(name, steps, values, colour=number, markers=True)
        for number, (name, (steps, values)) in enumerate(curves.items())
    ]
    caption = "Bits per byte of held-out text, lower is better."
    rows = tuple(
        (name, f"{values[0]:.4f}", f"{min(values):.4f}", f"{values[-1]:.4f}", f"{steps[-1]:,}")
        for name, (steps, values) in curves.items()
    )
    return Section(
        "Validation",
        (),
        (
            line_plot(caption, f"{caption} {ends}.", "step", "bits per byte", lines),
            Table("Bits per byte.", ("set", "first", "best", "last", "at step"), rows),
        ),
    )


def _incidents(incidents: list[dict[str, Any]]) -> Section:
    if not incidents:
        return Section("Incidents", ("None: every step was used.",))
    rows = tuple(
        (str(one["incident"]), f"{one['step']:,}", one["reason"], ", ".join(one["documents"]))
        for one in incidents[-_SHOWN_INCIDENTS:]
    )
    caption = f"Steps whose gradients were not used; {len(rows)} of {len(incidents)}, the last ones."
    said = "vikhr-fast train --replay-incident N, with the flags of this run, shows the texts of one."
    return Section("Incidents", (said,), (Table(caption, ("incident", "step", "reason", "sources"), rows),))


def _making(config: dict[str, Any], environment: dict[str, Any]) -> Section:
    tables = {"Settings.": config, "Commit, versions, machine and command line.": environment}
    parts = tuple(
        Table(caption, ("name", "value"), tuple((name, _shown(value)) for name, value in flat(values).items()))
        for caption, values in tables.items()
    )
    return Section("What it was made with", parts=parts)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _plot(caption: str, y_label: str, metrics: list[dict[str, Any]], names: dict[str, str]) -> Figure:
    """Curves of the metrics with these names over steps, the plot in words beside it."""
    steps = [line["step"] for line in metrics]
    curves = {
        label: [float("nan") if line[key] is None else line[key] for line in metrics] for key, label in names.items()
    }
    ends = "; ".join(f"{label} {_course(steps, values)}" for label, values in curves.items())
    lines = [Line(label, steps, values, colour=number) for number, (label, values) in enumerate(curves.items())]
    return line_plot(caption, f"{caption} {ends}.", "step", y_label, lines)


def _validation_curve(validations: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and bits per byte of one set, where it was scored."""
    scored = [line for line in validations if name in line["sets"]]
    return [line["step"] for line in scored], [line["sets"][name]["bits_per_byte"] for line in scored]


def _course(steps: Sequence[int], values: Sequence[float]) -> str:
    """How a curve goes, in words."""
    return f"from {values[0]:.4g} at step {steps[0]:,} to {values[-1]:.4g} at step {steps[-1]:,}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except OSError:
        raise InputError(f"{path}: no such file; give the run directory of a training run") from None
    except ValueError as error:
        raise InputError(f"{path}: damaged: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: damaged: not a JSON object")
    return values
