"""`corpus build` in a process of its own, stopped in every stage: what it leaves behind ends in the same shards."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from corpora import directory_bytes
from endpoint import Endpoint, serving
from planted_noise import Planted, judge_of, plant, read_paragraphs, write_config

import vikhr_fast

DATA = Path(vikhr_fast.__file__).parent / "demo" / "data" / "russian"
SOURCES = ("encyclopaedia", "news", "stories", "popular_science")
STAGES = ("1-collect", "2-dedup", "3-scrub", "4-decontaminate", "5-annotations", "6-classifier", "7-filter", "8-shards")

# Every part or file that is finished takes a moment, so that there is time to stop it in the middle.
_SCRIPT = """
import sys, time
from vikhr_fast import files
from vikhr_fast.cli import main
sync = files.sync_directory
def slowly(path):
    sync(path)
    time.sleep(float(sys.argv[1]))
files.sync_directory = slowly
main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    paragraphs = {name: read_paragraphs([DATA / f"{name}.txt"]) for name in SOURCES}
    return plant(tmp_path_factory.mktemp("planted"), paragraphs, ["one two three four five six"], rate=0.5)


@pytest.fixture(scope="module")
def endpoint(planted: Planted) -> Iterator[Endpoint]:
    endpoint = judge_of(planted)
    endpoint.misbehave = lambda _text, _attempt: time.sleep(0.01)
    with serving(endpoint):
        write_config(planted, [*SOURCES, "web", "english"], endpoint.url, 120, 20_000)
        yield endpoint


def start(planted: Planted, output: Path, pause: float = 0.0) -> subprocess.Popen[str]:
    command = ["corpus", "build", str(planted.config), "--output", str(output), "--threads", "1"]
    environment = {**os.environ, "PLANTED_KEY": "sk-secret", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(pause), *command], stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(planted: Planted, output: Path) -> None:
    process = start(planted, output)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def stop_in(planted: Planted, output: Path, stage: str, how: signal.Signals, wait: float) -> tuple[int, str]:
    """Starts the build and stops it `wait` seconds after the stage has begun; its exit code and errors."""
    process = start(planted, output, pause=0.04)
    begun = [output / f"{stage}.partial", output / f"{stage}.answers.jsonl"]
    deadline = time.monotonic() + 120
    while not any(path.exists() for path in begun) and not list(output.glob(f".{stage}.*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
        if stage == "6-classifier" and (output / "5-annotations" / "manifest.json").exists():
            break  # it writes nothing before its end
    time.sleep(wait)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


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
@pytest.mark.parametrize("wait", [0.0, 0.15])
def test_killed_in_any_stage_the_shards_are_the_same(
    planted: Planted, whole: dict[str, bytes], output: Path, stage: str, wait: float
) -> None:
    code, _ = stop_in(planted, output, stage, signal.SIGKILL, wait)
    assert code == -signal.SIGKILL
    assert not (output / "8-shards").exists()
    finish(planted, output)
    assert shards_of(output) == whole


def test_killed_in_the_middle_of_a_stage(planted: Planted, whole: dict[str, bytes], output: Path) -> None:
    """One stage on every run; all of them in the nightly form above."""
    assert stop_in(planted, output, "7-filter", signal.SIGKILL, 0.1)[0] == -signal.SIGKILL
    finish(planted, output)
    assert shards_of(output) == whole


@pytest.mark.nightly
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_stops_cleanly(planted: Planted, whole: dict[str, bytes], output: Path, stage: str) -> None:
    code, errors = stop_in(planted, output, stage, signal.SIGINT, 0.1)
    assert (code, "Traceback" in errors) == (130, False), errors
    assert errors.splitlines()[-1] == "vikhr-fast: error: interrupted"
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
            process = start(planted, disk)
            _, errors = process.communicate(timeout=300)
            if process.returncode == 0:
                break
            assert process.returncode == 4, errors
            assert "no space left on the disk; free some and run the same command again" in errors.splitlines()[-1]
            assert "Traceback" not in errors
            full += 1
        assert full >= 3
        assert shards_of(disk) == whole
    finally:
        subprocess.run(["umount", str(disk)], check=True)
