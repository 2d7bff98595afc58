"""`corpus build` in a process of its own, stopped in every stage: what it leaves behind ends in the same shards."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from corpora import directory_bytes
from endpoint import Endpoint, serving
from planted_noise import Planted, judge_of, plant, read_paragraphs, write_config

import vikhr_fast

pytestmark = pytest.mark.slow

DATA = Path(vikhr_fast.__file__).parent / "experiments" / "sample" / "data" / "russian"
SOURCES = ("encyclopaedia", "news", "stories", "popular_science")
STAGES = ("1-collect", "2-dedup", "3-scrub", "4-decontaminate", "5-annotations", "6-classifier", "7-filter", "8-shards")

# The process stops itself at the n-th time that a stage makes something last: the same place on every machine. Before
# odd ones a file is not in its place yet, after even ones it is.
_SCRIPT = """
import os, signal, sys
from vikhr_fast.cli import main
stage, how, place = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
sync, synced = os.fsync, 0
def stopping(descriptor):
    global synced
    sync(descriptor)
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    synced += f"/{stage}." in path
    if f"/{stage}." in path and synced == place:
        os.kill(os.getpid(), how)
os.fsync = stopping
main(sys.argv[4:])
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    paragraphs = {name: read_paragraphs([DATA / f"{name}.txt"]) for name in SOURCES}
    return plant(tmp_path_factory.mktemp("planted"), paragraphs, ["one two three four five six"], rate=0.5)


@pytest.fixture(scope="module")
def endpoint(planted: Planted) -> Iterator[Endpoint]:
    endpoint = judge_of(planted)
    with serving(endpoint):
        write_config(planted, [*SOURCES, "web", "english"], endpoint.url, 120, 20_000)
        yield endpoint


def run_build(
    planted: Planted, output: Path, stage: str = "none", how: int = 0, place: int = 0
) -> subprocess.CompletedProcess[str]:
    command = ["corpus", "build", str(planted.config), "--output", str(output), "--threads", "1"]
    environment = {**os.environ, "PLANTED_KEY": "sk-secret", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", _SCRIPT, stage, str(how), str(place)]
    return subprocess.run(
        [*program, *command], capture_output=True, text=True, env=environment, timeout=600, check=False
    )


def finish(planted: Planted, output: Path) -> None:
    ended = run_build(planted, output)
    assert ended.returncode == 0, ended.stderr


def shards_of(output: Path) -> dict[str, bytes]:
    return directory_bytes(output / "8-shards")


@pytest.fixture(scope="module")
def whole(planted: Planted, endpoint: Endpoint) -> dict[str, bytes]:
    """The shards of an uninterrupted run, in the place where all run."""
    assert endpoint.port
    output = planted.config.parent / "run"
    finish(planted, output)
    shards = shards_of(output)
    shutil.rmtree(output)
    return shards


@pytest.fixture
def output(planted: Planted) -> Iterator[Path]:
    output = planted.config.parent / "run"
    shutil.rmtree(output, ignore_errors=True)
    yield output
    shutil.rmtree(output, ignore_errors=True)


@pytest.mark.nightly
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("place", [1, 4, 9])
def test_killed_in_any_stage_the_shards_are_the_same(
    planted: Planted, whole: dict[str, bytes], output: Path, stage: str, place: int
) -> None:
    assert run_build(planted, output, stage, signal.SIGKILL, place).returncode == -signal.SIGKILL
    assert not (output / stage).exists()
    finish(planted, output)
    assert shards_of(output) == whole


def test_killed_in_the_middle_of_a_stage(planted: Planted, whole: dict[str, bytes], output: Path) -> None:
    """One stage on every run; all of them in the nightly form above."""
    test_killed_in_any_stage_the_shards_are_the_same(planted, whole, output, "7-filter", 4)


@pytest.mark.nightly
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_stops_cleanly(planted: Planted, whole: dict[str, bytes], output: Path, stage: str) -> None:
    ended = run_build(planted, output, stage, signal.SIGINT, 5)
    assert (ended.returncode, "Traceback" in ended.stderr) == (130, False), ended.stderr
    assert ended.stderr.splitlines()[-1] == "vikhr-fast: error: interrupted"
    assert not (output / stage).exists()
    finish(planted, output)
    assert shards_of(output) == whole


def mounted(directory: Path, kibibytes: int) -> bool:
    directory.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(directory)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.nightly
def test_a_full_disk_is_one_clear_error_and_the_run_goes_on(planted: Planted, whole: dict[str, bytes]) -> None:
    """A disk of its own, of so many KiB, grown step by step until the run fits."""
    disk = planted.config.parent / "run"
    shutil.rmtree(disk, ignore_errors=True)
    if not mounted(disk, 64):
        pytest.skip("may not mount a small disk here")
    full = 0
    try:
        for kibibytes in (64, 120, 200, 300, 420, 560, 800, 1200, 2000, 4000, 1 << 20):
            subprocess.run(["mount", "-o", f"remount,size={kibibytes}k", str(disk)], check=True)
            ended = run_build(planted, disk)
            if ended.returncode == 0:
                break
            assert ended.returncode == 4, ended.stderr
            last = ended.stderr.splitlines()[-1]
            assert "no space left on the disk; free some and run the same command again" in last
            assert "Traceback" not in ended.stderr
            full += 1
        assert full >= 3
        assert shards_of(disk) == whole
    finally:
        subprocess.run(["umount", str(disk)], check=True)
