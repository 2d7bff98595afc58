"""What a few steps spend their time and memory on: a PyTorch trace, a table, and on a GPU a memory snapshot."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from vikhr_fast.console import logger
from vikhr_fast.files import write_text
from vikhr_fast.ranks import Ranks

WARM_UP = 2  # steps that aren't recorded: the first ones allocate and compile

phase = record_function  # names a part of a step in the trace


@contextmanager
def profiling(output: Path, steps: int, ranks: Ranks) -> Iterator[Callable[[], None]]:
    """Records `steps` steps after the first two; yields what is to be called after every step.

    Writes from each rank `profile/rank-R.json` (Chrome trace), `rank-R.txt` (operations by time) and, on a GPU,
    `rank-R.pickle` (memory snapshot, for pytorch.org/memory_viz).
    """
    if not steps:
        yield lambda: None
        return
    directory = output / "profile"
    directory.mkdir(parents=True, exist_ok=True)
    on_gpu = ranks.device.type == "cuda"
    name = f"rank-{ranks.rank}"

    def write(recorded: profile) -> None:
        recorded.export_chrome_trace(str(directory / f"{name}.json"))
        order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=70)
        write_text(directory / f"{name}.txt", table + "\n")
        if on_gpu:
            torch.cuda.memory._dump_snapshot(str(directory / f"{name}.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
        logger.info(f"profile of {steps} steps: {directory}")

    if on_gpu:
        torch.cuda.memory._record_memory_history(max_entries=200_000)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    plan = schedule(wait=WARM_UP - 1, warmup=1, active=steps, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as recording:
        yield recording.step
