"""Files that grow line by line: whatever tears one, the lines that were whole are read, and new ones follow them."""

import errno
import json
import os
import resource
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast.errors import InputError
from vikhr_fast.io.append_only import append_line, read_lines
from vikhr_fast.llm.answer_log import AnswerLog
from vikhr_fast.train.metrics import EVALUATIONS, INCIDENTS, METRICS, VALIDATION, forget_steps_after

TEXTS = st.text(st.sampled_from('aщ€😀\n"\\\x00'), max_size=6)
FIELDS = {"step": st.integers(0, 4), "sets": st.dictionaries(TEXTS, TEXTS, max_size=1)}


def write(path: Path, values: list[dict[str, Any]]) -> bytes:
    path.unlink(missing_ok=True)
    for value in values:
        append_line(path, value)
    return path.read_bytes() if values else b""


def whole_in(data: bytes) -> int:
    return data.count(b"\n")


@settings(max_examples=20, deadline=None)
@given(values=st.lists(st.fixed_dictionaries(FIELDS), max_size=3))
def test_cut_at_any_byte_the_whole_lines_are_left(values: list[dict[str, Any]], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("cut") / "lines.jsonl"
    data = write(path, values)
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        assert read_lines(path) == values[: whole_in(data[:cut])]


def test_a_run_goes_on_with_its_files_cut_at_any_byte(tmp_path: Path) -> None:
    values: list[dict[str, Any]] = [{"step": 1}, {"step": 2, "щ": "€"}, {"step": 3}]
    names = cycle((METRICS, VALIDATION, EVALUATIONS, INCIDENTS))
    data = write(tmp_path / "whole", values)
    for cut, name in zip(range(len(data) + 1), names, strict=False):
        (tmp_path / name).write_bytes(data[:cut])
        forget_steps_after(tmp_path, 2)
        append_line(tmp_path / name, {"step": 3})
        assert read_lines(tmp_path / name) == [*values[: whole_in(data[:cut])][:2], {"step": 3}]


@pytest.mark.parametrize("tail", [0, 1, 2, 65_535, 65_536, 65_537, 200_000])
def test_a_line_takes_the_place_of_one_that_was_torn(tail: int, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for values in ([], [{"step": 1}], [{"step": 1}, {"step": 2}]):
        write(path, values)
        with path.open("ab") as file:
            file.write(b"x" * tail)
        append_line(path, {"step": 3})
        assert read_lines(path) == [*values, {"step": 3}]


def test_answers_cut_at_any_byte_are_kept_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answers = [{"request": name, "final": True, "answer": "щука €"} for name in "abc"]
    data = write(path, answers)
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = whole_in(data[:cut])
        with AnswerLog(path) as log:
            assert [log.final(name) for name in "abc"] == [*answers[:whole], *[None] * (3 - whole)]
            log.add({"request": "d", "final": True})
        assert [line["request"] for line in read_lines(path)] == [*"abc"[:whole], "d"]


def test_a_line_that_finds_no_room_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, before[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as raised:
            append_line(path, {"step": 2, "name": "новости"})
        assert raised.value.filename == str(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    append_line(path, {"step": 3})
    assert read_lines(path) == [{"step": 1}, {"step": 3}]


NO_OBJECTS = ["3", "null", '["step"]', "{", "[" * 100_000, "щ".encode("cp1251").decode("latin1"), "9" * 10_000]


@pytest.mark.parametrize("line", NO_OBJECTS, ids=[line[:8] for line in NO_OBJECTS])
def test_a_whole_line_that_is_no_object_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(json.dumps({"request": "a", "final": True}).encode() + b"\n" + line.encode("latin1") + b"\n")
    with pytest.raises(InputError, match=r"lines\.jsonl: damaged: line 2 is not a JSON object"):
        read_lines(path)
    with pytest.raises(InputError, match="damaged"):
        AnswerLog(path)


def test_a_line_without_end_is_damage_and_no_tear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 1}\n{"step": 2' + " " * 100 + "}\n")
    monkeypatch.setattr("vikhr_fast.io.append_only.MOST_BYTES", 64)
    with pytest.raises(InputError, match=r"lines\.jsonl: damaged: line 2 is not a JSON object"):
        read_lines(path)


def test_nothing_is_appended_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "lines.jsonl").symlink_to(tmp_path / "thesis.tex")
    for write_to in (lambda path: append_line(path, {"step": 1}), AnswerLog):
        with pytest.raises(InputError, match=r"lines\.jsonl: a symbolic link.*remove it"):
            write_to(tmp_path / "lines.jsonl")
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_nothing_is_appended_to_a_file_of_two_names(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine, without a line break")
    (tmp_path / "lines.jsonl").hardlink_to(tmp_path / "thesis.tex")
    for write_to in (lambda path: append_line(path, {"step": 1}), AnswerLog):
        with pytest.raises(InputError, match=r"lines\.jsonl: has other hard links.*; put a copy in its place"):
            write_to(tmp_path / "lines.jsonl")
    assert (tmp_path / "thesis.tex").read_text() == "mine, without a line break"


def test_an_answer_that_cannot_be_synced_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with AnswerLog(tmp_path / "a.jsonl") as log:
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match=r"error: '.*a\.jsonl'"):
            log.add({"request": "a", "final": True})
