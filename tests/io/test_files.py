"""JSON that every reader takes; files that are written where they are said to be, and nowhere else."""

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vikhr_fast
from vikhr_fast.errors import InputError
from vikhr_fast.io.files import atomic_file, copied_json, json_text, remove_leftovers, write_json, write_json_lines
from vikhr_fast.io.resumable import resumable_directory
from vikhr_fast.io.run_directory import locked

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


def test_a_lock_is_not_taken_through_a_symbolic_link(tmp_path: Path) -> None:
    """The directory may be from somebody else."""
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(InputError, match=r"\.lock: a symbolic link, .*remove it"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_lock_leaves_what_is_in_its_file(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / ".lock").hardlink_to(tmp_path / "thesis.tex")
    with locked(tmp_path):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_leftovers_that_are_links_are_removed_and_what_they_point_to_stays(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    (tmp_path / ".model.1.partial").symlink_to(tmp_path / "thesis")
    remove_leftovers(tmp_path)
    assert not (tmp_path / ".model.1.partial").is_symlink()
    (tmp_path / "out.partial" / "result").mkdir(parents=True)
    (tmp_path / "out.partial" / "result" / "part").symlink_to(tmp_path / "thesis")
    (tmp_path / "out.partial" / "scratch").symlink_to(tmp_path / "thesis")
    with resumable_directory(tmp_path / "out", {}) as directory:
        assert not list(directory.iterdir())
        assert not (directory.parent / "scratch").is_symlink()
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "mine"


def test_a_file_is_replaced_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "config.json").symlink_to(tmp_path / "thesis.tex")
    with atomic_file(tmp_path / "config.json") as file:
        file.write(b"{}")
    assert (tmp_path / "config.json").read_text() == "{}"
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_files_are_opened_for_writing_in_one_place() -> None:
    """Which follows no symbolic link; shards are opened inside a directory that was just made."""
    package = Path(vikhr_fast.__file__).parent
    opens = re.compile(r"""\.open\(["'][wax]|\bopen\([^)]*["'][wax]""")
    users = {str(file.relative_to(package)) for file in package.rglob("*.py") if opens.search(file.read_text())}
    assert users == {"io/files.py", "corpus/shard.py"}
