"""Which rank keeps the others waiting: each says what it is doing, and when one dies or hangs, the others name it.

A rank that waits in a collective can't tell why. So a thread of every rank counts upwards in a store that all can
read, beside the phase its rank is in. A rank whose count stands still is dead or stopped; one whose count goes on in an
earlier phase than the others' hangs there.
"""

import json
import os
import threading
import time
from dataclasses import asdict, dataclass

import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]  # public, but not in __all__

from vikhr_fast.console import logger
from vikhr_fast.errors import ExitCode, RankLostError

_BEAT_SECONDS = 1.0
_SILENT_BEATS = 3
_NO_STORE = "rank 0, through which the ranks meet, is gone"
_ADVICE = "the same command goes on from the last checkpoint"


@dataclass(frozen=True)
class _Beat:
    """What a rank says of itself."""

    count: int = -1
    position: int = 0
    """How many phases it has entered: the same on all ranks that are equally far."""
    phase: str = "starting"
    seconds: float = 0.0
    """In this phase."""


class Watch:
    """Tells the other ranks what this one is doing, and ends the process when it has been at it for too long.

    Args:
        rank, count: of this process, and how many there are.
        timeout_seconds: after which a phase is too long.
        store: shared by all ranks; none where there is one rank.
    """

    def __init__(self, rank: int, count: int, timeout_seconds: float, store: Store | None) -> None:
        self._rank, self._count, self._timeout, self._store = rank, count, timeout_seconds, store
        self._interval = min(_BEAT_SECONDS, timeout_seconds / 10)
        self._lock = threading.Lock()
        self._position, self._phase, self._since = 0, "starting", time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def enter(self, phase: str) -> None:
        """Says what this rank does from now on."""
        with self._lock:
            self._position, self._phase, self._since = self._position + 1, phase, time.monotonic()

    def explained(self, error: RuntimeError) -> Exception:
        """Why a collective failed: a `RankLostError` where another rank is to blame, otherwise the error itself."""
        if self._store is None:
            return error
        try:
            blame = self._blame(only_silent=True)
        except dist.DistError:
            blame = _NO_STORE
        return RankLostError(f"{blame}; {_ADVICE}") if blame else error

    def _run(self) -> None:
        count = 0
        while not self._ended.wait(self._interval):
            mine = self._beat(count)
            count += 1
            try:
                self._publish(mine)
                if mine.seconds > self._timeout:
                    self._give_up(mine)
            except dist.DistError:
                if mine.seconds > self._timeout:
                    self._exit(_NO_STORE)

    def _beat(self, count: int) -> _Beat:
        with self._lock:
            return _Beat(count, self._position, self._phase, time.monotonic() - self._since)

    def _publish(self, beat: _Beat) -> None:
        if self._store is not None:
            self._store.set(_key(self._rank), json.dumps(asdict(beat)))

    def _read(self) -> list[_Beat]:
        assert self._store is not None
        found = []
        for rank in range(self._count):
            known = self._store.check([_key(rank)])
            found.append(_Beat(**json.loads(self._store.get(_key(rank)))) if known else _Beat())
        return found

    def _give_up(self, mine: _Beat) -> None:
        blame = self._blame() if self._store is not None else None
        self._exit(blame or f"rank {self._rank} has been in {mine.phase} for {mine.seconds:.0f} s")

    def _exit(self, blame: str) -> None:
        logger.error(f"{blame}; {_ADVICE}")
        os._exit(ExitCode.RANK_LOST)  # the main thread waits where no exception reaches it

    def _blame(self, only_silent: bool = False) -> str | None:
        """Whose fault it is that this rank can't go on, by two looks at all; none where nobody stands out."""
        before = self._read()
        deadline = time.monotonic() + _SILENT_BEATS * _BEAT_SECONDS
        while time.monotonic() < deadline:
            time.sleep(self._interval)
            if threading.current_thread() is self._thread:
                self._publish(self._beat(before[self._rank].count + 1))
        after = self._read()
        silent = [r for r in range(self._count) if r != self._rank and before[r].count == after[r].count]
        if silent:
            return _describe(silent, after, "stopped answering, last in")
        behind = min(beat.position for beat in after)
        late = [rank for rank, beat in enumerate(after) if beat.position == behind]
        if only_silent or len(late) == self._count:
            return None
        ahead = next(beat.phase for beat in after if beat.position > behind)
        return _describe(late, after, "hangs in") + f", while others wait in {ahead}"


def _key(rank: int) -> str:
    return f"watch/{rank}"


def _describe(ranks: list[int], beats: list[_Beat], verb: str) -> str:
    described = (f"rank {rank} {verb} {beats[rank].phase} ({beats[rank].seconds:.0f} s)" for rank in ranks)
    return ", ".join(described)
