"""Means, standard errors and paired differences against NumPy's, and the file that keeps them."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast.errors import InputError
from vikhr_fast.experiments.ablate.collect import collect
from vikhr_fast.experiments.ablate.command import GRIDS
from vikhr_fast.experiments.ablate.page import ablation_page, markdown
from vikhr_fast.experiments.grid import read_grid
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
from vikhr_fast.experiments.works import Steps
from vikhr_fast.io.html import Figure as Plot
from vikhr_fast.io.html import Table
from vikhr_fast.train.metrics import METRICS

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


GRID = read_grid(GRIDS / "demo" / "kl.toml")
FIGURES = {column.name: 1.5 for column in GRID.columns}
CURVE = [{"step": step, "russian": 3.0 - step, "english": 1.0 + step} for step in (0, 1)]


def write_units(directory: Path, **changes: Any) -> dict[str, list[Path]]:
    """A unit of each arm with two seeds; the last one is changed."""
    files = {arm: [directory / f"{arm}-{seed}.json" for seed in range(2)] for arm in GRID.arms}
    for file in (file for own in files.values() for file in own):
        file.write_text(json.dumps({"figures": FIGURES, "curve": CURVE}))
    last = files[list(files)[-1]][-1]
    last.write_text(changes.get("text") or json.dumps({"figures": FIGURES, "curve": CURVE, **changes}))
    return files


def test_units_of_the_right_shape_make_a_table(tmp_path: Path) -> None:
    ablation = collect(GRID, "demo", write_units(tmp_path))
    assert ablation.arms["ce"].figures["russian.perplexity"].values == (1.5, 1.5)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"figures": []}, "damaged: figures: "),
        ({"figures": FIGURES | {"tokens": "x"}}, "damaged: figures.tokens: 'x': input should"),
        ({"figures": FIGURES | {"tokens": None}}, "damaged: figures.tokens: None: input should"),
        ({"figures": {"tokens": 1.0}}, "other figures than in "),
        ({"curve": {}}, "damaged: curve: "),
        ({"curve": [[1]]}, "damaged: curve.0: "),
        ({"text": '{"figures": {}, "curve": [{"russian": 1e999}]}'}, "damaged: curve.0.russian: inf: input should"),
        ({"curve": [{"russian": 1.0}]}, "damaged: a validation without its step"),
        ({"text": "[" * 100_000}, "damaged: nested more than 100 deep"),
        ({"text": "null"}, "damaged: None: input should"),
    ],
)
def test_a_unit_of_another_shape_is_one_line(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    files = write_units(tmp_path, **changes)
    with pytest.raises(InputError, match=rf"-1\.json: {re.escape(complaint)}.*remove it and run again$"):
        collect(GRID, "demo", files)


@pytest.mark.parametrize("line", ["", "{}", "[1]", '{"step": 1, "tokens": 0}', '{"step": "a", "tokens": 1}'])
def test_steps_of_a_run_without_them_are_one_line(tmp_path: Path, line: str) -> None:
    (tmp_path / METRICS).write_text(f"{line}\n" if line else "")
    with pytest.raises(InputError, match=rf"{METRICS}: damaged.*; (delete what it is in|move the file away) [^;]*$"):
        Steps(tmp_path, tmp_path).number()
