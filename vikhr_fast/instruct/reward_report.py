"""How far a reward model can be trusted: accuracy on held-out pairs, what length explains, calibration."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pydantic
from pydantic import Field

from vikhr_fast.config import read_record
from vikhr_fast.encoder.classifier import Labels, Scores, calibrated, calibration
from vikhr_fast.instruct.preferences import Pair
from vikhr_fast.instruct.rejected import REJECTED
from vikhr_fast.instruct.reward import SETTINGS
from vikhr_fast.io.html import Line, Page, Section, Table, line_plot

_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class RewardReport:
    """Held-out pairs."""

    pairs: int
    accuracy: float
    """Share of pairs whose chosen answer has the higher score; equal scores count half."""
    interval: tuple[float, float]
    """95% confidence interval of the accuracy (Wilson's)."""
    length_accuracy: float
    """The same of always preferring the longer answer."""
    accuracy_chosen_longer: float | None
    """Accuracy where the chosen answer is the longer one,"""
    accuracy_chosen_shorter: float | None
    """and where it is the shorter one: far apart, the model judges by length."""
    length_correlation: float
    """Rank correlation of score and length over all answers."""
    calibration: Annotated[tuple[tuple[float, float, int], ...], Field(min_length=1)]
    """Bins of pairs: mean probability that the first answer is better, how often it is, and how many pairs."""


@dataclass(frozen=True)
class _Settings:
    """What is read of SETTINGS."""

    held_out: RewardReport
    rejected: int = 0


_SETTINGS = pydantic.TypeAdapter(_Settings)


def reward_report(pairs: list[Pair], chosen: Scores, rejected: Scores) -> RewardReport:
    """Measures on pairs with the scores [pairs] of their answers."""
    margin = chosen - rejected
    both_ways = np.concatenate([margin, -margin])  # so that neither answer is always the first
    lengths = np.array([(len(pair.chosen), len(pair.rejected)) for pair in pairs])
    longer = np.sign(lengths[:, 0] - lengths[:, 1])
    wins = (np.sign(margin) + 1) / 2
    accuracy = float(wins.mean())

    def accuracy_where(mask: Labels) -> float | None:
        return float(wins[mask].mean()) if mask.any() else None

    return RewardReport(
        pairs=len(pairs),
        accuracy=accuracy,
        interval=wilson(accuracy, len(pairs)),
        length_accuracy=float(((longer + 1) / 2).mean()),
        accuracy_chosen_longer=accuracy_where(longer > 0),
        accuracy_chosen_shorter=accuracy_where(longer < 0),
        length_correlation=_rank_correlation(np.concatenate([chosen, rejected]), lengths.T.reshape(-1)),
        calibration=calibration(calibrated(both_ways, 1, 0), np.repeat([True, False], len(pairs))),
    )


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share of `count` trials, which stays within 0 and 1."""
    z2 = _NORMAL_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _NORMAL_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def _rank_correlation(first: npt.NDArray[np.floating], second: npt.NDArray[np.integer]) -> float:
    def ranks(values: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
        _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        mean_ranks: npt.NDArray[np.float64] = (np.cumsum(counts) - (counts + 1) / 2)[places]  # equals share theirs
        return mean_ranks

    a, b = ranks(first), ranks(second)
    spread = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread else 0.0


def reward_page(directory: Path) -> Page:
    """The page of a reward model; InputError where it has no report."""
    found = read_record(directory / SETTINGS, _SETTINGS, "`vikhr-fast instruct train-reward` writes it")
    report, rejected = found.held_out, found.rejected
    low, high = report.interval
    summary = (
        f"The model prefers the chosen answer in {report.accuracy:.1%} of {report.pairs:,} held-out pairs "
        f"(95% interval {low:.1%} to {high:.1%}); always taking the longer answer does in {report.length_accuracy:.1%}."
    )
    if rejected:
        summary += f" {rejected:,} rows or pairs were rejected before, see {REJECTED}."
    measures = {
        "accuracy chosen longer": report.accuracy_chosen_longer,
        "accuracy chosen shorter": report.accuracy_chosen_shorter,
        "length correlation": report.length_correlation,
    }
    rows = tuple((name, "none" if value is None else f"{value:.3f}") for name, value in measures.items())
    table = Table("What length has to do with it.", ("measure", "value"), rows)
    predicted, observed, _ = zip(*report.calibration, strict=True)
    lines = [Line("reward model", predicted, observed, markers=True), Line("calibrated", (0, 1), (0, 1), colour=1)]
    plot = line_plot(
        "How often an answer is the better one, against the probability that the scores give it.",
        "Calibration of the reward model; a calibrated one is on the diagonal.",
        "probability by the scores",
        "share of pairs",
        lines,
    )
    sections = [Section("Length", parts=(table,)), Section("Calibration", parts=(plot,))]
    return Page("Reward model", summary, sections)
