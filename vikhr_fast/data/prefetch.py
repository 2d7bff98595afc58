"""The next step's batches, made while this step runs."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def prefetched(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items in their order, each made in another thread while the one before is in use.

    What making an item raises is raised here in its place.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as worker:
        waiting = worker.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = worker.submit(next, items, None)
            yield item
