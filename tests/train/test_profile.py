"""A profiled run: trace and table are written, no bit changes, and the loader works ahead."""

import dataclasses
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList
from training_runs import make_config

from vikhr_fast.data.prefetch import prefetched
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.plan.memory import Parameters
from vikhr_fast.plan.speed import attention_flops
from vikhr_fast.train.inputs import open_inputs
from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import METRICS
from vikhr_fast.train.profile import summarise


@pytest.mark.slow
def test_trace_table_and_equal_losses(workspace: Path, tmp_path: Path) -> None:
    losses = []
    for name, steps in (("plain", 0), ("profiled", 2)):
        config = make_config(workspace, tmp_path / name, schedule={"max_steps": 6})
        train(type(config)(**{**config.__dict__, "profile": steps}))
        losses.append([line["loss"] for line in read_lines(tmp_path / name / METRICS)])
    assert losses[0] == losses[1]
    assert not (tmp_path / "plain" / "profile").exists()
    trace = json.loads((tmp_path / "profiled" / "profile" / "rank-0.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert {"forward", "backward", "update"} <= set(names)
    text = (tmp_path / "profiled" / "profile" / "rank-0.txt").read_text()
    assert "aten::mm" in text
    summary, table = text.split("\n\n", 1)
    shares = {name: float(share) for name, share in re.findall(r"([\w']+) ([\d.]+)%", summary)}
    phases = ("reference", "forward", "backward", "norm", "update", "loader", "bookkeeping")
    assert sum(shares[name] for name in phases) == pytest.approx(100, abs=0.1)
    assert min(shares[name] for name in phases) >= 0
    assert shares["reference"] + shares["forward"] + shares["backward"] > 60
    # the summary's products are those of the table
    times = {row[0]: float(row[1]) for row in re.findall(r"^ *(aten::\w+) +([\d.]+)%", table, re.MULTILINE)}
    products = sum(times.get(name, 0.0) for name in ("aten::mm", "aten::bmm", "aten::addmm"))
    assert products <= shares["products"] + 0.1


def test_a_gpus_own_events_are_not_counted_again() -> None:
    """Beside operations and the named parts of a step, a GPU's recording has kernels and copies of those parts."""

    def event(key: str, device: DeviceType, cpu: float, gpu: float) -> SimpleNamespace:
        return SimpleNamespace(
            key=key,
            device_type=device,
            count=1,
            cpu_time_total=cpu,
            self_cpu_time_total=cpu,
            self_device_time_total=gpu,
        )

    events = [
        event("ProfilerStep*", DeviceType.CPU, 10.0, 0.0),
        *(event(name, DeviceType.CPU, 2.0, 0.0) for name in ("loader", "forward", "backward", "norm", "update")),
        event("aten::mm", DeviceType.CPU, 1.0, 6.0),
        event("aten::add", DeviceType.CPU, 1.0, 2.0),
        event("ProfilerStep*", DeviceType.CUDA, 0.0, 8.0),
        event("forward", DeviceType.CUDA, 0.0, 8.0),
        event("void cutlass::Kernel2<...>", DeviceType.CUDA, 0.0, 6.0),
        event("void at::native::vectorized_elementwise_kernel<...>", DeviceType.CUDA, 0.0, 2.0),
    ]
    summary = summarise(cast(EventList, events), on_gpu=True)
    assert summary.products == 0.75
    assert summary.phases["forward"] == 0.2


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "recorded"), [(2, 0), (3, 1), (5, 3)])
def test_a_shorter_run_is_recorded_as_far_as_it_goes(
    workspace: Path, tmp_path: Path, steps: int, recorded: int
) -> None:
    config = make_config(workspace, tmp_path / "run", schedule={"max_steps": steps})
    train(dataclasses.replace(config, profile=9))
    file = tmp_path / "run" / "profile" / "rank-0.txt"
    assert file.exists() == (recorded > 0)
    if recorded:
        (row,) = (line.split() for line in file.read_text().splitlines() if "ProfilerStep" in line)
        assert int(row[-1]) == recorded


def test_flops_are_those_of_the_pairs_that_see_each_other(workspace: Path, tmp_path: Path) -> None:
    config = make_config(workspace, tmp_path / "run", schedule={"max_steps": 2})
    train(config)
    inputs = open_inputs(config)
    line = read_lines(tmp_path / "run" / METRICS)[0]
    positions = config.batch.sequences_per_step * config.data.sequence_length
    n = Parameters.of(inputs.model).multiplied
    attention = (line["flops"] - 6 * n * positions) / 3.5
    assert line["reference_flops"] == pytest.approx(2 * n * positions + attention)
    length = config.data.sequence_length
    most = config.batch.sequences_per_step * length * (length + 1) // 2
    assert attention_flops(inputs.model, positions) < attention <= attention_flops(inputs.model, most)
    assert line["mfu"] is None
    assert line["memory_bytes"] > 10**7
    assert 0 <= line["data_seconds"] < line["seconds"]


def test_the_next_item_is_made_while_one_is_in_use() -> None:
    made = [threading.Event() for _ in range(3)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    stream = prefetched(items())
    assert next(stream) == 0
    assert made[1].wait(10)
    assert list(stream) == [1, 2]


def test_what_making_an_item_raises_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("damaged")

    stream = prefetched(items())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(stream)
