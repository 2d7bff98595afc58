import shutil
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from adapting import ROWS, RUSSIAN, Bases

from vikhr_fast.adapt.adapt import Adapt
from vikhr_fast.model.config import ModelConfig
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directories of an English tokenizer and of one of both languages."""
    folder = tmp_path_factory.mktemp("tokenizers")
    english = folder / "english.txt"
    english.write_text("\n\n".join(topics[name] for name in sorted(topics))[:60_000], encoding="utf-8")
    short = folder / "short.txt"
    short.write_text(topics["assert"], encoding="utf-8")
    train_tokenizer(TrainTokenizer(input=(english,), output=folder / "base", vocab_size=ROWS))
    train_tokenizer(TrainTokenizer(input=(RUSSIAN, short), output=folder / "new", vocab_size=1200))
    return folder / "base", folder / "new"


@pytest.fixture(scope="session")
def bases(tokenizers: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Makes base models: random weights in a dtype, in shards of a size."""
    folder = tmp_path_factory.mktemp("bases")

    def make(dtype: torch.dtype, max_shard_bytes: int) -> Path:
        directory = folder / f"{dtype}-{max_shard_bytes}"
        if not directory.exists():
            shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 4}
            heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
            model = Mistral(ModelConfig(vocab_size=ROWS, **shape, **heads))
            model.initialise(seed=1)
            model.to(dtype).save_pretrained(directory, max_shard_bytes=max_shard_bytes)
            shutil.copy(tokenizers[0] / "tokenizer.model", directory)
        return directory

    return make


@pytest.fixture
def base(bases: Bases, tmp_path: Path) -> Path:
    """A base in several shards that a test may damage."""
    shutil.copytree(bases(torch.float32, 20_000), tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def options(base: Path, tokenizers: tuple[Path, Path], tmp_path: Path) -> Adapt:
    return Adapt(base=base, tokenizer=tokenizers[1], output=tmp_path / "out")
