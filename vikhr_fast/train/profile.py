"""What a few steps spend their time and memory on: a summary, a PyTorch trace, and on a GPU a memory snapshot."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # public, but not in __all__
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import write_text

WARM_UP = 2  # steps that aren't recorded: the first ones allocate and compile

phase = record_function  # names a part of a step in the trace
_PHASES = ("reference", "forward", "backward", "norm", "update", "loader")
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
_ATTENTION = ("vikhr::flash_attention", "vikhr::flash_attention_backward")


@dataclass(frozen=True)
class Summary:
    """Of the recorded steps."""

    step_seconds: float  # mean
    phases: dict[str, float]  # share of a step that each takes; "bookkeeping" is what is in none of them
    products: float  # share of all operations' own time that matrix products take, on the device where there is one
    attention: float  # the same of attention's kernels; the eager path's attention is matrix products

    def __str__(self) -> str:
        phases = ", ".join(f"{name} {share:.2%}" for name, share in self.phases.items())
        return (
            f"{self.step_seconds * 1000:.1f} ms a step: {phases}; of the operations' own time matrix products "
            f"{self.products:.1%}, attention's kernels {self.attention:.1%}"
        )


def summarise(recorded: EventList, on_gpu: bool) -> Summary:
    """What the averages of a recording say of its steps, by their phases and operations."""
    events = [e for e in recorded if e.device_type == DeviceType.CPU]  # with the times of their kernels
    own = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in events}
    steps, whole = next((e.count, e.cpu_time_total) for e in events if e.key.startswith("ProfilerStep"))
    shares = {e.key: e.cpu_time_total / whole for e in events}
    operations = sum(time for name, time in own.items() if "::" in name)
    products, attention = (sum(own.get(name, 0) for name in names) / operations for names in (_PRODUCTS, _ATTENTION))
    phases = {name: shares.get(name, 0.0) for name in _PHASES}
    return Summary(whole / steps / 1e6, {**phases, "bookkeeping": 1 - sum(phases.values())}, products, attention)


@contextmanager
def profiling(output: Path, steps: int, ranks: Ranks, steps_left: int) -> Iterator[Callable[[], None]]:
    """Records `steps` steps after the first two, fewer where the run is shorter; yields what to call after every step.

    Writes from each rank `profile/rank-R.json` (Chrome trace), `rank-R.txt` (summary, operations) and, on a GPU,
    `rank-R.pickle` (memory snapshot, for pytorch.org/memory_viz).
    """
    steps = min(steps, steps_left - WARM_UP)
    if steps <= 0:
        yield lambda: None
        return
    directory = output / "profile"
    directory.mkdir(parents=True, exist_ok=True)
    on_gpu, name = ranks.device.type == "cuda", f"rank-{ranks.rank}"

    def write(recorded: profile) -> None:
        for suffix in ("json", "pickle"):
            (directory / f"{name}.{suffix}").unlink(missing_ok=True)  # through a symbolic link torch would write
        recorded.export_chrome_trace(str(directory / f"{name}.json"))
        order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        averages = recorded.key_averages()
        summary = summarise(averages, on_gpu)
        table = averages.table(sort_by=order, row_limit=40, max_name_column_width=70)
        write_text(directory / f"{name}.txt", f"{summary}\n\n{table}\n")
        if on_gpu:
            torch.cuda.memory._dump_snapshot(str(directory / f"{name}.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
        if ranks.is_main:
            logger.info(f"profile of {steps} steps in {directory}: {summary}")

    if on_gpu:
        torch.cuda.memory._record_memory_history(max_entries=200_000)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    plan = schedule(wait=WARM_UP - 1, warmup=1, active=steps, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as recording:
        yield recording.step
