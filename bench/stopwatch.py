"""Times of contestants in turns, so that a clock that drifts meets all alike, and what the device reaches at best."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from schema import Ceilings

SETS = 3  # of inputs, taken by turns: what one run left in the cache is of no use to the next


@dataclass(frozen=True)
class Lane:
    """A contestant: what is timed, the inputs that it takes by turns, and what it puts away while others run."""

    run: Callable[[Any], object]
    inputs: Sequence[Any]
    rest: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Stopwatch:
    """Measures on a device.

    Attributes:
        device: where.
        turns: of each contestant.
        seconds: that a contestant's turns take together.
        least: runs in a turn.
    """

    device: torch.device
    turns: int = 5
    seconds: float = 1.0
    least: int = 4

    @classmethod
    def hasty(cls, device: torch.device) -> "Stopwatch":
        """For times that mean nothing."""
        return cls(device, turns=2, seconds=0.0, least=1)

    def in_turns(self, lanes: Mapping[str, Lane], failed: Callable[[str, Exception], object]) -> dict[str, list[float]]:
        """Milliseconds of single runs, sorted; whoever fails is left out from then on."""
        times: dict[str, list[float]] = {name: [] for name in lanes}
        for turn in range(self.turns):
            for name in list(times):
                try:
                    times[name] += self._turn(lanes[name], first=turn == 0)
                except Exception as problem:  # whatever a peer raises, what the others took must not be lost
                    del times[name]
                    failed(name, problem)
        return {name: sorted(found) for name, found in times.items()}

    def ceilings(self, elements: int, side: int, dtype: torch.dtype) -> Ceilings:
        """Copy bandwidth and matrix-product rate."""
        copies = [torch.randn(elements, device=self.device).to(dtype) for _ in range(2)]
        target = torch.empty_like(copies[0])
        squares = [torch.randn(side, side, device=self.device).to(dtype) for _ in range(SETS)]
        copy, gemm = (
            statistics.median(self._turn(lane, first=True)) / 1e3
            for lane in (Lane(target.copy_, copies), Lane(lambda x: x @ x, squares))
        )
        moved = 2 * elements * target.element_size()
        return Ceilings(copy_bytes_per_second=moved / copy, gemm_flops_per_second=2 * side**3 / gemm)

    def _turn(self, lane: Lane, *, first: bool) -> list[float]:
        # not counted: the first runs compile, and the first of a turn finds what others left in the caches
        for given in lane.inputs if first else lane.inputs[:1]:
            lane.run(given)
        times: list[float] = []
        deadline = time.monotonic() + self.seconds / self.turns
        while len(times) < self.least or time.monotonic() < deadline:
            times.append(self._once(lane.run, lane.inputs[len(times) % len(lane.inputs)]))
        lane.rest()
        return times

    def _once(self, run: Callable[[Any], object], given: Any) -> float:
        if self.device.type != "cuda":
            started = time.perf_counter()
            run(given)
            return (time.perf_counter() - started) * 1e3
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(2_000_000)  # about a millisecond, in which the launches queue up: their cost isn't timed
        start.record()
        run(given)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
