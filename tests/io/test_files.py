"""JSON that every reader takes."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import vikhr_fast
from vikhr_fast.io.files import copied_json, json_text, write_json, write_json_lines

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


def strictly(text: str) -> Any:
    """The values of a text that is JSON, without the NaN and infinities that Python's reader takes."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nan(own) for name, own in value.items()}
    if isinstance(value, list):
        return [without_nan(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@given(value=values)
def test_what_json_has_not_is_null_and_all_else_as_it_was(value: Any) -> None:
    assert strictly(json_text(value)) == without_nan(value)
    text, is_replaced = copied_json(value)
    assert strictly(text) == without_nan(value)
    assert is_replaced == (repr(without_nan(value)) != repr(value))


def test_values_of_any_kind_are_copied_and_replacements_told() -> None:
    assert copied_json({"a": Path("x"), "b": (1.5, np.float64("nan"))}) == ('{"a": "x", "b": [1.5, null]}', True)
    assert copied_json({"a": "да\ud800"}) == ('{"a": "да?"}', True)
    assert copied_json({"b": "да", "a": [1]}, sort_keys=True) == ('{"a": [1], "b": "да"}', False)


def test_files_hold_no_nan(tmp_path: Path) -> None:
    rows = [{"loss": math.nan}, {"loss": 1.0, "parts": (math.inf, -math.inf)}]
    write_json(tmp_path / "a.json", rows)
    assert strictly((tmp_path / "a.json").read_text()) == [{"loss": None}, {"loss": 1.0, "parts": [None, None]}]
    write_json_lines(tmp_path / "a.jsonl", rows)
    assert [strictly(line)["loss"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [None, 1.0]


def test_json_is_written_in_one_place() -> None:
    """Python's own writer, which writes NaN, is not used beside it, but for the program that answers over a pipe."""
    package = Path(vikhr_fast.__file__).parent
    users = [str(file.relative_to(package)) for file in package.rglob("*.py") if "json.dump" in file.read_text()]
    assert sorted(users) == ["io/files.py", "tokenizer/chat_renderer.py"]
