"""An ablation's table for the terminal, in Markdown, and as a page with a plot."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table as Terminal

from vikhr_fast.ablate.results import Ablation, Column, Figure
from vikhr_fast.report import Section, Table, bar_plot, write_report

_MISSING = "–"
_TICK_CHARACTERS = 16

Rows = list[tuple[str, ...]]


def tables(ablation: Ablation) -> list[tuple[str, Terminal]]:
    """The figures and the paired differences, each with its caption."""
    found = []
    for caption, columns, rows in (_figures(ablation), _differences(ablation)):
        table = Terminal(columns[0])
        for label in columns[1:]:
            table.add_column(label, justify="right")
        for row in rows:
            table.add_row(*row)
        found.append((caption, table))
    return found


def markdown(ablation: Ablation) -> str:
    """The same in Markdown, with the notes."""
    lines: list[str] = []
    for caption, columns, rows in (_figures(ablation), _differences(ablation)):
        lines += [f"{caption}:", ""]
        lines += [f"| {' | '.join(row)} |" for row in (columns, ("---",) * len(columns), *rows)]
        lines.append("")
    lines += [f"{note}\n" for note in ablation.notes]
    return "\n".join(lines).rstrip("\n") + "\n"


def write_page(path: Path, ablation: Ablation) -> None:
    """Writes the page, complete or not at all."""
    summary = f"{_seeds(ablation).capitalize()}; perplexity on {ablation.text}."
    write_report(path, _title(ablation), summary, [replace(section(ablation), title="Figures and differences")])


def section(ablation: Ablation) -> Section:
    """The table as part of a page, with a plot of all bits per byte in it."""
    parts = [
        Table(caption, columns, tuple(rows)) for caption, columns, rows in (_figures(ablation), _differences(ablation))
    ]
    plotted = [column for column in ablation.columns if column.name.endswith(".bits_per_byte")]
    arms = [arm for arm in ablation.arms.values() if all(column.name in arm.figures for column in plotted)]
    if not plotted or not arms:
        return Section(_title(ablation), ablation.notes, tuple(parts))
    groups = [textwrap.fill(arm.label, _TICK_CHARACTERS) for arm in arms]
    bars = {column.label: [arm.figures[column.name].mean for arm in arms] for column in plotted}
    caption = f"Held-out bits per byte, lower is better; means of {_seeds(ablation)}."
    said = (f"{arm.label} {', '.join(_said(arm.figures[c.name], c) for c in plotted)}" for arm in arms)
    figure = bar_plot(caption, f"{caption} {'; '.join(said)}.", "bits per byte", groups, bars)
    return Section(_title(ablation), ablation.notes, (*parts, figure))


def _title(ablation: Ablation) -> str:
    return f"Table {ablation.table}, {ablation.scale} scale: {ablation.title}"


def _seeds(ablation: Ablation) -> str:
    count = len(ablation.seeds)
    return "one seed" if count == 1 else f"{count} seeds"


def _said(figure: Figure, column: Column) -> str:
    return f"{column.label} {figure.mean:.{column.digits}f}"


def _figures(ablation: Ablation) -> tuple[str, tuple[str, ...], Rows]:
    """Caption, header and rows of the arms."""
    columns = [
        column for column in ablation.columns if any(column.name in arm.figures for arm in ablation.arms.values())
    ]
    rows = [(arm.label, *_cells(arm.figures, columns)) for arm in ablation.arms.values()]
    error = "" if len(ablation.seeds) == 1 else ", mean ± standard error"
    caption = f"{_title(ablation)}; {_seeds(ablation)}{error}; perplexity on {ablation.text}"
    return caption, ("", *(column.label for column in columns)), rows


def _differences(ablation: Ablation) -> tuple[str, tuple[str, ...], Rows]:
    """Caption, header and rows of the comparisons; columns in which nothing ever differs say nothing."""
    columns = [
        column
        for column in ablation.columns
        if any(any(one.figures[column.name].values) for one in ablation.comparisons if column.name in one.figures)
    ]
    rows = [(one.label, *_cells(one.figures, columns, "+")) for one in ablation.comparisons]
    error = "" if len(ablation.seeds) == 1 else ", mean ± standard error of the differences"
    return f"Differences, paired by seed{error}", ("", *(column.label for column in columns)), rows


def _cells(figures: dict[str, Figure], columns: Sequence[Column], sign: str = "") -> tuple[str, ...]:
    return tuple(
        figures[column.name].shown(column.digits, sign) if column.name in figures else _MISSING for column in columns
    )
