"""Same examples every time; one thread a test process: bit-exact sums, and no fighting over cores between workers."""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from training_runs import make_workspace

torch.set_num_threads(1)
# A change is judged by the change alone: new examples are tried by `make nightly`, with --hypothesis-profile=explore.
settings.register_profile("repeatable", derandomize=True, database=None)
settings.register_profile("explore", derandomize=False)
settings.load_profile("repeatable")
# Shells start background jobs with Ctrl-C ignored, which the commands that the tests start would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def package_logging() -> Iterator[None]:
    """A command that a test calls sends log lines to the console; the next test finds them where pytest looks."""
    yield
    logger = logging.getLogger("vikhr_fast")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make_workspace` makes, once for all tests."""
    root = tmp_path_factory.mktemp("workspace")
    make_workspace(root)
    return root
