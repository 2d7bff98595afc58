"""bench/gpu.py without a GPU: every check, every contestant that a CPU can run, and the real schema."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import vikhr_kernels


def run(pytestconfig: pytest.Config, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = pytestconfig.rootpath / "bench" / "gpu.py"
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)


def test_dry_run_writes_what_the_schema_wants(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    finished = run(pytestconfig, "--dry-run", "--out", str(tmp_path), "--commit", "abc")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    attention = {f"attention{kind}_{way}" for kind in ("", "_packed", "_window") for way in ("forward", "backward")}
    kernels = {"linear_ce_kl", "linear_ce", "rms_norm", "rope", "swiglu", "adamw"} | attention
    assert {check["kernel"] for check in results["checks"] if check["passed"]} == kernels
    measured = {(m["kernel"], m["contestant"]) for m in results["measurements"]}
    assert {(kernel, "ours") for kernel in kernels} <= measured
    assert {(kernel, name) for kernel in kernels - attention for name in ("eager", "torch.compile")} <= measured
    assert all((tmp_path / f"{kernel}.svg").stat().st_size > 1000 for kernel in kernels)
    assert results["dry_run"]
    assert results["commit"] == "abc"


def test_dry_run_of_training(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    """All contestants do the same work: equal losses; what lives from step to step is what the plan says."""
    finished = run(pytestconfig, "--dry-run", "--train", "--out", str(tmp_path), "--commit", "abc")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["skipped"] == []
    names = {"ours", "ours, compiled layers", "ours, float8 reference", "transformers"}
    micro_batches = [t for t in results["training"] if not t["optimiser"]]
    assert {(t["contestant"], t["sequences"]) for t in micro_batches} == {(name, 2) for name in names}
    for t in micro_batches:
        assert t["flops_per_second"] == pytest.approx(t["flops"] / t["milliseconds"] * 1e3)
        assert t["gemm_share"] == pytest.approx(t["flops_per_second"] / results["ceilings"]["gemm_flops_per_second"])
    steps = [t for t in results["training"] if t["optimiser"]]
    assert [t["micro_batches"] for t in steps] == [8]
    for step in steps:
        for name, size in step["resident_bytes"].items():
            assert size == pytest.approx(step["planned_bytes"][name], rel=0.05), name
    assert (tmp_path / "training.svg").stat().st_size > 1000


def test_a_contestant_that_does_other_work_is_named(gpu: Any) -> None:
    same = {"sequences": 3, "optimiser": False}
    training = importlib.import_module("schema").Training
    lines = [
        training.model_construct(contestant=name, loss=loss, **same)
        for name, loss in (("ours", 10.0), ("alike", 10.00001), ("other", 10.1), ("ours, float8", 10.1))
    ]
    assert gpu.unlike(lines, dry_run=True) == ["other x 3: loss 10.100000, not 10.000000"]


def test_wrong_kernel_is_named(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    finished = run(pytestconfig, "--dry-run", "--out", str(tmp_path), "--only", "attention")
    assert finished.returncode == 2
    assert "no kernel attention" in finished.stderr
    finished = run(pytestconfig, "--dry-run", "--out", str(tmp_path), "--only", "rope", "--train")
    assert finished.returncode == 2
    assert "--only is for kernels" in finished.stderr
    finished = run(pytestconfig, "--dry-run", "--out", str(tmp_path), "--train", "5")
    assert finished.returncode == 2
    assert "--train 5: must be one of 2, or nothing" in finished.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    finished = run(pytestconfig, "--out", str(tmp_path))
    assert finished.returncode == 2
    assert "--dry-run" in finished.stderr


@pytest.fixture
def gpu(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath / "bench"))
    return importlib.import_module("gpu")


@pytest.mark.parametrize("name", ["linear_ce", "linear_ce_kl"])
@pytest.mark.parametrize("seed", range(4))  # of healthy ones none fails by the luck of a number
@pytest.mark.parametrize("wrong", [0.0, 1e-4])
def test_an_error_of_the_loss_does_not_hide_behind_its_gradients(gpu: Any, wrong: float, seed: int, name: str) -> None:
    torch.manual_seed(seed)
    bench = gpu.Bench(dry_run=True)
    bench.dtype = torch.bfloat16  # its gradients round more than the float32 loss may be off
    case = gpu.all_cases(bench.sizes)[name]

    def by(operations: Any) -> Any:
        share = wrong if operations is vikhr_kernels else 0.0
        forward = case.by(operations)

        def shifted(inputs: Any) -> tuple[torch.Tensor, ...]:
            loss, *vectors = forward(inputs)
            return (loss + share * loss.detach(), *vectors)

        return shifted

    bench.check(dataclasses.replace(case, by=by))
    assert bench.checks[0].passed == (wrong == 0)


def test_a_contestant_that_breaks_loses_no_other(gpu: Any) -> None:
    bench = gpu.Bench(dry_run=True)
    case = dataclasses.replace(gpu.all_cases(bench.sizes)["swiglu"], peers={"broken": lambda: {}["no such name"]})
    bench.check(case)
    bench.measure(case)
    assert [skipped.contestant for skipped in bench.skipped] == ["broken"]
    assert {m.contestant for m in bench.measurements} == {"ours", "eager", "torch.compile"}


def test_recorded_results_are_of_the_schema(pytestconfig: pytest.Config, gpu: Any) -> None:
    recorded = list((pytestconfig.rootpath / "bench" / "results").glob("nvidia-*/*/results.json"))
    assert recorded
    for path in recorded:
        assert not gpu.Results.model_validate_json(path.read_text(encoding="utf-8")).dry_run
