"""What the plan says of the paper's runs, and of those that don't fit."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from vikhr_fast.config import PRESETS
from vikhr_fast.errors import InputError
from vikhr_fast.plan.command import Plan, plan
from vikhr_fast.plan.speed import HARDWARE, LINKS, NETWORK


def numbers(capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    plan(Plan(**options, json=True))
    return json.loads(capsys.readouterr().out)


def changed(tmp_path: Path, preset: str, *changes: tuple[str, str]) -> Path:
    """A copy of a preset with some lines replaced."""
    text = (PRESETS / f"{preset}.toml").read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    file = tmp_path / "changed.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_pretraining_takes_fewer_hours_than_the_papers_thousand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = numbers(capsys, matrix_rate=270)
    assert result["parameters"] == 7_307_268_096
    assert result["fits"]
    assert result["gpu_hours"] < 850
    fastest, slowest = result["gpu_hours_range"]
    assert fastest < result["gpu_hours"] < slowest < 1000
    assert result["money"] == pytest.approx(2 * result["gpu_hours"])
    assert 11e9 / result["speed"]["tokens_per_second"] / 3600 == pytest.approx(result["gpu_hours"])
    quarter = changed(tmp_path, "vikhr-7b-pretrain", ("[kl]", "[kl]\nfraction = 0.25"))
    assert numbers(capsys, config=quarter, matrix_rate=270)["combinations"][0]["gpu_hours"] < 690


def test_instruction_tuning_has_no_reference(capsys: pytest.CaptureFixture[str]) -> None:
    result = numbers(capsys, config=Path("vikhr-7b-instruct"))
    assert result["tokens"] == 3 * 680_000 * 430
    assert result["gpu_hours"] < 60  # the paper's
    assert result["fits"]
    assert "reference" not in result["memory_bytes"]
    assert {one["reference"] for one in result["combinations"]} == {"none"}
    assert not any(call["of"].startswith("reference") for call in result["collectives"])


def test_the_original_is_counted_as_the_models_equal_and_the_plan_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = changed(tmp_path, "vikhr-7b-pretrain", ("[kl]", '[kl]\nreference = "mistral"'))
    plan(Plan(config=original))
    assert "mistral is counted as a model of the trained one's shape" in capsys.readouterr().out
    plan(Plan())
    assert "is counted as" not in capsys.readouterr().out


@pytest.mark.parametrize("preset", ["vikhr-7b-pretrain", "vikhr-7b-instruct"])
def test_presets_are_the_fastest_that_fits(capsys: pytest.CaptureFixture[str], preset: str) -> None:
    result = numbers(capsys, config=Path(preset))
    assert result["combinations"][0]["settings"] == []
    hours = [one["gpu_hours"] for one in result["combinations"]]
    assert hours == sorted(hours)
    assert hours[0] == result["gpu_hours"]
    ways = {(one["model"], one["reference"] == "whole", one["gradients"]) for one in result["combinations"]}
    assert len(ways) == len(result["combinations"]) == (8 if preset == "vikhr-7b-pretrain" else 4)
    assert all(one["needed_bytes"] <= result["available_bytes"] for one in result["combinations"])
    plan(Plan(config=Path(preset)))
    assert "This configuration is as fast as any" in capsys.readouterr().out


def test_what_the_paper_ran_is_a_flag_away_and_the_plan_says_what_it_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Micro-batches of 3, gathered twice each, gradients once a step: what the advice is made of."""
    lines = [
        ("micro_batch = 8 # on 8 GPUs of 80 GB; the", "micro_batch = 3 # the"),
        ("keep_gathered = true ", "keep_gathered = false "),
        ("reference_micro_batches = 16", "reference_micro_batches = 1"),
        ("reduce_each_micro_batch = true", "reduce_each_micro_batch = false"),
    ]
    config = changed(tmp_path, "vikhr-7b-pretrain", *lines)
    before, after = numbers(capsys, config=config), numbers(capsys)
    assert before["fits"]
    best = before["combinations"][0]
    assert best["settings"] == [
        "batch.micro_batch = 8",
        "runtime.keep_gathered = true",
        "runtime.reference_micro_batches = 16",
        "runtime.reduce_each_micro_batch = true",
    ]
    assert best["gpu_hours"] == after["gpu_hours"] < 0.93 * before["gpu_hours"]
    # 128 micro-batches copy out 2 x 14.6 GB of the model and 14.6 of the reference, and add up 73 GB of gradients
    copied = 128 * (2 * 3 * 14.6 + 73)
    assert before["speed"]["copy_bytes"] / 1e9 == pytest.approx(copied, rel=0.01)
    plan(Plan(config=config))
    said = " ".join(capsys.readouterr().out.split())
    assert "Fastest: batch.micro_batch = 8, runtime.keep_gathered = true, runtime.reference_micro_batches = 16" in said
    now = before["speed"]["copy_bytes"]
    assert f"a step copies {best['copy_bytes'] / 1e9:,.0f} GB instead of {now / 1e9:,.0f} and sends" in said


