"""What the plan says of the paper's runs, and of those that don't fit."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from vikhr_fast.config import PRESETS
from vikhr_fast.errors import InputError
from vikhr_fast.plan.command import Plan, plan


def numbers(capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    plan(Plan(**options, json=True))
    return json.loads(capsys.readouterr().out)


def test_the_papers_pretraining_takes_its_thousand_gpu_hours(capsys: pytest.CaptureFixture[str]) -> None:
    result = numbers(capsys)
    assert result["parameters"] == 7_307_268_096
    assert result["gpu_hours"] == pytest.approx(1000, rel=0.02)
    assert result["speed"]["tokens_per_second"] == pytest.approx(3055, rel=0.02)
    assert result["speed"]["training_share"] == pytest.approx(0.43, abs=0.005)
    assert result["fits"]
    assert result["money"] == pytest.approx(2 * result["gpu_hours"])


def test_the_papers_instruction_tuning_takes_its_sixty_gpu_hours(capsys: pytest.CaptureFixture[str]) -> None:
    result = numbers(capsys, config=Path("vikhr-7b-instruct"))
    assert result["tokens"] == 3 * 680_000 * 430
    assert result["gpu_hours"] == pytest.approx(60, rel=0.02)
    assert result["fits"]
    assert "reference" not in result["memory_bytes"]


def test_one_large_gpu_holds_the_preset_made_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert numbers(capsys, config=Path("vikhr-7b-1gpu"), gpu="h200", gpus=1)["fits"]


def test_what_does_not_fit_names_the_nearest_that_does(capsys: pytest.CaptureFixture[str]) -> None:
    result = numbers(capsys, gpu="h200", gpus=1)
    assert not result["fits"]
    assert result["nearest_fit"] == 'optimizer.master = "split", batch.micro_batch = 2'
    plan(Plan(gpu="h200", gpus=1))
    assert "Does not fit. Nearest that does: optimizer.master =" in " ".join(capsys.readouterr().out.split())
    assert numbers(capsys, gpus=1)["nearest_fit"].startswith("--gpus ")


def test_more_gpus_need_less_memory_each(capsys: pytest.CaptureFixture[str]) -> None:
    needed = [numbers(capsys, gpus=gpus)["needed_bytes"] for gpus in (2, 4, 8, 16)]
    assert needed == sorted(needed, reverse=True)


def test_replicas_take_the_memory_of_one_and_the_time_of_their_sums(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = (PRESETS / "vikhr-7b-pretrain.toml").read_text()
    file = tmp_path / "replicas.toml"
    file.write_text(preset.replace("[runtime]", "[runtime]\nreplicas = 2"))
    one, two = numbers(capsys, gpus=8), numbers(capsys, config=file, gpus=16)
    assert two["memory_bytes"] == one["memory_bytes"]
    assert two["gpu_hours"] == pytest.approx(one["gpu_hours"], rel=0.01)
    assert two["speed"]["communication_seconds"] > one["speed"]["communication_seconds"] / 2 + 0.1
    with pytest.raises(InputError, match=r"runtime.replicas 2 of .* doesn't divide it"):
        plan(Plan(config=file, gpus=1))


def test_measured_rates_replace_the_data_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"ceilings": {"gemm_flops_per_second": 156e12, "copy_bytes_per_second": 1e12}}))
    assert numbers(capsys, measured=file)["gpu_hours"] == pytest.approx(2 * numbers(capsys)["gpu_hours"], rel=0.02)
    for damaged in (b"{}", b"\xff\x00", b'{"ceilings": {"gemm_flops_per_second": 0, "copy_bytes_per_second": 1}}'):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"results.json: no results.json of bench/gpu.py, or a damaged one$"):
            plan(Plan(measured=file))


@pytest.mark.parametrize(
    ("gpu", "measured"),
    [
        ("a100-80", "nothing on this GPU yet"),
        ("h100", "at 796 to 804 TFLOP/s"),
        ("h200", "64.6% with 3 x 1,024 tokens, 74.0%"),
    ],
)
def test_beside_what_is_assumed_stands_what_was_measured(
    capsys: pytest.CaptureFixture[str], gpu: Literal["a100-80", "h100", "h200"], measured: str
) -> None:
    plan(Plan(gpu=gpu))
    assert measured in " ".join(capsys.readouterr().out.split()).partition("Measured: ")[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": 0}, "gpus: 0, must be more than 0"),
        ({"gpus": 7}, "isn't a multiple"),
        ({"efficiency": 0.0}, "efficiency"),
        ({"efficiency": float("nan")}, "efficiency: nan, must be more than 0"),
        ({"tokens": float("inf")}, "tokens: inf, must be more than 0"),
        ({"price": -1.0}, "price"),
        ({"config": Path("no-such")}, "no such config"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(Plan(**options))
