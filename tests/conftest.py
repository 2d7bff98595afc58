"""Same examples every time; one thread a test process: bit-exact sums, and no fighting over cores between workers."""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from hypothesis import settings
from training_runs import make_workspace

from vikhr_fast.experiments.sample.text import RUSSIAN_TRAIN
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer

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


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Russian prose, and the English that ships inside Python."""
    english = tmp_path_factory.mktemp("english") / "topics.txt"
    english.write_text("\n\n".join(topics[name] for name in sorted(topics))[:150_000], encoding="utf-8")
    return (*sorted(RUSSIAN_TRAIN.glob("*.txt")), english)


@pytest.fixture(scope="session")
def trained(corpus: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that `train_tokenizer` made."""
    directory = tmp_path_factory.mktemp("trained") / "tokenizer"
    train_tokenizer(TrainTokenizer(input=corpus, output=directory, vocab_size=3000))
    return directory
