"""SIGTERM, SIGUSR1 (a scheduler's warning) and Ctrl-C end a run after the micro-batch in progress, with a checkpoint.

The step that the micro-batch belongs to is done again later. Ctrl-C after any signal ends the run at once; a second
SIGTERM changes nothing, since torchrun passes its own on to ranks that may have had one. Whoever sends SIGTERM must
leave time for a checkpoint: torchrun kills 30 seconds later (from torch 2.12 TORCH_ELASTIC_SHUTDOWN_TIMEOUT), and the
steps since the last one are lost. SIGUSR1 it doesn't pass on, but dies of it.
"""

import signal
import threading
from collections.abc import Callable
from itertools import count
from types import FrameType

from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.errors import ExitCode

_EXIT_CODES = {
    signal.SIGTERM: ExitCode.TERMINATED,
    signal.SIGUSR1: ExitCode.TERMINATED,
    signal.SIGINT: ExitCode.INTERRUPTED,
}


class Interrupted(Exception):  # noqa: N818  nothing went wrong
    """A signal asks the run to end: raised on all ranks at the same place, whichever of them it came to."""


class Interruption:
    """Notes the first signal while its block lasts.

    Attributes:
        exit_code: what the process should exit with, 0 while nothing asked it to.
    """

    def __init__(self) -> None:
        self.exit_code = 0

    def __enter__(self) -> "Interruption":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _EXIT_CODES}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self, ranks: Ranks) -> None:
        """Raises `Interrupted` if a signal came to any rank; all of them call it together."""
        if ranks.all_reduce_max(self.exit_code)[0]:
            raise Interrupted

    def advancing(self, doing: str, ranks: Ranks) -> Callable[[], None]:
        """What all ranks call before each forward of long work: a phase of its own for the watch, and as `check`."""
        forwards = count(1)

        def advance() -> None:
            ranks.watch.enter(f"{doing}, forward {next(forwards)}")  # together they may take hours
            self.check(ranks)

        return advance

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  the signature of a signal handler
        self.exit_code = int(_EXIT_CODES[signal.Signals(number)])
        signal.signal(signal.SIGINT, signal.default_int_handler)
