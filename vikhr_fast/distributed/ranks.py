"""The processes of a run: torchrun's, or one alone."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vikhr_fast.config import RuntimeConfig
from vikhr_fast.distributed.launcher import end_with_launcher
from vikhr_fast.distributed.rendezvous import meet
from vikhr_fast.distributed.watchdog import Watch
from vikhr_fast.errors import InputError, RankLostError

_GRACE_SECONDS = 60  # after which collectives end that the watch hasn't ended


@dataclass(frozen=True)
class Ranks:
    """This process among all of the run."""

    rank: int
    count: int
    device: torch.device
    mesh: DeviceMesh
    watch: Watch
    control: dist.ProcessGroup  # what isn't computed on is agreed on here, between CPUs: a GPU isn't waited for

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the logs."""
        return self.rank == 0

    @property
    def replicas(self) -> int:
        """How many copies of the weights the ranks hold together."""
        return self.count // self.mesh.size(-1)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The elementwise sum over all ranks, in place."""
        dist.all_reduce(values)
        return values

    def all_reduce_max(self, *values: int) -> tuple[int, ...]:
        """The largest of each value over all ranks, between CPUs."""
        found = torch.tensor(values)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.control)
        return tuple(found.tolist())

    def barrier(self) -> None:
        """Waits for all ranks."""
        dist.barrier()

    def on_main(self, action: Callable[[], object]) -> None:
        """Runs an action on rank 0 while the others wait; its InputError or OSError is raised on every rank."""
        self.run_everywhere(action if self.is_main else lambda: None)

    def run_everywhere(self, action: Callable[[], object]) -> None:
        """Runs an action on all ranks; the first rank's InputError or OSError is raised on every rank."""
        mine: Exception | None = None
        try:
            action()
        except (InputError, OSError) as error:
            mine = error
        failures: list[Exception | None] = [None] * self.count
        dist.all_gather_object(failures, mine, group=self.control)
        for failure in failures:
            if failure is not None:
                raise failure


@contextmanager
def process_group(config: RuntimeConfig) -> Iterator[Ranks]:
    """Joins torchrun's process group, or makes one of a single rank; pins the CPU threads.

    Raises:
        InputError: CUDA is asked for and there is none, or the ranks can't be divided into replicas.
        RankLostError: not all ranks came, or one died meanwhile.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("runtime.device: cuda asked for, but PyTorch sees no GPU; see `vikhr-fast doctor`")
    kind = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
    local_rank, local_count = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(config.threads or max(1, len(os.sched_getaffinity(0)) // local_count))
    device = torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise InputError(f"rank {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}")
        torch.cuda.set_device(device)
    end_with_launcher()
    patience = timedelta(seconds=config.timeout_seconds)
    timeout = patience + timedelta(seconds=_GRACE_SECONDS)
    meeting = meet(patience)
    rank, count, backend = meeting.rank, meeting.count, "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, store=meeting.store, rank=rank, world_size=count, timeout=timeout)
    try:
        if count % config.replicas:
            raise InputError(f"runtime.replicas: {config.replicas} doesn't divide the {count} ranks")
        if config.replicas == 1:  # all ranks in a row, otherwise a row for each replica of the weights
            mesh = init_device_mesh(kind, (count,))
        else:
            rows = (config.replicas, count // config.replicas)
            mesh = init_device_mesh(kind, rows, mesh_dim_names=("replicate", "shard"))
        control = dist.new_group(backend="gloo", timeout=timeout)
        with Watch(rank, count, config.timeout_seconds, meeting.connection(patience)) as watch:
            try:
                yield Ranks(rank, count, device, mesh, watch, control)
            except RuntimeError:
                if blame := watch.blame_for_failure():
                    raise RankLostError(blame) from None
                raise
    finally:
        dist.destroy_process_group()
