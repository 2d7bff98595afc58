"""Results for people: tables on the console, and plots."""

from pathlib import Path

import matplotlib as mpl
from rich.console import Console
from rich.table import Table
from schema import Results, Training

mpl.use("Agg")
from matplotlib import pyplot


def print_table(results: Results, console: Console) -> None:
    """Checks, ceilings and measurements, with each contestant's time as a multiple of ours."""
    title = f"{results.device}, {results.dtype}" + (": a dry run, whose times mean nothing" if results.dry_run else "")
    ours = {(m.kernel, m.tokens): m.milliseconds for m in results.measurements if m.contestant == "ours"}
    columns = ("kernel", "size", "contestant", "ms", "x ours", "error", "peak MiB", "% copy", "% GEMM")
    table = Table(*columns, title=title)
    for m in results.measurements:
        share = [
            "" if rate is None else f"{100 * rate / ceiling:.0f}"
            for rate, ceiling in (
                (m.bytes_per_second, results.ceilings.copy_bytes_per_second),
                (m.flops_per_second, results.ceilings.gemm_flops_per_second),
            )
        ]
        own = ours.get((m.kernel, m.tokens))
        factor = f"{m.milliseconds / own:.2f}" if own else ""
        error = "" if m.error is None else f"{m.error:.1e}"
        peak = "" if m.peak_bytes is None else f"{m.peak_bytes / 2**20:.0f}"
        table.add_row(m.kernel, str(m.tokens), m.contestant, f"{m.milliseconds:.3f}", factor, error, peak, *share)
    if results.measurements:
        console.print(table)
    for model in dict.fromkeys(t.model for t in results.training):
        title = f"{model}, training on {results.device}, CE + KL"
        print_training([t for t in results.training if t.model == model], title, console)
    for check in results.checks:
        verdict = "passed" if check.passed else "FAILED"
        bits = "equal" if check.equal_bits else "UNEQUAL"
        console.print(
            f"{check.kernel}: {verdict}: error {check.error:.2e}, plain {check.plain_error:.2e}, "
            f"bits {bits} over {check.runs} runs"
        )
    for equal in results.equal_work:
        verdict = "equal work" if equal.passed else "OTHER WORK"
        console.print(
            f"{equal.contestant}: {verdict}: loss {equal.loss_error:.1e}, gradients {equal.gradient_error:.1e}"
        )
    for skipped in results.skipped:
        console.print(f"{skipped.kernel}: {skipped.contestant} skipped: {skipped.reason}")
    if results.left_out:
        console.print(f"left out for want of time: {', '.join(results.left_out)}")
    if all(state.sm_mhz is None for state in results.device_states):
        console.print("clocks, power and temperature are missing")
        return
    for state in results.device_states:
        figures = (
            (state.sm_mhz, "MHz SM"),
            (state.memory_mhz, "MHz memory"),
            (state.watts, "W"),
            (state.celsius, "°C"),
        )
        known = ", ".join(f"{value:.0f} {unit}" for value, unit in figures if value is not None)
        console.print(f"after {state.after}: {known}")


def print_training(training: list[Training], title: str, console: Console) -> None:
    """Training steps, each contestant's speed as a share of ours, and peak memory beside the plan's."""
    columns = (
        "sequences", "micro-batches", "contestant", "again", "moments", "ms", "tokens/s", "ours x", "% GEMM", "loss",
        "peak GiB", "planned",
    )  # fmt: skip
    table = Table(*columns, title=title)
    own = {(t.sequences, t.micro_batches): t.tokens_per_second for t in training if t.contestant == "ours"}
    for t in training:
        factor = own.get((t.sequences, t.micro_batches), 0) / t.tokens_per_second
        peak = "" if t.peak_bytes is None else f"{t.peak_bytes / 2**30:.1f}"
        planned = "" if t.planned_bytes is None else f"{sum(t.planned_bytes.values()) / 2**30:.1f}"
        table.add_row(
            str(t.sequences), str(t.micro_batches), t.contestant, t.checkpointing, t.moments or "",
            f"{t.milliseconds:.1f}", f"{t.tokens_per_second:,.0f}", f"{factor:.2f}", f"{100 * t.gemm_share:.0f}",
            f"{t.loss:.4f}", peak, planned,
        )  # fmt: skip
    console.print(table)
    for t in training:
        for name, size in (t.resident_bytes or {}).items():
            planned = (t.planned_bytes or {}).get(name, 0)
            console.print(f"x {t.sequences}: {name} {size / 2**30:.3f} GiB, planned {planned / 2**30:.3f}")


def plot_training(results: Results, directory: Path) -> None:
    """Tokens a second by contestant, and the peak beside the plan."""
    figure, (speed, peak) = pyplot.subplots(1, 2, figsize=(12, 4), layout="constrained")
    names = [f"{t.contestant} x {t.sequences}{' step' if t.optimiser else ''}" for t in results.training]
    speed.barh(names, [t.tokens_per_second for t in results.training])
    speed.set(xlabel="tokens/s")
    planned = [sum((t.planned_bytes or {}).values()) / 2**30 for t in results.training]
    peak.barh(names, planned, height=0.8, color="lightgrey", label="planned")
    peak.barh(names, [(t.peak_bytes or 0) / 2**30 for t in results.training], height=0.4, label="measured")
    peak.set(xlabel="GiB at the peak", yticklabels=[])
    peak.legend()
    figure.suptitle(f"training, {results.device}" + (" (dry run)" if results.dry_run else ""), parse_math=False)
    figure.savefig(directory / "training.svg")
    pyplot.close(figure)


def plot(results: Results, axes: dict[str, str], directory: Path) -> None:
    """Speed, or time where no product of matrices is made, and memory against the size; a picture a kernel."""
    for kernel in dict.fromkeys(m.kernel for m in results.measurements):
        figure, (time_axes, memory_axes) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
        for contestant in dict.fromkeys(m.contestant for m in results.measurements if m.kernel == kernel):
            points = [m for m in results.measurements if (m.kernel, m.contestant) == (kernel, contestant)]
            tokens = [m.tokens for m in points]
            width = 2.5 if contestant == "ours" else 1.2
            speeds = [m.flops_per_second / 1e12 for m in points if m.flops_per_second is not None]
            times = [m.milliseconds for m in points]
            time_axes.plot(tokens, speeds or times, marker="o", label=contestant, linewidth=width)
            if all(m.peak_bytes is not None for m in points):
                memory_axes.plot(tokens, [m.peak_bytes / 2**30 for m in points], marker="o", linewidth=width)
        unit = axes[kernel]
        if any(m.flops_per_second is not None for m in results.measurements if m.kernel == kernel):
            time_axes.set(xlabel=unit, ylabel="TFLOP/s", xscale="log", ylim=(0, None))
        else:
            time_axes.set(xlabel=unit, ylabel="milliseconds", xscale="log", yscale="log")
        memory_axes.set(xlabel=unit, ylabel="GiB beyond the inputs", xscale="log")
        time_axes.legend()
        figure.suptitle(
            f"{kernel}, {results.dtype}, {results.device}" + (" (dry run)" if results.dry_run else ""), parse_math=False
        )
        figure.savefig(directory / f"{kernel}.svg")
        pyplot.close(figure)
