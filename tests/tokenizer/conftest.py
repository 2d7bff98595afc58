from pathlib import Path
from pydoc_data.topics import topics

import pytest

import vikhr_fast
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer

RUSSIAN = sorted((Path(vikhr_fast.__file__).parent / "experiments" / "sample" / "data" / "russian").glob("*.txt"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Russian prose, and the English that ships inside Python."""
    english = tmp_path_factory.mktemp("english") / "topics.txt"
    english.write_text("\n\n".join(topics[name] for name in sorted(topics))[:150_000], encoding="utf-8")
    return (*RUSSIAN, english)


@pytest.fixture(scope="session")
def trained(corpus: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that `train_tokenizer` made."""
    directory = tmp_path_factory.mktemp("trained") / "tokenizer"
    train_tokenizer(TrainTokenizer(input=corpus, output=directory, vocab_size=3000))
    return directory