def test_collectives_are_printed_where_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    plan(Plan(collectives=True))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["model:", "layer", "all-gather", "8", "32", "436.224", "12.214"] in rows
    assert ["reference:", "layer", "all-gather", "8", "96", "436.224", "36.643"] in rows
    assert ["gradients:", "layer", "reduce-scatter", "8", "1,536", "872.448", "1,172.570"] in rows
    plan(Plan())
    assert "all-gather" not in capsys.readouterr().out


def test_one_large_gpu_holds_the_preset_made_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert numbers(capsys, config=Path("vikhr-7b-1gpu"), gpu="h200", gpus=1)["fits"]


def test_what_does_not_fit_names_the_nearest_that_does(capsys: pytest.CaptureFixture[str]) -> None:
    result = numbers(capsys, gpu="h200", gpus=1)
    assert not result["fits"]
    assert result["nearest_fit"] == 'batch.micro_batch = 2, optimizer.master = "split"'
    plan(Plan(gpu="h200", gpus=1))
    assert "Does not fit. Nearest that does: batch.micro_batch = 2, optimizer.master =" in " ".join(
        capsys.readouterr().out.split()
    )
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
    between = [call for call in two["collectives"] if call["among"] == "replicas"]
    assert sum(call["times"] for call in between) == 35  # of each part's gradients, once a step
    sent = sum(call["link_bytes"] for call in between)
    assert sent == pytest.approx(4 * one["parameters"] / 8)
    inside = two["speed"]["link_bytes"] - sent
    seconds = inside / (HARDWARE["a100-80"].link * LINKS.likely) + sent / NETWORK
    assert two["speed"]["communication_seconds"] == pytest.approx(seconds)
    with pytest.raises(InputError, match=r"runtime.replicas 2 of .* doesn't divide it"):
        plan(Plan(config=file, gpus=1))


def test_measured_rates_replace_the_data_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"ceilings": {"gemm_flops_per_second": 132e12, "copy_bytes_per_second": 0.875e12}}))
    measured, assumed = numbers(capsys, measured=file), numbers(capsys)
    assert measured["gpu_hours"] == pytest.approx(2 * assumed["gpu_hours"], rel=0.01)
    widths = [max(one["gpu_hours_range"]) / min(one["gpu_hours_range"]) for one in (measured, assumed)]
    assert 1 < widths[0] < widths[1]  # what is measured isn't uncertain any more
    slow = numbers(capsys, matrix_rate=132)["gpu_hours"]
    assert assumed["gpu_hours"] < slow < measured["gpu_hours"]
    with pytest.raises(InputError, match="give --measured or --matrix-rate, not both"):
        plan(Plan(measured=file, matrix_rate=132))
    rates = b'{"ceilings": {"gemm_flops_per_second": %b, "copy_bytes_per_second": 1}}'
    odd = [rates % rate for rate in (b"0", b"null", b"1e400", b"1" * 5000)]
    for damaged in (b"{}", b"[]", b"\xff\x00", b"[" * 100_000, *odd):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"results.json: damaged: .*; give a results.json of bench/gpu.py$"):
            plan(Plan(measured=file))


@pytest.mark.parametrize(
    ("gpu", "measured"),
    [
        ("a100-80", "nothing on this GPU yet; products: 256.4 (PCIe) and 267.9 TFLOP/s (SXM)"),
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
    ("change", "message"),
    [
        (("[kl]", "[kl]\nfraction = 0.3"), r"kl.fraction: 0.3 of batch.sequences_per_step 3072 is 921.6 sequences"),
        (('dtype = "bfloat16"', 'dtype = "float32"'), r"runtime.dtype: float32 of .*: it knows bfloat16 alone"),
        (("[optimizer]", '[optimizer]\nmoments = "bfloat16"'), r'optimizer.moments: "bfloat16" needs'),
    ],
)
def test_what_training_refuses_is_not_planned(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(Plan(config=changed(tmp_path, "vikhr-7b-pretrain", change)))


def test_the_advice_says_nothing_that_is_not_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    too_large = changed(tmp_path, "vikhr-7b-pretrain", ("micro_batch = 8 ", "micro_batch = 12 "))
    plan(Plan(config=too_large))
    said = " ".join(capsys.readouterr().out.split())
    assert "Fastest that fits: batch.micro_batch = 8: 864 GPU-hours. " in said
    assert "instead of" not in said.partition("Fastest that fits")[2].partition("Assumed")[0]
    larger_groups = changed(tmp_path, "vikhr-7b-pretrain", ("micro_batches = 16", "micro_batches = 24"))
    assert numbers(capsys, config=larger_groups)["combinations"][0]["settings"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": 0}, "gpus: 0, must be more than 0"),
        ({"gpus": 7}, "isn't a multiple"),
        ({"matrix_rate": 0.0}, "matrix-rate"),
        ({"matrix_rate": float("nan")}, "matrix-rate: nan, must be more than 0"),
        ({"tokens": float("inf")}, "tokens: inf, must be more than 0"),
        ({"price": -1.0}, "price"),
        ({"config": Path("no-such")}, "no such config"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(Plan(**options))
