"""What the KL term buys: English at equal Russian, interpolated along training (the paper's table 9 asks it)."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vikhr_fast.demo.text import ENGLISH, RUSSIAN
from vikhr_fast.errors import InputError

VALIDATION_NAME = "validation.jsonl"


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


def read_curve(run: Path) -> Curve:
    """The validations of a run directory.

    Raises:
        InputError: the file is missing or not what a run with both languages writes.
    """
    path = run / VALIDATION_NAME
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        russian, english = (
            tuple(float(line["sets"][language]["bits_per_byte"]) for line in lines) for language in (RUSSIAN, ENGLISH)
        )
        return Curve(tuple(int(line["step"]) for line in lines), russian, english)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not readable as validations ({error!r}); delete {run} and run it again") from None


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
