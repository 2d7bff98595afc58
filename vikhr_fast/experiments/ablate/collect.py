"""From the units' files to the table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydantic

from vikhr_fast.config import read_record
from vikhr_fast.errors import InputError
from vikhr_fast.experiments.comparison import compare, curve_of
from vikhr_fast.experiments.grid import EQUAL_RUSSIAN, Grid
from vikhr_fast.experiments.results import Ablation, Arm, Comparison, Figure, paired

_ADVICE = "remove it and run again"


@dataclass(frozen=True)
class Unit:
    """What is measured of one arm with one seed."""

    __pydantic_config__ = pydantic.ConfigDict(allow_inf_nan=False)

    figures: dict[str, float]
    """By column."""
    curve: list[dict[str, float | None]]
    """Of the last run, an entry a validation."""


_UNIT = pydantic.TypeAdapter(Unit)


def collect(grid: Grid, scale: str, units: Mapping[str, Sequence[Path]]) -> Ablation:
    """The table of a grid whose units are all there.

    Args:
        grid: the grid.
        scale: its scale, for the record.
        units: the files of each arm, one a seed.

    Raises:
        InputError: a unit's file is damaged, or lacks a column of the table.
    """
    read = {arm: [_read(path) for path in paths] for arm, paths in units.items()}
    for arm, own in read.items():
        for path, unit in zip(units[arm], own, strict=True):
            if unit.figures.keys() != own[0].figures.keys():
                raise InputError(f"{path}: other figures than in {units[arm][0]}; {_ADVICE}")
    figures = {
        name: {key: Figure(tuple(unit.figures[key] for unit in own)) for key in own[0].figures}
        for name, own in read.items()
    }
    columns = {column.name for column in grid.columns} - {EQUAL_RUSSIAN}
    if missing := sorted(columns.difference(*figures.values())):
        raise InputError(f"{grid.name}: columns: no arm has {', '.join(missing)}; give one of them runs, or words")
    return Ablation(
        name=grid.name,
        table=grid.table,
        scale=scale,
        title=grid.title,
        text=grid.text,
        seeds=tuple(range(len(units[grid.control]))),
        columns=grid.columns,
        arms={name: Arm(label=grid.arms[name].label, figures=own) for name, own in figures.items()},
        comparisons=tuple(
            Comparison(
                **vars(pair),
                figures={
                    **paired(figures[pair.arm], figures[pair.against]),
                    **_at_equal_russian(read[pair.arm], read[pair.against]),
                },
            )
            for pair in grid.pairs()
        ),
        notes=grid.notes,
    )


def _at_equal_russian(own: Sequence[Unit], others: Sequence[Unit]) -> dict[str, Figure]:
    """English of one arm minus English of the other, where both have reached the same Russian; if both have curves."""
    differences = []
    for unit, other in zip(own, others, strict=True):
        curve, other_curve = curve_of(unit.curve), curve_of(other.curve)
        if curve is None or other_curve is None:
            return {}
        differences.append(compare(other_curve, curve).difference)
    return {EQUAL_RUSSIAN: Figure(tuple(differences))}


def _read(path: Path) -> Unit:
    unit = read_record(path, _UNIT, _ADVICE)
    if any("step" not in validation for validation in unit.curve):
        raise InputError(f"{path}: damaged: a validation without its step; {_ADVICE}")
    return unit
