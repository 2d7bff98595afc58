"""A whole ablation of seconds: its figures, and that one which was killed ends with the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vikhr_fast.cli import main
from vikhr_fast.experiments.results import read_ablation
from vikhr_fast.train.checkpoint import complete_checkpoints

pytestmark = pytest.mark.slow

SECONDS = 300


def arguments(grids: Path, output: Path) -> list[str]:
    text = str(grids / "text.txt")
    return ["ablate", "kl", "--scale", str(grids), "--output", str(output), "--inputs", "text", text, "--jobs", "2"]


def start(grids: Path, output: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "vikhr_fast", *arguments(grids, output)], stderr=subprocess.DEVNULL)


def run(capsys: pytest.CaptureFixture[str], grids: Path, output: Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of an ablation in this process."""
    with pytest.raises(SystemExit) as exit_info:
        main(arguments(grids, output))
    captured = capsys.readouterr()
    return int(exit_info.value.code or 0), captured.out, captured.err


def results(output: Path) -> dict[str, bytes]:
    paths = [*(output / "kl").glob("*.*"), *(output / "kl" / "units").iterdir()]
    return {path.name: path.read_bytes() for path in paths if path.name != "environment.json"}


def processes_of(output: Path) -> list[str]:
    """Those that have a file below the directory open."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            files = [str(file.readlink()) for file in (directory / "fd").iterdir()]
        except OSError:
            continue
        found += [directory.name] if any(file.startswith(f"{output}/") for file in files) else []
    return found


def test_a_killed_ablation_goes_on_and_ends_with_the_same_bytes(
    grids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, out, _ = run(capsys, grids, whole)
    assert code == 0
    assert "two learning rates; 2 seeds, mean ± standard error; perplexity on what was trained on:\n" in out
    assert out.endswith("A note.\n")
    ablation = read_ablation(whole / "kl" / "ablation.json")
    assert ablation.seeds == (0, 1)
    slow, fast = (ablation.arms[name].figures["russian.bits_per_byte"] for name in ("slow", "fast"))
    (comparison,) = ablation.comparisons
    assert comparison.figures["russian.bits_per_byte"].values == tuple(
        f - s for f, s in zip(fast.values, slow.values, strict=True)
    )
    assert fast.mean < slow.mean
    assert ablation.arms["fast"].figures["teraflop"].mean > 0
    # English is the same text here, so it is as good where Russian is.
    assert comparison.figures["english_at_equal_russian"].values == pytest.approx((0.0, 0.0), abs=1e-12)
    assert "english_at_equal_russian" not in ablation.arms["fast"].figures

    process = start(grids, killed)
    checkpoints = killed / "kl" / "seed-1" / "fast" / "checkpoints"
    deadline = time.monotonic() + SECONDS
    units = killed / "kl" / "units"
    while not (complete_checkpoints(checkpoints) and units.exists() and any(units.iterdir())):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while processes_of(killed):  # nothing goes on by itself
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not (killed / "kl" / "ablation.json").exists()
    done = {path: path.stat().st_mtime_ns for path in units.iterdir()}
    assert 0 < len(done) < 4
    assert run(capsys, grids, killed)[0] == 0
    assert "from step 0" not in (killed / "logs" / "kl-fast-seed-1.log").read_text()
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())
    assert results(killed).keys() == results(whole).keys()
    for name, content in results(killed).items():
        assert content.replace(bytes(killed), bytes(whole)) == results(whole)[name], name

    unit = whole / "kl" / "units" / "slow-seed-0.json"
    unit.write_text("{")
    code, _, err = run(capsys, grids, whole)
    assert code == 3
    assert f"{unit}: damaged: line 1, column 2: not JSON" in err


def test_a_command_that_fails_ends_the_ablation_with_its_line(
    grids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = grids / "stages.toml"
    stages.write_text(stages.read_text().replace("--vocab-size 400", "--vocab-size 40000"))
    code, _, err = run(capsys, grids, tmp_path / "run")
    assert code == 3
    last = err.splitlines()[-1]
    assert last.startswith("vikhr-fast: error: shared: tokenizer: ended with exit code 3: error: ")
    assert "more in" in last
    # Mended, the stages are other ones than those that were begun.
    stages.write_text(stages.read_text().replace("--vocab-size 40000", "--vocab-size 400"))
    code, _, err = run(capsys, grids, tmp_path / "run")
    assert code == 3
    assert "this run began with other values of stages.tokenizer; use another --output" in err
