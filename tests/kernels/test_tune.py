"""The tuner without a GPU: what it chooses, keeps and refuses; only the measuring itself needs one."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from vikhr_kernels import attention_dispatch, tune
from vikhr_kernels.attention_dispatch import KERNELS, AttentionConfiguration

GPU = "NVIDIA Test 1/80GB"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def measure(kernel: str, choice: AttentionConfiguration) -> float:
    if choice.num_stages == 4:
        raise RuntimeError("out of resource: shared memory")
    wanted = (64, 32, 4) if kernel == KERNELS[0] else (128, 64, 8)
    return 1.0 if (choice.queries, choice.keys, choice.num_warps) == wanted else 2.0


@pytest.mark.parametrize("architecture", [80, 90])
def test_the_fastest_is_kept_and_read_again(architecture: int, cache: Path) -> None:
    console = Console(record=True, width=200)
    assert tune.tune(GPU, architecture, torch.bfloat16, 128, measure, console) == 0
    tuned = attention_dispatch.read_tuned(GPU)
    assert set(tuned) == {(kernel, "torch.bfloat16", 128) for kernel in KERNELS}
    forward = tuned[KERNELS[0], "torch.bfloat16", 128]
    assert (forward.queries, forward.keys, forward.num_warps) == (64, 32, 4)
    assert forward.descriptors == (architecture == 90)
    assert "1.000 ms, as checked in 2.000 ms" in console.export_text()
    (file,) = (cache / "vikhr_kernels").iterdir()
    assert file == attention_dispatch.tuned_file(GPU)


def test_another_head_size_keeps_what_was_tuned_before() -> None:
    for head_size in (64, 128):
        tune.tune(GPU, 90, torch.bfloat16, head_size, measure, Console(quiet=True))
    assert {head_size for _, _, head_size in attention_dispatch.read_tuned(GPU)} == {64, 128}


def test_what_was_checked_in_must_run() -> None:
    def broken(kernel: str, choice: AttentionConfiguration) -> float:
        raise RuntimeError(f"{kernel} {choice}")

    with pytest.raises(RuntimeError, match="flash_attention_forward_kernel"):
        tune.tune(GPU, 90, torch.bfloat16, 128, broken, Console(quiet=True))
    assert attention_dispatch.read_tuned(GPU) == {}


@pytest.mark.parametrize("damage", ["{", "[1]", json.dumps([{"kernel": "x", "dtype": "y", "head_size": 64}])])
def test_a_damaged_file_is_named(damage: str) -> None:
    file = attention_dispatch.tuned_file(GPU)
    file.parent.mkdir(parents=True)
    file.write_text(damage, encoding="utf-8")
    with pytest.raises(ValueError, match=r"vikhr_kernels/NVIDIA-Test-1-80GB.*json: damaged.*delete it"):
        attention_dispatch.read_tuned(GPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "no CUDA device"), (["--length", "1000"], "doesn't divide"), (["--length", "0"], "--length")],
)
def test_wrong_use_is_one_clear_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        tune.main(arguments)
    assert message in capsys.readouterr().err.splitlines()[-1]
