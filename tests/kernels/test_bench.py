"""bench/gpu.py without a GPU: every check, every contestant that a CPU can run, and the real schema."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vikhr_kernels


def run(pytestconfig: pytest.Config, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = pytestconfig.rootpath / "bench" / "gpu.py"
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_dry_run_goes_through_everything(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    """All contestants of training do the same work; what lives from step to step is what the plan says."""
    finished = run(pytestconfig, "--dry-run", "--out", str(tmp_path), "--commit", "abc", "--layers", "1")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    attention = {f"attention{kind}_{way}" for kind in ("", "_packed", "_window") for way in ("forward", "backward")}
    kernels = {
        "linear_ce_kl",
        "linear_ce",
        "linear_ce_kl_buckets",
        "rms_norm",
        "rope",
        "swiglu",
        "scale",
        "adamw",
    } | attention
    assert {check["kernel"] for check in results["checks"] if check["passed"]} == kernels
    measured = {(m["kernel"], m["contestant"]) for m in results["measurements"]}
    assert {(kernel, "ours") for kernel in kernels} <= measured
    assert {(kernel, name) for kernel in kernels - attention for name in ("eager", "torch.compile")} <= measured
    assert all((tmp_path / f"{kernel}.svg").stat().st_size > 1000 for kernel in (*kernels, "training"))
    assert results["dry_run"]
    assert results["commit"] == "abc"
    names = {"ours", "transformers, dense mask", "transformers, varlen"}
    assert {equal["contestant"] for equal in results["equal_work"] if equal["passed"]} == names
    micro_batches = [t for t in results["training"] if not t["optimiser"]]
    assert {(t["contestant"], t["sequences"], t["model"]) for t in micro_batches} == {
        (name, 2, "tiny, 1 of 2 layers") for name in names
    }
    for t in micro_batches:
        assert t["turns"] == 2
        assert t["flops_per_second"] == pytest.approx(t["flops"] / t["milliseconds"] * 1e3)
        assert t["gemm_share"] == pytest.approx(t["flops_per_second"] / results["ceilings"]["gemm_flops_per_second"])
    steps = [t for t in results["training"] if t["optimiser"]]
    assert [t["micro_batches"] for t in steps] == [8]
    for step in steps:
        for name, size in step["resident_bytes"].items():
            assert size == pytest.approx(step["planned_bytes"][name], rel=0.05), name
    assert results["left_out"] == []
    states = results["device_states"]
    assert [state["after"] for state in states][:3] == ["products and copies", "training x 2", "attention_forward"]
    if not torch.cuda.is_available():
        assert results["versions"]["driver"] == "missing"
        assert {state["sm_mhz"] for state in states} == {None}


@pytest.mark.slow
def test_a_budget_that_is_over_leaves_everything_out_and_says_so(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    finished = run(pytestconfig, "--dry-run", "--train", "--budget", "0", "--out", str(tmp_path))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["left_out"] == ["training x 2", "training x 2, whole step"]
    assert results["training"] == []
    assert "left out for want of time: training x 2, training x 2, whole step" in finished.stdout


def test_a_step_begins_only_where_its_usual_time_is_left(gpu: Any) -> None:
    steps = [gpu.Step(name, seconds, lambda: None) for name, seconds in (("a", 1), ("long", 1000), ("b", 1))]
    findings = gpu.Findings()
    assert [step.name for step in gpu.within(steps, 100, findings, dry_run=False)] == ["a", "b"]
    assert findings.left_out == ["long"]
    assert len(list(gpu.within(steps, None, findings, dry_run=False))) == 3


def test_contestants_take_turns_and_a_broken_one_stops_nobody(gpu: Any) -> None:
    order: list[str] = []

    def breaks(given: str) -> None:
        if len(order) > 5:
            raise RuntimeError("broke")
        order.append(given)

    stopwatch, failures = gpu.Stopwatch(torch.device("cpu"), turns=3, seconds=0.0, least=1), []
    lane = importlib.import_module("stopwatch").Lane
    lanes = {
        "a": lane(order.append, ["a"], lambda: order.append("rests")), "b": lane(breaks, ["b"]),
        "c": lane(order.append, ["c"]),
    }  # fmt: skip
    times = stopwatch.in_turns(lanes, lambda name, problem: failures.append((name, str(problem))))
    assert order == [*"aa", "rests", *"bbcc", *"aa", "rests", *"cc", *"aa", "rests", *"cc"]
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "c": 3}
    assert failures == [("b", "broke")]


def test_clocks_are_read_from_nvidia_smi(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = subprocess.CompletedProcess([], 0, "570.1, 1980, 2619, 650.5, [N/A], 61\n", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1-2"))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    state = gpu.machine.device_state("a step")
    assert state.model_dump() == {
        "after": "a step", "sm_mhz": 1980, "memory_mhz": 2619, "watts": 650.5, "watts_limit": None, "celsius": 61,
    }  # fmt: skip
    assert gpu.machine.versions()["driver"] == "570.1"
    answer.returncode = 9
    assert gpu.machine.device_state("a step").sm_mhz is None
    assert gpu.machine.versions()["driver"] == "missing"


def test_documents_that_see_each_other_are_refused_before_timing(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    training = importlib.import_module("training")
    honest, dense_rows = training.contestants, importlib.import_module("contestants").dense_rows

    def leaking_rows(batch: Any, length: int) -> dict[str, Any]:
        given = dense_rows(batch, length)
        return given | {"attention_mask": torch.ones_like(given["attention_mask"]).tril()}

    def with_a_leak(student: Path, reference: Path, ranks: Any, dtype: torch.dtype, length: int) -> dict[str, Any]:
        peer = importlib.import_module("contestants").Transformers(student, reference, ranks.device, dtype, length)
        leaking = {"leaking": lambda again: peer.contestant(again, "sdpa", leaking_rows)}
        return honest(student, reference, ranks, dtype, length) | leaking

    monkeypatch.setattr(training, "contestants", with_a_leak)
    findings = gpu.Findings()
    stopwatch, sizes = gpu.Stopwatch.hasty(torch.device("cpu")), gpu.TrainSizes.tiny()
    with gpu.TrainBench(findings, stopwatch, sizes, torch.float32, gemm=1.0) as bench:
        bench.micro_batches(2)
    assert {equal.contestant: equal.passed for equal in findings.equal_work} == {
        "ours": True, "transformers, dense mask": True, "transformers, varlen": True, "leaking": False,
    }  # fmt: skip
    assert "leaking" not in {t.contestant for t in findings.training}
    (skipped,) = findings.skipped
    assert skipped.reason.startswith("does other work: loss off by")


@pytest.mark.slow
def test_the_step_on_a_cpu_has_the_same_contestants(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu_step = importlib.import_module("cpu_step")
    monkeypatch.setattr(cpu_step, "SHAPES", {"tiny": gpu.TrainSizes.tiny()})
    assert cpu_step.main([str(tmp_path / "out.json"), "--threads", "1", "--seconds", "0", "--shapes", "tiny"]) == 0
    results = gpu.Results.model_validate_json((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [t.contestant for t in results.training] == ["ours", "transformers, dense mask", "transformers, varlen"]
    with pytest.raises(SystemExit):
        cpu_step.main([str(tmp_path / "out.json"), "--shapes", "large"])
    assert "--shapes: no large; there are tiny" in capsys.readouterr().err


def test_a_contestant_that_does_other_work_at_full_size_is_named(gpu: Any) -> None:
    same = {"sequences": 3, "optimiser": False}
    training = importlib.import_module("schema").Training
    lines = [
        training.model_construct(contestant=name, loss=loss, **same)
        for name, loss in (("ours", 10.0), ("alike", 10.00001), ("other", 10.1))
    ]
    assert gpu.unlike(lines, torch.float32) == ["other x 3: loss 10.100000, not 10.000000"]


@pytest.mark.slow
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
    finished = run(pytestconfig, "--dry-run", "--out", str(tmp_path), "--layers", "3")
    assert finished.returncode == 2
    assert "--layers 3: must be 1 to 2" in finished.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    finished = run(pytestconfig, "--out", str(tmp_path))
    assert finished.returncode == 2
    assert "--dry-run" in finished.stderr


@pytest.fixture
def gpu(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath / "bench"))
    return importlib.import_module("gpu")


def kernel_bench(gpu: Any, dtype: torch.dtype) -> Any:
    stopwatch = gpu.Stopwatch.hasty(torch.device("cpu"))
    return gpu.KernelBench(gpu.Findings(), stopwatch, gpu.Sizes.tiny(), dtype)


@pytest.mark.parametrize("name", ["linear_ce", "linear_ce_kl", "linear_ce_kl_buckets"])
@pytest.mark.parametrize("seed", range(4))  # of healthy ones none fails by the luck of a number
@pytest.mark.parametrize("wrong", [0.0, 1e-4])
def test_an_error_of_the_loss_does_not_hide_behind_its_gradients(gpu: Any, wrong: float, seed: int, name: str) -> None:
    torch.manual_seed(seed)
    bench = kernel_bench(gpu, torch.bfloat16)  # its gradients round more than the float32 loss may be off
    case = gpu.all_cases(bench.sizes)[name]

    def by(operations: Any) -> Any:
        share = wrong if operations is vikhr_kernels else 0.0
        forward = case.by(operations)

        def shifted(inputs: Any) -> tuple[torch.Tensor, ...]:
            loss, *vectors = forward(inputs)
            return (loss + share * loss.detach(), *vectors)

        return shifted

    bench.check(dataclasses.replace(case, by=by))
    assert bench.findings.checks[0].passed == (wrong == 0)


@pytest.mark.slow
def test_a_contestant_that_breaks_loses_no_other(gpu: Any) -> None:
    bench = kernel_bench(gpu, torch.float32)
    case = dataclasses.replace(gpu.all_cases(bench.sizes)["swiglu"], peers={"broken": lambda: {}["no such name"]})
    bench.check(case)
    bench.measure(case)
    assert [skipped.contestant for skipped in bench.findings.skipped] == ["broken"]
    assert {m.contestant for m in bench.findings.measurements} == {"ours", "eager", "torch.compile"}


def test_recorded_results_are_of_the_schema(pytestconfig: pytest.Config, gpu: Any) -> None:
    recorded = list((pytestconfig.rootpath / "bench" / "results").glob("nvidia-*/*/results.json"))
    assert recorded
    for path in recorded:
        assert not gpu.Results.model_validate_json(path.read_text(encoding="utf-8")).dry_run
