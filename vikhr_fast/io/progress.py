"""The one progress bar of stages."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vikhr_fast.io.console import console
from vikhr_fast.io.plain import one_line


def tracked(description: str, parts: list[Path]) -> Iterator[Path]:
    """The parts, with a progress bar."""
    with progress_bar(description, len(parts)) as advance:
        for part in parts:
            yield part
            advance(1)


@contextmanager
def progress_bar(description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Gives a function that moves a progress bar on by so many; nothing is shown where standard error is a file."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(one_line(description), total=total)
        yield lambda count: bar.advance(task, count)
