"""Stages: what is there isn't made again, and what a killed one left half-written goes."""

import errno
import os
import resource
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from vikhr_fast.errors import InputError
from vikhr_fast.io import stage_runner
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


def write_much(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    write_text(path, "x" * 10_000)


@pytest.mark.slow
def test_a_stage_says_where_there_is_no_space(tmp_path: Path) -> None:
    output = tmp_path / "one"
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as raised:
        run_stages_at_once([Stage("one", output, partial(write_much, output))], tmp_path / "logs", jobs=1)
    assert raised.value.filename == str(output)
    assert (tmp_path / "logs" / "one.log").read_text().startswith(f"error: {output}: no space left")


def fill(path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        os.dup2(full.fileno(), 2)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.slow
def test_a_disk_is_full_where_its_log_cannot_be_written_either(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        run_stages_at_once([Stage("one", tmp_path / "one", partial(fill, tmp_path))], tmp_path / "logs", jobs=1)


@pytest.mark.slow
def test_a_stage_says_what_to_do_about_a_wrong_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "one"
    with pytest.raises(InputError, match=r"one: ended with exit code 3: error: .*file.*: File exists; move it away"):
        run_stages_at_once([Stage("one", output, Make(output))], tmp_path / "logs", jobs=1)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_what_a_stage_prints_is_not_written_over_a_file_of_somebody_else(
    link: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "logs").mkdir()
    link(tmp_path / "thesis.tex", tmp_path / "logs" / "one.log")
    with pytest.raises(InputError, match=r"one\.log: .* link.*(; remove it|; put a copy in its place)$"):
        run_stages_at_once([Stage("one", tmp_path / "one", Make(tmp_path / "one"))], tmp_path / "logs", jobs=1)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def be_deaf(started: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    started.touch()
    time.sleep(300)


def refuse_later(started: Path) -> None:
    while not started.exists():
        time.sleep(0.02)
    refuse()


@pytest.mark.slow
def test_a_stage_that_does_not_stop_is_killed_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stage_runner, "_GRACE_SECONDS", 0.5)
    started = tmp_path / "started"
    works = {"deaf": partial(be_deaf, started), "failing": partial(refuse_later, started)}
    stages = [Stage(name, tmp_path / name, work) for name, work in works.items()]
    with pytest.raises(InputError, match=r"^failing: ended with exit code 3"):
        run_stages_at_once(stages, tmp_path / "logs", jobs=2)
    assert "deaf: killed, since it took more than 0.5 s to stop" in caplog.text
