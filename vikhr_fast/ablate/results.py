"""What an ablation came to: figures by arm and seed, and paired differences. Kept as OUTPUT/TABLE/ablation.json.

    {"format": "vikhr-fast ablation", "version": 1,
     "name": "kl", "table": 9, "scale": "demo", "title": "...", "text": "what the perplexity is on",
     "seeds": [0, 1, 2],
     "columns": [{"name": "perplexity", "label": "perplexity, Russian", "digits": 2}, ...],
     "arms": {"ce": {"label": "CE", "figures": {"perplexity": FIGURE, ...}}, ...},
     "comparisons": [{"arm": "ce-kl", "against": "ce", "label": "CE + KL against CE", "figures": {...: FIGURE}}, ...],
     "notes": ["...", ...]}

A FIGURE is {"values": [one a seed, in the order of `seeds`], "mean": ..., "standard_error": ... or null for one seed};
in a comparison the values are the arm's minus those of the arm it is compared with, seed by seed. A column may be
missing from an arm, or stand in comparisons alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vikhr_fast.demo.comparison import mean_and_error
from vikhr_fast.errors import InputError
from vikhr_fast.files import write_text

ABLATION = "ablation.json"
_FORMAT, _VERSION = "vikhr-fast ablation", 1


@dataclass(frozen=True)
class Column:
    """One of the table's columns."""

    name: str
    label: str
    digits: int
    """Behind the point."""


@dataclass(frozen=True)
class Figure:
    """One number of the table, measured once a seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean_and_error(self.values)[0]

    @property
    def standard_error(self) -> float | None:
        """Of the mean: the sample standard deviation over √n; None for one seed."""
        return mean_and_error(self.values)[1]

    def shown(self, digits: int, sign: str = "") -> str:
        """Mean ± standard error; `sign` is "+" for a difference."""
        mean, error = mean_and_error(self.values)
        return f"{mean:{sign},.{digits}f}" if error is None else f"{mean:{sign},.{digits}f} ± {error:,.{digits}f}"


@dataclass(frozen=True)
class Arm:
    """One way of doing it."""

    label: str
    figures: dict[str, Figure]
    """By the names of columns."""


@dataclass(frozen=True)
class Comparison:
    """An arm against another one, seed by seed."""

    arm: str
    against: str
    label: str
    figures: dict[str, Figure]
    """The arm's values minus the other's, by the names of columns."""


@dataclass(frozen=True)
class Ablation:
    """One table of the paper, measured anew, or one that it doesn't have."""

    name: str
    table: int | None
    """Its number in the paper; None of what isn't there."""
    scale: str
    title: str
    text: str
    """What the perplexity is on."""
    seeds: tuple[int, ...]
    columns: tuple[Column, ...]
    arms: dict[str, Arm]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]


def paired(arm: Mapping[str, Figure], against: Mapping[str, Figure]) -> dict[str, Figure]:
    """The differences of two arms' figures, seed by seed, in the columns that both have."""
    return {
        name: Figure(tuple(a - b for a, b in zip(own.values, against[name].values, strict=True)))
        for name, own in arm.items()
        if name in against
    }


def write_ablation(path: Path, ablation: Ablation) -> None:
    """Writes the JSON of the module's docstring, complete or not at all; equal figures give equal bytes."""
    values = {
        "format": _FORMAT,
        "version": _VERSION,
        **{name: getattr(ablation, name) for name in ("name", "table", "scale", "title", "text", "seeds")},
        "columns": [vars(column) for column in ablation.columns],
        "arms": {
            name: {"label": arm.label, "figures": _figures_json(arm.figures)} for name, arm in ablation.arms.items()
        },
        "comparisons": [{**vars(one), "figures": _figures_json(one.figures)} for one in ablation.comparisons],
        "notes": ablation.notes,
    }
    write_text(path, json.dumps(values, ensure_ascii=False, indent=2) + "\n")


def read_ablation(path: Path) -> Ablation:
    """Reads what `write_ablation` wrote.

    Raises:
        InputError: the file is missing, damaged or something else.
    """
    try:
        values = json.loads(path.read_bytes())
        if (values["format"], values["version"]) != (_FORMAT, _VERSION):
            raise ValueError(f"format {values['format']!r}, version {values['version']!r}")
        return Ablation(
            **{name: values[name] for name in ("name", "table", "scale", "title", "text")},
            seeds=tuple(values["seeds"]),
            columns=tuple(Column(**column) for column in values["columns"]),
            arms={name: Arm(arm["label"], _figures(arm["figures"])) for name, arm in values["arms"].items()},
            comparisons=tuple(
                Comparison(one["arm"], one["against"], one["label"], _figures(one["figures"]))
                for one in values["comparisons"]
            ),
            notes=tuple(values["notes"]),
        )
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; `vikhr-fast ablate` writes it") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not what `vikhr-fast ablate` writes: {error!r}") from None


def _figures_json(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {
        name: {"values": one.values, "mean": one.mean, "standard_error": one.standard_error}
        for name, one in figures.items()
    }


def _figures(values: Mapping[str, Any]) -> dict[str, Figure]:
    return {name: Figure(tuple(map(float, one["values"]))) for name, one in values.items()}
