"""An ablation's table for the terminal, in Markdown, and as a page with plots."""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table as Terminal

from vikhr_fast.experiments.results import ABLATION, Ablation, Arm, Column, Comparison, Figure, read_ablation
from vikhr_fast.io.html import Page, Section, Table, bar_plot
from vikhr_fast.io.plain import as_markdown, one_line

_MISSING = "–"
_TICK_CHARACTERS = 16


def tables(ablation: Ablation) -> tuple[Table, Table]:
    """The figures and the paired differences."""
    return _figures(ablation), _differences(ablation)


def terminal(table: Table) -> Terminal:
    """A table for the terminal, without its caption."""
    shown = Terminal(table.header[0])
    for label in table.header[1:]:
        shown.add_column(label, justify="right")
    for row in table.rows:
        shown.add_row(*row)
    return shown


def markdown(ablation: Ablation) -> str:
    """The tables in Markdown, with the notes."""
    lines: list[str] = []
    for table in tables(ablation):
        header, *rows = (tuple(map(as_markdown, row)) for row in (table.header, *table.rows))
        cells = (header, ("---",) * len(header), *rows)
        lines += [f"{as_markdown(table.caption)}:", "", *(f"| {' | '.join(row)} |" for row in cells), ""]
    lines += [f"{one_line(note)}\n" for note in ablation.notes]
    return "\n".join(lines).rstrip("\n") + "\n"


def ablation_page(directory: Path) -> Page:
    """The page of what `vikhr-fast ablate` left in a directory; InputError where it left nothing."""
    ablation = read_ablation(directory / ABLATION)
    sections = [Section("Figures", ablation.notes, tables(ablation))]
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


def _figures(ablation: Ablation) -> Table:
    columns = [column for column in ablation.columns if _arms_with(column, ablation)]
    error = "" if len(ablation.seeds) == 1 else ", mean ± standard error"
    caption = f"{_title(ablation)}; {_seeds(ablation)}{error}; perplexity on {ablation.text}"
    return figures_table(caption, columns, ablation.arms.values())


def _differences(ablation: Ablation) -> Table:
    """Of the comparisons; columns in which nothing ever differs say nothing."""
    columns = [
        column
        for column in ablation.columns
        if any(any(one.figures[column.name].values) for one in ablation.comparisons if column.name in one.figures)
    ]
    error = "" if len(ablation.seeds) == 1 else ", mean ± standard error of the differences"
    return figures_table(f"Differences, paired by seed{error}", columns, ablation.comparisons, "+")


def figures_table(caption: str, columns: Sequence[Column], rows: Iterable[Arm | Comparison], sign: str = "") -> Table:
    """The columns of some arms or, with the sign "+", of differences."""

    def cell(figures: dict[str, Figure], column: Column) -> str:
        return figures[column.name].shown(column.digits, sign) if column.name in figures else _MISSING

    cells = tuple((row.label, *(cell(row.figures, column) for column in columns)) for row in rows)
    return Table(caption, ("", *(column.label for column in columns)), cells)
