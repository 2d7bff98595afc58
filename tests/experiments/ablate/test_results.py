"""Means, standard errors and paired differences against NumPy's, and the file that keeps them."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast.errors import InputError
from vikhr_fast.experiments.ablate.page import ablation_page, markdown
from vikhr_fast.experiments.results import (
    Ablation,
    Arm,
    Column,
    Comparison,
    Figure,
    paired,
    read_ablation,
    write_ablation,
)
from vikhr_fast.io.html import Figure as Plot
from vikhr_fast.io.html import Table

values = st.floats(-1e6, 1e6, allow_nan=False)
pairs = st.lists(st.tuples(values, values), min_size=1, max_size=9)


def example(arm: Figure, control: Figure) -> Ablation:
    arms = {
        "control": Arm(
            label="control", figures={"a.bits_per_byte": control, "tokens": Figure((5.0,) * len(control.values))}
        ),
        "arm": Arm(label="arm", figures={"a.bits_per_byte": arm}),
    }
    difference = paired(arms["arm"].figures, arms["control"].figures)
    return Ablation(
        name="kl",
        table=9,
        scale="demo",
        title="title",
        text="a text",
        seeds=tuple(range(len(arm.values))),
        columns=(Column(name="a.bits_per_byte", label="bits"), Column(name="tokens", label="tokens", digits=0)),
        arms=arms,
        comparisons=(Comparison(arm="arm", against="control", label="arm against control", figures=difference),),
        notes=("a note",),
    )


@given(pairs)
def test_figures_are_those_of_numpy(drawn: list[tuple[float, float]]) -> None:
    arm, control = (Figure(tuple(side)) for side in zip(*drawn, strict=True))
    difference = paired({"x": arm, "y": arm}, {"x": control, "z": control})
    assert difference.keys() == {"x"}
    scale = max(1.0, *(abs(value) for pair in drawn for value in pair))
    for figure, numbers in (
        (arm, np.array(arm.values)),
        (difference["x"], np.array(arm.values) - np.array(control.values)),
    ):
        assert figure.mean == pytest.approx(numbers.mean(), abs=1e-12 * scale)
        if len(drawn) == 1:
            assert figure.standard_error is None
        else:
            wanted = numbers.std(ddof=1) / math.sqrt(len(drawn))
            assert figure.standard_error == pytest.approx(wanted, abs=1e-9 * scale)


def test_pairing_by_seed_takes_out_what_the_seeds_have_in_common() -> None:
    control = Figure((1.0, 5.0, 9.0))
    arm = Figure(tuple(value - 0.5 for value in control.values))
    difference = paired({"x": arm}, {"x": control})["x"]
    assert (difference.mean, difference.standard_error) == (-0.5, 0.0)
    assert arm.standard_error is not None
    assert arm.standard_error > 2
    assert difference.shown(3, "+") == "-0.500 ± 0.000"
    assert Figure((1234.5,)).shown(1, "+") == "+1,234.5"


@settings(deadline=None)  # it waits for the disk
@given(pairs)
def test_the_file_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[float, float]]
) -> None:
    path = tmp_path_factory.mktemp("ablation") / "ablation.json"
    ablation = example(*(Figure(tuple(side)) for side in zip(*drawn, strict=True)))
    write_ablation(path, ablation)
    assert read_ablation(path) == ablation


def test_the_table_says_what_the_file_says(tmp_path: Path) -> None:
    ablation = example(Figure((1.25, 1.75)), Figure((2.0, 2.0)))
    text = markdown(ablation)
    assert "| control | 2.000 ± 0.000 | 5 ± 0 |" in text
    assert "| arm | 1.500 ± 0.250 | – |" in text
    assert "| arm against control | -0.500 ± 0.250 |" in text
    assert "2 seeds, mean ± standard error; perplexity on a text" in text
    assert text.endswith("a note\n")
    write_ablation(tmp_path / "ablation.json", ablation)
    _, bits, by_seed = ablation_page(tmp_path).sections
    [plot] = bits.parts
    assert isinstance(plot, Plot)
    assert "control 2.000; arm 1.500" in plot.alt
    [values] = by_seed.parts
    assert isinstance(values, Table)
    assert ("arm", "bits", "1.250", "1.750") in values.rows


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("{", ""),
        ("}", ""),
        ('"version": 1', '"version": 2'),
        ('"values"', '"value"'),
        ('"arms": {', '"arms": 5, "x": {'),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, right: str, wrong: str) -> None:
    path = tmp_path / "ablation.json"
    write_ablation(path, example(Figure((1.0,)), Figure((2.0,))))
    assert right in path.read_text()
    path.write_text(path.read_text().replace(right, wrong))
    with pytest.raises(InputError, match=r"ablation\.json: \w+") as error:
        read_ablation(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json: no such file"):
        read_ablation(tmp_path / "absent.json")
