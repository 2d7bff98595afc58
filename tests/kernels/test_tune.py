"""The tuner without a GPU: what it tries, chooses, keeps and refuses; only the measuring itself needs one."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from vikhr_kernels import attention_dispatch, dispatch, tune
from vikhr_kernels.aot import Compiled
from vikhr_kernels.attention_dispatch import KERNELS, LENGTHS, TABLE, AttentionConfiguration
from vikhr_kernels.machine_code import LoopCost

GPU = "NVIDIA Test 1/80GB"
FORWARD, QUERIES, KEYS = KERNELS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def compiled(kernel: str, choice: AttentionConfiguration, masked: float = 100, unmasked: float = 100) -> Compiled:
    loops = tuple(LoopCost("HGMMA", 1, 0, cycles, 10) for cycles in (masked, unmasked))
    return Compiled(90, kernel, choice, "", registers=200, spilled=0, shared=1000, loops=loops)


def of_equal_promise(kernel: str, choice: AttentionConfiguration) -> Compiled:
    if 128 in (choice.queries, choice.keys) and choice.num_warps == 4:
        raise RuntimeError("ptxas gave up")
    return compiled(kernel, choice)


def measure(kernel: str, choice: AttentionConfiguration) -> float:
    if (choice.queries, choice.keys, choice.num_stages) == (128, 128, 2):
        raise RuntimeError("out of resource: shared memory")
    wanted = (128, 128, 8) if kernel == FORWARD else (64, 64, 4)
    return 1.0 if (choice.queries, choice.keys, choice.num_warps) == wanted else 2.0


def tuned_with(console: Console, head_size: int = 128) -> attention_dispatch.Tuned:
    measures = {"short": measure, "long": lambda kernel, choice: 3 - measure(kernel, choice)}
    assert tune.tune(GPU, 90, torch.bfloat16, head_size, of_equal_promise, measures, console) == 0
    return attention_dispatch.read_tuned(GPU, 90)


def test_the_fastest_is_kept_and_read_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(record=True, width=200)
    monkeypatch.setitem(TABLE[90], FORWARD, {torch.bfloat16: dict.fromkeys(
        ((128, length) for length in LENGTHS), AttentionConfiguration(128, 128, 64, 8, 3, True))})  # fmt: skip
    tuned = tuned_with(console)
    assert set(tuned) == {(kernel, "torch.bfloat16", 128, length) for kernel in KERNELS for length in LENGTHS}
    short, long = (tuned[FORWARD, "torch.bfloat16", 128, length] for length in LENGTHS)
    assert (short.queries, short.keys, short.num_warps, short.descriptors) == (128, 128, 8, True)
    assert (long.queries, long.keys, long.num_warps) != (128, 128, 8)
    (file,) = (cache / "vikhr_kernels").iterdir()
    assert file == attention_dispatch.tuned_file(GPU, 90)
    text = console.export_text()
    assert f"{FORWARD}: 10 of 16 configurations compile, fit and spill little" in text
    assert "short documents: flash_attention_forward_kernel: 128x128, " in text
    assert "1.000 ms, as checked in 2.000 ms" in text


def test_what_cannot_run_is_named() -> None:
    console = Console(record=True, width=200)
    tuned_with(console)
    named = re.findall(r"(\w+) is passed over: (.*)", console.export_text())
    assert {reason for _, reason in named} == {"out of resource: shared memory"}


def test_another_head_size_keeps_what_was_tuned_before() -> None:
    for head_size in (64, 128):
        tuned = tuned_with(Console(quiet=True), head_size)
    assert {head_size for _, _, head_size, _ in tuned} == {64, 128}


@pytest.mark.parametrize(
    ("architecture", "kernel", "count"),
    [(90, FORWARD, 16), (90, QUERIES, 14), (90, KEYS, 8), (80, FORWARD, 32), (80, QUERIES, 28), (80, KEYS, 16)],
)
@pytest.mark.parametrize("length", LENGTHS)
def test_candidates_are_few_and_promise_most(architecture: int, count: int, kernel: str, length: str) -> None:
    """By the loop that documents of this length spend their time in, and by the pairs that a tile holds."""
    first = TABLE[architecture][kernel][torch.bfloat16][128, length]
    tried = tune.neighbours(kernel, first)
    assert len(set(tried)) == len(tried) == count
    assert first in tried
    rows = [one.keys if kernel == KEYS else one.queries for one in tried]
    assert all(n >= 16 * one.num_warps for n, one in zip(rows, tried, strict=True))
    in_turn = [compiled(kernel, one, 100 * i, 100 * (len(tried) - i)) for i, one in enumerate(tried, 1)]
    chosen = tune.candidates(first, in_turn, length)
    assert chosen[0] == first
    assert len(chosen) == len(set(chosen)) == tune.MOST
    promise = {one.configuration: tune.promised(one, length) for one in in_turn}
    left = [promise[one] for one in tried if one not in chosen]
    assert max(promise[one] for one in chosen[1:]) <= min(left)


def test_the_promise_is_of_the_busiest_pipe_or_of_all_that_groups_of_warps_share() -> None:
    """Two programs of 4 warps with 100 registers by shared memory, one of 8; masks count half in short documents."""
    small, large = AttentionConfiguration(128, 64, 64, 4, 2, True), AttentionConfiguration(128, 128, 128, 8, 2, True)
    loops = LoopCost("HGMMA", 100, 0, 900, 300), LoopCost("HGMMA", 60, 0, 500, 140)
    two = Compiled(90, FORWARD, small, "", registers=100, spilled=0, shared=113 * 1024, loops=loops)
    assert two.resident_programs == 2
    assert tune.promised(two, "long") == pytest.approx(500 / 64**2)
    assert tune.promised(two, "short") == pytest.approx(700 / 64**2)
    one = dataclasses.replace(two, shared=114 * 1024)
    assert one.resident_programs == 1
    assert tune.promised(one, "long") == pytest.approx((500 + 140 + 60) / 64**2)
    assert tune.promised(one, "short") == pytest.approx((700 + 220 + 80) / 64**2)
    wide = dataclasses.replace(one, configuration=large)
    assert tune.promised(wide, "long") == pytest.approx(500 / 128**2)
    assert dataclasses.replace(two, registers=255).resident_programs == 2
    assert dataclasses.replace(wide, registers=255).resident_programs == 1
    assert dataclasses.replace(two, registers=64, shared=0).resident_programs == 8


def test_what_does_not_fit_or_spills_much_is_not_measured() -> None:
    good = compiled(FORWARD, TABLE[90][FORWARD][torch.bfloat16][128, "short"])
    assert tune.worth_measuring(good)
    spills = LoopCost("HGMMA", 1, tune.MOST_LOCAL_BYTES + 4, 100, 10)
    for bad in ({"shared": 228 * 1024}, {"loops": good.loops[:1]}, {"loops": (good.loops[0], spills)}):
        assert not tune.worth_measuring(dataclasses.replace(good, **bad))


def test_all_together_but_for_the_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What is too large is counted and never measured."""

    def compile_one(kernel: str, choice: AttentionConfiguration) -> Compiled:
        return dataclasses.replace(compiled(kernel, choice), shared=1 << 20 if choice.keys < 128 else 1000)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: GPU)
    monkeypatch.setattr(dispatch, "architecture_of", lambda _: 90)
    monkeypatch.setattr(tune, "measure_on_gpu", lambda *_: lambda _, choice: choice.queries * choice.keys)
    monkeypatch.setattr(tune, "compile_for", lambda _: compile_one)
    assert tune.main(["--lengths", "512", "4096"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{FORWARD}: 4 of 16 configurations compile, fit and spill little" in printed
    tuned = attention_dispatch.read_tuned(GPU, 90)
    keys = {length: tuned[FORWARD, "torch.bfloat16", 128, length].keys for length in LENGTHS}
    assert keys == {"short": 64, "long": 128}  # as checked in, or among what fits


def test_what_a_tile_takes_each_pipe() -> None:
    """Four instructions a cycle, spilled registers of 32 threads at 128 bytes a cycle of shared memory's way."""
    assert LoopCost("HMMA", 100, 0, 90, 80).pipes(4) == (90, 80, 100)
    assert LoopCost("HMMA", 100, 16, 90, 80).pipes(8) == (90, 80 + 32, 200)


@pytest.mark.slow
def test_it_compiles_what_it_is_given() -> None:
    """In a process of its own: the compiler and the interpreter cannot share one."""
    program = """
from vikhr_kernels import tune
from vikhr_kernels.attention_dispatch import AttentionConfiguration
slow = AttentionConfiguration(64, 64, 32, 8, 2)
compiled = tune.compile_for(80)("flash_attention_forward_kernel", slow)
assert compiled.configuration == slow and len(compiled.loops) == 2
assert "cycles of shared memory a tensor cycle, over 1.4" in compiled.wrong(None)
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_what_was_tuned_for_one_architecture_is_not_taken_for_another() -> None:
    tuned_with(Console(quiet=True))
    assert attention_dispatch.read_tuned(GPU, 80) == {}


@pytest.mark.parametrize(("override", "architecture"), [("sm80", 80), ("sm86", 80), ("sm90", 90), ("sm100", 90)])
def test_the_table_is_that_of_what_triton_compiles_for(
    override: str, architecture: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_OVERRIDE_ARCH", override)
    dispatch._gpu_architecture.cache_clear()
    assert dispatch.architecture_of(torch.device("cuda", 0)) == architecture
    monkeypatch.setenv("TRITON_OVERRIDE_ARCH", "sm75")
    dispatch._gpu_architecture.cache_clear()
    with pytest.raises(ValueError, match=r"compute capability 8.0 or more, cuda:0 has 7.5"):
        dispatch.architecture_of(torch.device("cuda", 0))
    dispatch._gpu_architecture.cache_clear()


def test_what_was_checked_in_must_run() -> None:
    def broken(kernel: str, choice: AttentionConfiguration) -> float:
        raise RuntimeError(f"{kernel} {choice}")

    with pytest.raises(RuntimeError, match="flash_attention_forward_kernel"):
        tune.tune(GPU, 90, torch.bfloat16, 128, of_equal_promise, {"short": broken}, Console(quiet=True))
    assert attention_dispatch.read_tuned(GPU, 90) == {}


@pytest.mark.parametrize("damage", ["{", "[1]", json.dumps([{"kernel": "x", "dtype": "y", "head_size": 64}])])
def test_a_damaged_file_is_named(damage: str) -> None:
    file = attention_dispatch.tuned_file(GPU, 90)
    file.parent.mkdir(parents=True)
    file.write_text(damage, encoding="utf-8")
    with pytest.raises(ValueError, match=r"vikhr_kernels/NVIDIA-Test-1-80GB-sm90.*json: damaged.*delete it"):
        attention_dispatch.read_tuned(GPU, 90)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no CUDA device"),
        (["--lengths", "1024", "10000"], "--lengths: 10000 doesn't divide"),
        (["--lengths", "0", "8192"], "--lengths: 0"),
        (["--lengths", "8192", "1024"], "documents of 8192 tokens aren't short"),
        (["--lengths", "1024"], "--lengths"),
    ],
)
def test_wrong_use_is_one_clear_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        tune.main(arguments)
    assert message in capsys.readouterr().err.splitlines()[-1]
