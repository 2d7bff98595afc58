"""An ablation's table for the terminal, in Markdown, and as a page with plots."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table as Terminal

from vikhr_fast.ablate.results import ABLATION, Ablation, Arm, Column, Figure, read_ablation
from vikhr_fast.report import Page, Section, Table, bar_plot

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


def ablation_page(directory: Path) -> Page:
    """The page of what `vikhr-fast ablate` left in a directory; InputError where it left nothing."""
    ablation = read_ablation(directory / ABLATION)
    parts = [
        Table(caption, columns, tuple(rows)) for caption, columns, rows in (_figures(ablation), _differences(ablation))
    ]
    sections = [Section("Figures", ablation.notes, tuple(parts))]
    sections += [_plot(column, shown) for column in ablation.columns if len(shown := _arms_with(column, ablation)) > 1]
    rows = tuple(
        (arm.label, column.label, *(f"{value:.{column.digits}f}" for value in arm.figures[column.name].values))
        for column in ablation.columns
        for arm in _arms_with(column, ablation)
    )
    header = ("", "figure", *(f"seed {seed}" for seed in ablation.seeds))
    sections.append(Section("By seed", parts=(Table("Every value.", header, rows),)))
    return Page(_title(ablation), f"{_seeds(ablation).capitalize()}; perplexity on {ablation.text}.", sections)


def _arms_with(column: Column, ablation: Ablation) -> list[Arm]:
    return [arm for arm in ablation.arms.values() if column.name in arm.figures]


def _plot(column: Column, arms: list[Arm]) -> Section:
    """A column's means with their standard errors, a bar an arm."""
    figures = [arm.figures[column.name] for arm in arms]
    groups = [textwrap.fill(arm.label, _TICK_CHARACTERS) for arm in arms]
    said = "; ".join(f"{arm.label} {one.mean:.{column.digits}f}" for arm, one in zip(arms, figures, strict=True))
    caption = f"{column.label}, means over the seeds."
    means, errors = [one.mean for one in figures], [one.standard_error or 0.0 for one in figures]
    plot = bar_plot(caption, f"Bars: {caption} {said}.", column.label, groups, {"mean": means}, {"mean": errors})
    return Section(column.label, parts=(plot,))


def _title(ablation: Ablation) -> str:
    table = "Beside the paper" if ablation.table is None else f"Table {ablation.table}"
    return f"{table}, {ablation.scale} scale: {ablation.title}"


def _seeds(ablation: Ablation) -> str:
    count = len(ablation.seeds)
    return "one seed" if count == 1 else f"{count} seeds"


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
