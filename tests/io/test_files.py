"""JSON that every reader takes; files that are written where they are said to be, and nowhere else."""

import errno
import json
import math
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vikhr_fast
from vikhr_fast.errors import ExitCode, InputError, RankLostError, outcome_of
from vikhr_fast.io.files import (
    atomic_directory,
    atomic_file,
    copied_json,
    json_text,
    refuse_existing,
    remove_leftovers,
    sync_directory,
    sync_file,
    write_json,
    write_json_lines,
)
from vikhr_fast.io.resumable import resumable_directory
from vikhr_fast.io.run_directory import locked, record_run

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


def everything_in(directory: Path) -> dict[Path, str]:
    """What each path is: the target of a link, the text of a file."""
    return {
        path: str(path.readlink()) if path.is_symlink() else "" if path.is_dir() else path.read_text()
        for path in directory.rglob("*")
    }


def foreign(directory: Path) -> dict[Path, str]:
    """Makes a directory of somebody else's, with names like ours."""
    (directory / "chapters").mkdir(parents=True)
    for name in (".my.partial", "chapters/.data.1.partial"):
        (directory / name).write_text("mine")
    (directory / "chapters" / "first").symlink_to("thesis.tex")
    return everything_in(directory)


def test_no_work_is_done_through_a_symbolic_link(tmp_path: Path) -> None:
    before = foreign(tmp_path / "thesis")
    (tmp_path / "out.partial").symlink_to(tmp_path / "thesis")
    refused = pytest.raises(InputError, match=r"out\.partial: a symbolic link, which is not followed; remove it$")
    with refused, resumable_directory(tmp_path / "out", {}):
        pass
    assert everything_in(tmp_path / "thesis") == before


def test_what_others_put_beside_unfinished_work_stays(tmp_path: Path) -> None:
    before = foreign(tmp_path / "out.partial" / "thesis")
    with resumable_directory(tmp_path / "out", {}) as directory:
        (directory / "made").touch()
        (directory.parent / "scratch").mkdir()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["made"]
    assert [path.name for path in (tmp_path / "out.partial").iterdir()] == ["thesis"]
    assert everything_in(tmp_path / "out.partial" / "thesis") == before


def test_a_link_to_nowhere_is_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"config\.json: exists already"):
        refuse_existing(tmp_path / "config.json")
    with pytest.raises(InputError, match=r"config\.json: no such file; use another --output"):
        record_run(tmp_path, {})


def atomic(open_one: Callable[[Path], AbstractContextManager[Any]]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with open_one(path):
            pass

    return write


WRITERS = {
    "file": atomic(atomic_file),
    "directory": atomic(atomic_directory),
    "resumable": atomic(lambda path: resumable_directory(path, {})),
    "synced file": lambda path: path.touch() or sync_file(path),
    "synced directory": lambda path: path.mkdir() or sync_directory(path),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("number", [errno.EIO, errno.EFBIG])
def test_what_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, number: int
) -> None:
    def fail(_: int) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=rf"'{re.escape(str(tmp_path))}/\.?out"):
        WRITERS[writer](tmp_path / "out")


def test_what_fails_besides_while_a_file_is_written_is_not_put_down_to_it(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError) as raised, atomic_file(tmp_path / "out"):
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    assert raised.value.filename is None


OUTCOMES: dict[str, tuple[InputError | RankLostError | OSError, ExitCode, str]] = {
    "bad input": (InputError("a: bad"), ExitCode.BAD_INPUT, "a: bad"),
    "rank lost": (RankLostError("rank 1 died"), ExitCode.RANK_LOST, "rank 1 died"),
    "full, somewhere": (OSError(errno.ENOSPC, "full"), ExitCode.NO_SPACE, "no space left on the disk; free some"),
    "quota": (OSError(errno.EDQUOT, "full", "a"), ExitCode.NO_SPACE, "a: no space left on the disk; free some"),
    "ulimit": (OSError(errno.EFBIG, "full", "a"), ExitCode.NO_SPACE, "a: no space left on the disk; free some"),
    "not allowed": (PermissionError(errno.EACCES, "No", "a"), ExitCode.BAD_INPUT, "a: No; choose what you may read"),
    "read-only": (OSError(errno.EROFS, "No", "a"), ExitCode.BAD_INPUT, "a: No; choose what you may read, and a direc"),
    "in the way": (FileExistsError(errno.EEXIST, "No", "a"), ExitCode.BAD_INPUT, "a: No; move it away"),
    "no directory": (NotADirectoryError(errno.ENOTDIR, "No", "a/b"), ExitCode.BAD_INPUT, "a/b: No; a file stands"),
    "broken": (OSError(errno.EIO, "No", "a"), ExitCode.BAD_INPUT, "a: No; look whether the disk is in order"),
    "rare": (OSError(errno.EXDEV, "No", "a"), ExitCode.BAD_INPUT, "a: No"),
    "a bug": (OSError(errno.EBADF, "No"), ExitCode.BUG, ""),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_an_error_has_its_exit_code_and_says_what_to_do(name: str) -> None:
    error, code, line = OUTCOMES[name]
    with pytest.raises(OSError, match="No") if code is ExitCode.BUG else nullcontext():
        found = outcome_of(error)
        assert found[0] is code
        assert found[1].startswith(line)


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
