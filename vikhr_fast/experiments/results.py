"""What an ablation came to: figures by arm and seed, and paired differences. Kept as OUTPUT/TABLE/ablation.json.

The file holds an `Ablation`, key by key as the classes below have them. A column may be missing from an arm, or stand
in comparisons alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field, computed_field

from vikhr_fast.config import STRICT, read_record
from vikhr_fast.experiments.comparison import mean_and_error
from vikhr_fast.io.files import write_json

ABLATION = "ablation.json"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One of the table's columns."""

    __pydantic_config__ = STRICT

    name: str
    """HELD_OUT.perplexity, HELD_OUT.bits_per_byte, reward, tokens, teraflop, tokens_per_word,
    english_at_equal_russian."""
    label: str
    digits: Annotated[int, Field(strict=True, ge=0, le=6)] = 3
    """Behind the point."""


@dataclass(frozen=True)
class Figure:
    """One number of the table, measured once a seed."""

    __pydantic_config__ = pydantic.ConfigDict(allow_inf_nan=False)

    values: tuple[float, ...]
    """In the order of the seeds."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean_and_error(self.values)[0]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def standard_error(self) -> float | None:
        """Of the mean: the sample standard deviation over √n; None for one seed."""
        return mean_and_error(self.values)[1]

    def shown(self, digits: int, sign: str = "") -> str:
        """Mean ± standard error; `sign` is "+" for a difference."""
        mean, error = mean_and_error(self.values)
        return f"{mean:{sign},.{digits}f}" if error is None else f"{mean:{sign},.{digits}f} ± {error:,.{digits}f}"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of doing it."""

    label: str
    figures: dict[str, Figure]
    """By the names of columns."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Which arms to compare."""

    __pydantic_config__ = STRICT

    arm: str
    against: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Comparison(Pair):
    """An arm against another one, seed by seed."""

    figures: dict[str, Figure]
    """The arm's values minus the other's, by the names of columns."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One table of the paper, measured anew, or one that it doesn't have."""

    format: Literal["vikhr-fast ablation"] = "vikhr-fast ablation"
    version: Literal[1] = 1
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


_ABLATION = pydantic.TypeAdapter(Ablation)


def paired(arm: Mapping[str, Figure], against: Mapping[str, Figure]) -> dict[str, Figure]:
    """The differences of two arms' figures, seed by seed, in the columns that both have."""
    return {
        name: Figure(tuple(a - b for a, b in zip(own.values, against[name].values, strict=True)))
        for name, own in arm.items()
        if name in against
    }


def write_ablation(path: Path, ablation: Ablation) -> None:
    """Writes the JSON of the module's docstring, complete or not at all; equal figures give equal bytes."""
    write_json(path, _ABLATION.dump_python(ablation, mode="json"))


def read_ablation(path: Path) -> Ablation:
    """Reads what `write_ablation` wrote; InputError where it is missing, damaged or something else."""
    return read_record(path, _ABLATION, "`vikhr-fast ablate` writes it")
