"""The page of an ablation: one of the paper's tables 7 to 10 measured anew, from its ablation.json."""

import textwrap
from pathlib import Path
from typing import Any

from vikhr_fast.report import Page, Section, Table, bar_plot
from vikhr_fast.run_report.making import read_values

ABLATION = "ablation.json"
_MISSING = "–"
_LABEL_CHARACTERS = 16

_Values = dict[str, Any]


def ablation_page(directory: Path) -> Page:
    """The page of what `vikhr-fast ablate` measured: a mean ± standard error a cell, differences paired by seed."""
    found = read_values(directory / ABLATION)
    columns, seeds = found["columns"], found["seeds"]
    title = f"Table {found['table']}, {found['scale']} scale: {found['title']}"
    counted = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    error = "" if len(seeds) == 1 else ", mean ± standard error"
    parts = [_table(f"{counted}{error}; perplexity on {found['text']}.", columns, list(found["arms"].values()))]
    if found["comparisons"]:
        caption = f"Differences, paired by seed{error}."
        parts.append(_table(caption, columns, found["comparisons"], sign="+"))
    sections = [Section("Figures", tuple(found["notes"]), tuple(parts))]
    sections += [_plot(column, list(found["arms"].values())) for column in columns if _is_plotted(column, found)]
    rows = tuple(
        (arm["label"], column["label"], *(f"{value:.{column['digits']}f}" for value in own["values"]))
        for column in columns
        for arm in found["arms"].values()
        if (own := arm["figures"].get(column["name"]))
    )
    header = ("", "figure", *(f"seed {seed}" for seed in seeds))
    sections.append(Section("By seed", parts=(Table("Every value.", header, rows),)))
    return Page(title, f"{counted[0].upper()}{counted[1:]}; perplexity on {found['text']}.", sections)


def _table(caption: str, columns: list[_Values], rows: list[_Values], sign: str = "") -> Table:
    """Arms or comparisons, with the columns that one of them has."""
    own = [column for column in columns if any(column["name"] in row["figures"] for row in rows)]
    return Table(
        caption,
        ("", *(column["label"] for column in own)),
        tuple(
            (row["label"], *(_cell(row["figures"].get(column["name"]), column, sign) for column in own)) for row in rows
        ),
    )


def _cell(figure: _Values | None, column: _Values, sign: str) -> str:
    if figure is None:
        return _MISSING
    digits, error = column["digits"], figure["standard_error"]
    return f"{figure['mean']:{sign},.{digits}f}" + ("" if error is None else f" ± {error:,.{digits}f}")


def _is_plotted(column: _Values, found: _Values) -> bool:
    return sum(column["name"] in arm["figures"] for arm in found["arms"].values()) > 1


def _plot(column: _Values, arms: list[_Values]) -> Section:
    shown = [arm for arm in arms if column["name"] in arm["figures"]]
    means = [arm["figures"][column["name"]]["mean"] for arm in shown]
    groups = [textwrap.fill(arm["label"], _LABEL_CHARACTERS) for arm in shown]
    said = "; ".join(f"{arm['label']} {mean:.{column['digits']}f}" for arm, mean in zip(shown, means, strict=True))
    caption = f"{column['label']}, means over the seeds."
    errors = [arm["figures"][column["name"]]["standard_error"] or 0.0 for arm in shown]
    figure = bar_plot(caption, f"Bars: {caption} {said}.", column["label"], groups, {"mean": means}, {"mean": errors})
    return Section(column["label"], parts=(figure,))
