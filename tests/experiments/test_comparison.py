"""English at equal Russian: the interpolation, the statistics, and words that follow the sign."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.perplexity import Score
from vikhr_fast.experiments.comparison import (
    Comparison,
    Curve,
    compare,
    english_at,
    mean_and_error,
    read_curve,
    verdict,
)
from vikhr_fast.train.metrics import append_line

LEVELS = st.floats(0.5, 8)


def line(russian: list[float], slope: float, start: float = 2.0) -> Curve:
    """English changes by `slope` for each bit of Russian learnt."""
    english = tuple(start + slope * (russian[0] - value) for value in russian)
    return Curve(tuple(range(len(russian))), tuple(russian), english)


def test_a_known_comparison() -> None:
    without_kl = Curve((0, 10, 20, 30), (3.0, 2.0, 1.0, 0.8), (1.0, 1.4, 2.0, 2.4))
    with_kl = Curve((0, 10, 20), (3.0, 2.5, 1.5), (1.0, 1.1, 1.3))
    result = compare(without_kl, with_kl)
    assert result.russian == 1.5
    assert result.english_without_kl == pytest.approx(1.7)
    assert result.english_with_kl == pytest.approx(1.3)
    assert result.difference == pytest.approx(-0.4)


def test_the_first_crossing_counts() -> None:
    curve = Curve((0, 1, 2, 3), (3.0, 1.0, 2.0, 0.5), (1.0, 2.0, 3.0, 4.0))
    assert english_at(curve, 1.5) == pytest.approx(1.75)


def test_a_level_that_is_never_reached() -> None:
    with pytest.raises(ValueError, match="stays above"):
        english_at(line([3.0, 2.0], 0.1), 1.0)


@given(st.lists(LEVELS, min_size=2, max_size=8), st.lists(LEVELS, min_size=2, max_size=8), st.floats(-1, 1), LEVELS)
def test_runs_on_straight_lines_differ_by_their_slopes(
    first: list[float], second: list[float], slope: float, start: float
) -> None:
    """Both begin at the same point; English is linear in Russian, so any interpolation is exact."""
    falling = [[start, *sorted((value for value in run if value < start), reverse=True)] for run in (first, second)]
    result = compare(line(falling[0], 0.0), line(falling[1], slope))
    assert result.russian == max(falling[0][-1], falling[1][-1])
    assert result.difference == pytest.approx(slope * (start - result.russian), abs=1e-9)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9))
def test_mean_and_standard_error(values: list[float]) -> None:
    mean, error = mean_and_error(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    assert mean == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert error == pytest.approx(math.sqrt(variance / len(values)), abs=1e-9)
    assert mean_and_error(values[:1]) == (values[0], None)


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        (
            [-0.1, -0.11, -0.12],
            r"KL against CPT at equal Russian \(2.000 .*: -0.1100 ± 0.0058 .* 3 seeds: the KL term kept English better",
        ),
        ([0.1, 0.11, 0.12], r"\+0.1100 ± 0.0058 .* 3 seeds: the KL term kept English worse"),
        ([-0.1, 0.11, 0.02], "no effect is shown"),
        ([-0.1], "-0.1000 .* one seed: the KL term kept English better; one seed says nothing about chance"),
        ([0.0], "no difference"),
    ],
)
def test_the_verdict_follows_the_numbers(differences: list[float], words: str) -> None:
    import re

    comparisons = [Comparison(2.0, 3.0, 3.0 + difference) for difference in differences]
    assert re.search(words, verdict("KL", comparisons))


def test_curves_are_read_from_a_run(tmp_path: Path) -> None:
    sets = {"russian": {"bits_per_byte": 2.5}, "english": {"bits_per_byte": 1.5}}
    (tmp_path / "validation.jsonl").write_text(json.dumps({"step": 4, "tokens": 9, "sets": sets}) + "\n")
    assert read_curve(tmp_path) == Curve((4,), (2.5,), (1.5,))
    del sets["english"]
    (tmp_path / "validation.jsonl").write_text(json.dumps({"step": 4, "tokens": 9, "sets": sets}) + "\n")
    with pytest.raises(InputError, match=r"validation.jsonl: not readable"):
        read_curve(tmp_path)
    with pytest.raises(InputError, match=r"absent/validation.jsonl: not readable"):
        read_curve(tmp_path / "absent")


def test_a_score_that_was_not_finite_is_no_point_of_a_curve(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step, bits in ((2, 1.5), (4, math.nan), (6, math.inf)):
        score = asdict(Score(1.0, bits, tokens=1, num_bytes=1, window=1))
        append_line(tmp_path / "validation.jsonl", {"step": step, "sets": {"russian": score, "english": score}})
    assert "null" in (tmp_path / "validation.jsonl").read_text()
    curve = read_curve(tmp_path)
    assert "2 of 3 validations have no finite score and are left out" in caplog.text
    assert curve == Curve((2,), (1.5,), (1.5,))
    assert compare(curve, curve).difference == 0
