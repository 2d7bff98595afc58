"""What the KL term buys: English at equal Russian, interpolated along training (the paper's table 9 asks it)."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vikhr_fast.errors import InputError
from vikhr_fast.experiments.sample.text import ENGLISH, RUSSIAN
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.io.console import logger
from vikhr_fast.train.metrics import VALIDATION


@dataclass(frozen=True)
class Curve:
    """Bits per byte of held-out text along a training run, one entry a validation."""

    steps: tuple[int, ...]
    russian: tuple[float, ...]
    english: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """Two runs from the same start, where both have learnt the same amount of Russian. All in bits per byte."""

    russian: float
    """The lowest Russian level that both runs reach."""
    english_without_kl: float
    """English of the run without KL when it first reaches that level."""
    english_with_kl: float
    """English of the run with KL when it first reaches that level."""

    @property
    def difference(self) -> float:
        """With KL minus without; negative where the KL term keeps English better."""
        return self.english_with_kl - self.english_without_kl


def read_validations(run: Path) -> list[dict[str, Any]]:
    """The validations of a run directory, each as {"step": ..., SET: bits per byte, ...}.

    Raises:
        InputError: the file is not what a run writes.
    """
    path = run / VALIDATION
    try:
        return [
            {"step": line["step"], **{name: one["bits_per_byte"] for name, one in line["sets"].items()}}
            for line in read_lines(path)
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not readable as validations ({error!r}); delete {run} and run it again") from None


def curve_of(validations: Sequence[Mapping[str, Any]]) -> Curve | None:
    """The curve of what `read_validations` gives; None where no validation has finite scores of both languages."""
    both = [line for line in validations if RUSSIAN in line and ENGLISH in line]
    lines = [line for line in both if None not in (line[RUSSIAN], line[ENGLISH])]
    if len(lines) < len(both):
        logger.warning(f"{len(both) - len(lines)} of {len(both)} validations have no finite score and are left out")
    russian, english = (tuple(float(line[key]) for line in lines) for key in (RUSSIAN, ENGLISH))
    return Curve(tuple(line["step"] for line in lines), russian, english) if lines else None


def read_curve(run: Path) -> Curve:
    """The curve of a run directory; InputError where it has none."""
    if (curve := curve_of(read_validations(run))) is None:
        path = run / VALIDATION
        raise InputError(f"{path}: not readable as validations on both languages; delete {run} and run it again")
    return curve


def compare(without_kl: Curve, with_kl: Curve) -> Comparison:
    """English of both runs at the lowest Russian level that both reach."""
    level = max(min(without_kl.russian), min(with_kl.russian))
    return Comparison(level, english_at(without_kl, level), english_at(with_kl, level))


def english_at(curve: Curve, russian: float) -> float:
    """English when Russian first falls to the given level, linear between the two validations around it.

    Raises:
        ValueError: the run never reaches it.
    """
    first = next((index for index, value in enumerate(curve.russian) if value <= russian), None)
    if first is None:
        raise ValueError(f"Russian stays above {russian}: {curve.russian}")
    if first == 0:
        return curve.english[0]
    before, after = curve.russian[first - 1], curve.russian[first]
    fraction = (before - russian) / (before - after)
    return curve.english[first - 1] + fraction * (curve.english[first] - curve.english[first - 1])


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error (sample standard deviation over √n), None for a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def verdict(run: str, comparisons: Sequence[Comparison]) -> str:
    """One sentence on the English difference at equal Russian, whatever its sign.

    Args:
        run: what the run with KL is called.
        comparisons: of that run with the one without KL, one a seed.
    """
    mean, error = mean_and_error([comparison.difference for comparison in comparisons])
    level = statistics.fmean(comparison.russian for comparison in comparisons)
    amount = f"{run} against CPT at equal Russian ({level:.3f} bits per byte): {mean:+.4f}"
    if error is None:
        amount += f" English bits per byte, one seed: {_direction(mean)}"
        return f"{amount}; one seed says nothing about chance, --seeds 3 does."
    amount += f" ± {error:.4f} English bits per byte, mean and standard error of {len(comparisons)} seeds"
    if abs(mean) <= 2 * error:
        return f"{amount}: within two standard errors of nothing, so no effect is shown."
    return f"{amount}: {_direction(mean)}, by more than two standard errors."


def _direction(difference: float) -> str:
    if difference == 0:
        return "no difference"
    return f"the KL term kept English {'better' if difference < 0 else 'worse'}"
