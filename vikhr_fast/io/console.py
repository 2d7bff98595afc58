"""Log lines and progress bars share one console on standard error; standard output is for results."""

import logging
from typing import Literal

from rich.console import Console

LogLevel = Literal["debug", "info", "warning", "error"]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """A reader that has seen enough must not end a long run."""
        self.quiet = True


console = _Console(stderr=True)
logger = logging.getLogger("vikhr_fast")


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage() if record.levelno <= logging.INFO else f"{record.levelname}: {record.getMessage()}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def configure_logging(level: LogLevel) -> None:
    """Sends this package's log lines of at least `level` to the console."""
    if not logger.handlers:
        logger.addHandler(_ConsoleHandler())
    logger.propagate = False
    logger.setLevel(level.upper())
