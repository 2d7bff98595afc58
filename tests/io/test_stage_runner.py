"""Stages: what is there isn't made again, and what a killed one left half-written goes."""

from pathlib import Path

import pytest

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import write_text
from vikhr_fast.io.stage_runner import Stage, run_stages, run_stages_at_once


def make(path: Path) -> None:
    write_text(path, "made")


class Make:
    """Can be sent to another process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        make(self.path)


@pytest.mark.parametrize("at_once", [False, True])
def test_leftovers_of_a_killed_stage_go_and_nothing_else(tmp_path: Path, at_once: bool) -> None:
    done, output = tmp_path / "done.json", tmp_path / "units" / "a[1].json"
    write_text(done, "before")
    output.parent.mkdir()
    others = [
        output.with_name(name)
        for name in (
            "b.json",
            ".b.json.7.partial",
            ".a[1].json2.7.partial",
            ".a[1].json.zst.7.partial",
            "a[1].json.partial",
        )
    ]
    for path in (*others, output.with_name(f".{output.name}.7.partial")):
        path.write_text("half")
    stages = [Stage("a", done, Make(done)), Stage("b", output, Make(output), needs=(done,))]
    if at_once:
        run_stages_at_once(stages, tmp_path / "logs", jobs=2)
    else:
        run_stages(stages)
    assert done.read_text() == "before"
    assert output.read_text() == "made"
    assert sorted(output.parent.iterdir()) == sorted([output, *others])


def refuse() -> None:
    raise InputError("source first\n\x1b[2Jsecond: no such file")


@pytest.mark.slow
def test_the_error_of_a_stage_is_told_whole_whatever_it_names(tmp_path: Path) -> None:
    stages = [Stage("one", tmp_path / "one", refuse)]
    with pytest.raises(InputError, match=r"^one: ended with exit code 3: error: source first \\x1b\[2Jsecond: no such"):
        run_stages_at_once(stages, tmp_path / "logs", jobs=1)
