"""Which rank keeps the others waiting: each says what it is doing, and when one dies or hangs, the others name it.

A rank that waits in a collective can't tell why. So a thread of every rank counts upwards in a store that all can
read, beside the phase its rank is in. A rank whose count stands still is dead or stopped; one whose count goes on in an
earlier phase than the others' hangs there.
"""

import itertools
import os
import threading
import time
from dataclasses import asdict, dataclass

import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]  # public, but not in __all__

from vikhr_fast.errors import ExitCode
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import json_text
from vikhr_fast.io.guarded import parse_json

_BEAT_SECONDS = 1.0
_SILENT_BEATS = 3
_NO_STORE = "torchrun or rank 0, through which the ranks meet, is gone"
_ADVICE = "the same command goes on from the last checkpoint"


@dataclass(frozen=True)
class _Beat:
    """What a rank says of itself."""

    count: int = -1
    position: int = 0  # how many phases it has entered: the same on all ranks that are equally far
    phase: str = "starting"
    seconds: float = 0.0  # in this phase


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
        self._doing = (0, "starting", time.monotonic())  # position, phase, since when; replaced as a whole
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
        self._doing = (self._doing[0] + 1, phase, time.monotonic())

    def blame_for_failure(self) -> str | None:
        """The rank that is to blame for a collective that failed, and what to do; none where it isn't another one."""
        if self._store is None:
            return None
        try:
            blame = self._blame(only_silent=True)
        except dist.DistError:
            blame = _NO_STORE
        return blame and f"{blame}; {_ADVICE}"

    def _run(self) -> None:
        for count in itertools.count():
            if self._ended.wait(self._interval):
                return
            mine = self._beat(count)
            is_late = mine.seconds > self._timeout
            try:
                self._publish(mine)
                blame = self._blame() if is_late and self._store is not None else None
            except dist.DistError:
                blame = _NO_STORE
            if is_late:
                blame = blame or f"rank {self._rank} has been in {mine.phase} for {mine.seconds:.0f} s"
                logger.error(f"{blame}; {_ADVICE}")
                os._exit(ExitCode.RANK_LOST)  # the main thread waits where no exception reaches it

    def _beat(self, count: int) -> _Beat:
        position, phase, since = self._doing
        return _Beat(count, position, phase, time.monotonic() - since)

    def _publish(self, beat: _Beat) -> None:
        if self._store is not None:
            self._store.set(f"watch/{self._rank}", json_text(asdict(beat), ensure_ascii=True))

    def _read(self) -> list[_Beat]:
        assert self._store is not None
        keys = [f"watch/{rank}" for rank in range(self._count)]
        return [_Beat(**parse_json(self._store.get(key))) if self._store.check([key]) else _Beat() for key in keys]

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


def _describe(ranks: list[int], beats: list[_Beat], verb: str) -> str:
    return ", ".join(f"rank {rank} {verb} {beats[rank].phase} ({beats[rank].seconds:.0f} s)" for rank in ranks)
