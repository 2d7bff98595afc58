"""The ranks of a start keep to themselves, whatever earlier starts have left in the store that they share."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from vikhr_fast.distributed.rendezvous import meet, name_start
from vikhr_fast.errors import InputError, RankLostError

LONG = timedelta(seconds=60)


@pytest.fixture
def connect() -> Callable[[], Any]:
    """Connections to one store, as torchrun keeps one for all its restarts."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    return lambda: dist.TCPStore("127.0.0.1", server.port, is_master=False)  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(3))
def test_every_start_has_a_name_of_its_own(connect: Callable[[], Any], seed: int) -> None:
    ranks = 4

    def start(rank: int) -> str:
        time.sleep(chance.uniform(0, 0.2))
        return name_start(connect(), rank, ranks, LONG)

    names = set()
    for _ in range(3):
        chance = random.Random(seed)
        with ThreadPoolExecutor(ranks) as pool:
            found = set(pool.map(start, range(ranks)))
        assert len(found) == 1
        names |= found
    assert len(names) == 3


def test_ranks_that_died_while_they_met_leave_nothing_behind(connect: Callable[[], Any]) -> None:
    first = connect()
    with pytest.raises(RankLostError, match="the 3 ranks didn't come together: no word of rank 1, 2"):
        name_start(first, 0, 3, timedelta(seconds=0.1))
    with pytest.raises(dist.DistError):  # asks, and dies before the answer
        name_start(connect(), 1, 3, timedelta(seconds=0.1))
    with ThreadPoolExecutor(2) as pool:
        found = pool.submit(name_start, connect(), 0, 3, LONG), pool.submit(name_start, connect(), 2, 3, LONG)
        time.sleep(0.3)
        assert not found[0].done()  # the question of the dead rank 1 doesn't count
        name = name_start(connect(), 1, 3, LONG)
        assert [future.result() for future in found] == [name, name]


def test_what_a_start_left_is_not_found_by_the_next(
    connect: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(connect().port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    first = meet(LONG)
    first.store.set("address", "old")
    connection = first.connection(LONG)
    assert connection is not None
    assert connection.get("address") == b"old"
    assert not meet(LONG).store.check(["address"])


def test_a_process_without_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    meeting = meet(LONG)
    assert (meeting.rank, meeting.count, meeting.connection(LONG)) == (0, 1, None)


@pytest.mark.parametrize(("variable", "value"), [("RANK", None), ("RANK", "first"), ("MASTER_PORT", "70000")])
def test_half_of_torchruns_variables_are_an_error(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str | None
) -> None:
    for name, complete in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, complete)
    monkeypatch.setenv(variable, value) if value else monkeypatch.delenv(variable)
    with pytest.raises(InputError, match="not as torchrun sets them"):
        meet(LONG)
