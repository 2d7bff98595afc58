"""Log lines and progress bars share one console on standard error; standard output is for results."""

import logging
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from vikhr_fast.io.plain import one_line, plain

LogLevel = Literal["debug", "info", "warning", "error"]


class PlainConsole(Console):
    """A console on which every text is plain: nothing in a name is markup or an emoji, or moves the cursor.

    Args:
        options: of `rich.console.Console`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """What all text goes through that is printed as a string, a table's cells and headings, too."""
        return super().render_str(plain(text).expandtabs(4), **options)  # a table has no room for a tab


class _Console(PlainConsole):
    def on_broken_pipe(self) -> None:
        """A reader that has seen enough must not end a long run."""
        self.quiet = True


console = _Console(stderr=True)
logger = logging.getLogger("vikhr_fast")


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage() if record.levelno <= logging.INFO else f"{record.levelname}: {record.getMessage()}"
        console.print(one_line(line), soft_wrap=True)


def configure_logging(level: LogLevel) -> None:
    """Sends this package's log lines of at least `level` to the console."""
    if not logger.handlers:
        logger.addHandler(_ConsoleHandler())
    logger.propagate = False
    logger.setLevel(level.upper())
