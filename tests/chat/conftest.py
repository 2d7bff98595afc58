"""A tokenizer that knows the control pieces of both templates."""

from pathlib import Path

import pytest

import vikhr_fast
from vikhr_fast.chat.encode import ChatEncoder
from vikhr_fast.tokenizer.export import ExportTokenizer, export
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer

RUSSIAN = Path(vikhr_fast.__file__).parent / "experiments" / "sample" / "data" / "russian" / "stories.txt"


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of one vocabulary by the name of their template."""
    root = tmp_path_factory.mktemp("chat")
    options = TrainTokenizer(
        input=(RUSSIAN,), output=root / "chatml", vocab_size=800, control=("[INST]", "[/INST]", "<|tool|>")
    )
    train_tokenizer(options)
    name = "mistral-instruct"
    export(ExportTokenizer(root / "chatml", root / name, chat_template=Path(name)))
    return {"chatml": root / "chatml", name: root / name}


@pytest.fixture(scope="session")
def encoders(tokenizers: dict[str, Path]) -> dict[str, ChatEncoder]:
    return {name: ChatEncoder(directory) for name, directory in tokenizers.items()}
