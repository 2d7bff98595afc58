"""How the ranks of one start find each other, and not what the last start left behind.

torchrun keeps one store over its restarts, with the addresses of ranks that are dead, and counts restarts on each node
for itself (PyTorch issue 135712). A new rank that reads an old address costs another restart. So each start gets a name
of its own from its first rank, and its ranks keep to keys below that name.
"""

import os
import time
import uuid
from dataclasses import dataclass, field
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # public

from vikhr_fast.errors import InputError, RankLostError

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Meeting:
    """All ranks of one start, or a process alone."""

    rank: int = 0
    count: int = 1
    store: Store = field(default_factory=HashStore)  # holds keys of this start alone
    name: str = ""

    def connection(self, timeout: timedelta) -> Store | None:
        """A further connection to the same keys, for a thread of its own; none for a process alone."""
        if not self.name:
            return None
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return PrefixStore(self.name, TCPStore(host, port, is_master=False, timeout=timeout))


def meet(timeout: timedelta) -> Meeting:
    """Waits for all ranks that torchrun has started; without torchrun a process is alone.

    Raises:
        InputError: what torchrun sets is incomplete or no number.
        RankLostError: not all ranks came.
    """
    if "WORLD_SIZE" not in os.environ:
        return Meeting()
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]  # public
        name = name_start(store, rank, count, timeout)
    except ValueError as error:
        raise InputError(f"WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT: not as torchrun sets them: {error}") from None
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        raise RankLostError(f"the {os.environ['WORLD_SIZE']} ranks didn't come together: {reason}") from None
    return Meeting(rank, count, PrefixStore(name, store), name)


def name_start(store: Store, rank: int, count: int, timeout: timedelta) -> str:
    """The name of this start, the same on all its ranks and new at every start.

    Args:
        store: shared by all ranks; may hold what earlier starts have left.
        rank, count: of this process, and how many there are.
        timeout: for the whole of it.

    Raises:
        RankLostError: not all ranks came.
    """
    if rank > 0:  # asks a question that nobody has asked before, so that its answer is of this start
        question = uuid.uuid4().hex
        store.set(f"question/{rank}", question)
        store.wait([f"answer/{question}"], timeout)
        name = store.get(f"answer/{question}").decode()
        store.set(f"thanks/{name}/{rank}", "")
        return name
    name = uuid.uuid4().hex
    missing, deadline = set(range(1, count)), time.monotonic() + timeout.total_seconds()
    while missing:  # answers every question that is found, also the dead's, until all have given thanks for this name
        if time.monotonic() > deadline:
            ranks = ", ".join(map(str, sorted(missing)))
            raise RankLostError(f"the {count} ranks didn't come together: no word of rank {ranks}")
        for rank in sorted(missing):
            if store.check([f"question/{rank}"]):
                store.set(f"answer/{store.get(f'question/{rank}').decode()}", name)
            if store.check([f"thanks/{name}/{rank}"]):
                missing.remove(rank)
        time.sleep(_POLL_SECONDS)
    return name
