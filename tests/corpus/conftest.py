from pathlib import Path

import pytest
from byte_level import make_tokenizer

import vikhr_fast
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer

RUSSIAN = Path(vikhr_fast.__file__).parent / "experiments" / "sample" / "data" / "russian" / "stories.txt"


@pytest.fixture(scope="session")
def russian() -> Path:
    """A file of Russian paragraphs."""
    return RUSSIAN


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that `train_tokenizer` made from it."""
    directory = tmp_path_factory.mktemp("trained") / "tokenizer"
    train_tokenizer(TrainTokenizer(input=(RUSSIAN,), output=directory, vocab_size=700))
    return directory


@pytest.fixture(scope="session")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a byte-level tokenizer.json, and without a SentencePiece model."""
    return make_tokenizer(tmp_path_factory.mktemp("byte-level"), [RUSSIAN.read_text(encoding="utf-8")]).parent
