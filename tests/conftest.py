"""One thread a test process: bit-exact sums, and no fighting over cores between workers."""

import shutil
import signal
from pathlib import Path

import pytest
import torch

import vikhr_fast
from vikhr_fast.corpus.shard import Shard, write_shards
from vikhr_fast.model import Mistral, ModelConfig
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer

torch.set_num_threads(1)
# Shells start background jobs with Ctrl-C ignored, which the commands that the tests start would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = Path(vikhr_fast.__file__).parent / "demo" / "data"


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `model` (tiny, with its tokenizer) and the shards `train`, `other` and `validation`."""
    root = tmp_path_factory.mktemp("workspace")
    sources = {
        name: (DATA / "russian" / f"{name}.txt").read_text(encoding="utf-8").split("\n\n")
        for name in ("stories", "news")
    }
    texts = {"train": sources["stories"][:40], "other": sources["news"][:12], "validation": sources["news"][-3:]}
    for name, paragraphs in texts.items():
        (root / f"{name}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    train_tokenizer(TrainTokenizer(input=(root / "train.txt",), output=root / "tokenizer", vocab_size=520))
    for name in texts:
        write_shards(Shard(input=(root / f"{name}.txt",), tokenizer=root / "tokenizer", output=root / name))
    shape = ModelConfig(
        vocab_size=520,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        initializer_range=0.1,
    )
    Mistral(shape, seed=1).save_pretrained(root / "model")
    for file in (root / "tokenizer").iterdir():
        shutil.copy(file, root / "model")
    return root
