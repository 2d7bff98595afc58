"""From the units' files to the table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vikhr_fast.ablate.grid import EQUAL_RUSSIAN, Grid
from vikhr_fast.ablate.results import Ablation, Arm, Comparison, Figure, paired
from vikhr_fast.demo.comparison import Curve, compare
from vikhr_fast.demo.text import ENGLISH, RUSSIAN
from vikhr_fast.errors import InputError

Unit = dict[str, Any]


def collect(grid: Grid, scale: str, seeds: Sequence[int], units: Mapping[str, Sequence[Path]]) -> Ablation:
    """The table of a grid whose units are all there.

    Args:
        grid: the grid.
        scale: its scale, for the record.
        seeds: which there are.
        units: the files of each arm, one a seed.

    Raises:
        InputError: a unit's file is damaged, or lacks a column of the table.
    """
    read = {arm: [_read(path) for path in paths] for arm, paths in units.items()}
    arms = {
        name: Arm(
            grid.arms[name].label,
            {key: Figure(tuple(float(unit["figures"][key]) for unit in own)) for key in own[0]["figures"]},
        )
        for name, own in read.items()
    }
    missing = [
        column.name
        for column in grid.columns
        if column.name != EQUAL_RUSSIAN and not any(column.name in arm.figures for arm in arms.values())
    ]
    if missing:
        raise InputError(f"{grid.name}: columns: no arm has {', '.join(missing)}; give one of them runs, or words")
    comparisons = tuple(
        Comparison(
            pair.arm,
            pair.against,
            pair.label,
            {
                **paired(arms[pair.arm].figures, arms[pair.against].figures),
                **_at_equal_russian(read[pair.arm], read[pair.against]),
            },
        )
        for pair in grid.pairs()
    )
    return Ablation(
        name=grid.name,
        table=grid.table,
        scale=scale,
        title=grid.title,
        text=grid.text,
        seeds=tuple(seeds),
        columns=grid.table_columns,
        arms=arms,
        comparisons=comparisons,
        notes=grid.notes,
    )


def _at_equal_russian(own: Sequence[Unit], others: Sequence[Unit]) -> dict[str, Figure]:
    """English of one arm minus English of the other, where both have reached the same Russian; if both have curves."""
    differences = []
    for unit, other in zip(own, others, strict=True):
        without, with_kl = _curve(other), _curve(unit)
        if without is None or with_kl is None:
            return {}
        differences.append(compare(without, with_kl).difference)
    return {EQUAL_RUSSIAN: Figure(tuple(differences))}


def _curve(unit: Unit) -> Curve | None:
    lines = [line for line in unit["curve"] if RUSSIAN in line and ENGLISH in line]
    if not lines:
        return None
    russian, english = (tuple(float(line[language]) for line in lines) for language in (RUSSIAN, ENGLISH))
    return Curve(tuple(int(line["step"]) for line in lines), russian, english)


def _read(path: Path) -> Unit:
    try:
        unit: Unit = json.loads(path.read_bytes())
        dict(unit["figures"]), list(unit["curve"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not readable as a unit's figures ({error!r}); remove it and run again") from None
    return unit
