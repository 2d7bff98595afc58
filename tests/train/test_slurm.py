"""slurm.sh between a stand-in for Slurm and one for torchrun, which ends with 1 whatever its ranks end with."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

import vikhr_fast

SCRIPT = Path(vikhr_fast.__file__).parent / "presets" / "slurm.sh"
PROGRAMS = {
    "srun": 'exec "$@"',
    "torchrun": """
trap 'echo "saved, with $TORCH_ELASTIC_SHUTDOWN_TIMEOUT s" >> "$LOG"; exit 1' TERM
echo "$$" > "$LOG.task"
for _ in $(seq 100); do test -e "$LOG.end" && exit "$(cat "$LOG.end")"; sleep 0.05; done""",
    "scancel": 'echo "scancel $*" >> "$LOG"; kill -s "$2" "$(cat "$LOG.task")"',
    "scontrol": 'case $1 in show) echo first ;; *) echo "scontrol $*" >> "$LOG" ;; esac',
}


def start(directory: Path) -> tuple[subprocess.Popen[str], Path]:
    log = directory / "log"
    log.touch()
    for name, text in PROGRAMS.items():
        (directory / name).write_text(f"#!/bin/bash\n{text}\n")
        (directory / name).chmod(0o755)
    names = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "LOG": str(log)}
    environment = {**os.environ, **names, "PATH": f"{directory}:{os.environ['PATH']}"}
    return subprocess.Popen(["bash", str(SCRIPT)], env=environment, text=True), log


def test_the_warning_before_the_time_limit_saves_and_requeues(tmp_path: Path) -> None:
    assert "#SBATCH --signal B:USR1@300\n" in SCRIPT.read_text()
    process, log = start(tmp_path)
    while not log.with_suffix(".task").exists():
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)  # to the script alone, as B: asks for
    process.wait(timeout=30)
    assert log.read_text().splitlines() == ["scancel --signal TERM 7", "saved, with 270 s", "scontrol requeue 7"]


@pytest.mark.parametrize("code", [0, 1])
def test_a_run_that_ends_by_itself_is_not_requeued(tmp_path: Path, code: int) -> None:
    process, log = start(tmp_path)
    log.with_suffix(".end").write_text(str(code))
    assert process.wait(timeout=30) == code
    assert log.read_text() == ""
