"""bench/gpu.py without a GPU: every check, every contestant that a CPU can run, and the real schema."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def run(pytestconfig: pytest.Config, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = pytestconfig.rootpath / "bench" / "gpu.py"
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)


def test_dry_run_writes_what_the_schema_wants(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    finished = run(pytestconfig, "--dry-run", "--out", str(tmp_path))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    kernels = {"linear_ce_kl", "linear_ce", "rms_norm", "rope", "swiglu", "adamw"}
    assert {check["kernel"] for check in results["checks"] if check["passed"]} == kernels
    measured = {(m["kernel"], m["contestant"]) for m in results["measurements"]}
    assert {(kernel, name) for kernel in kernels for name in ("ours", "eager", "torch.compile")} <= measured
    assert all((tmp_path / f"{kernel}.svg").stat().st_size > 1000 for kernel in kernels)
    assert results["dry_run"]


def test_wrong_kernel_is_named(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    finished = run(pytestconfig, "--dry-run", "--out", str(tmp_path), "--only", "attention")
    assert finished.returncode == 2
    assert "no kernel attention" in finished.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    finished = run(pytestconfig, "--out", str(tmp_path))
    assert finished.returncode == 2
    assert "--dry-run" in finished.stderr
