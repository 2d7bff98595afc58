"""A tiny model with a chat template, and conversations."""

import random
import shutil
from pathlib import Path

import pytest

import vikhr_fast
from vikhr_fast.chat.template import Message
from vikhr_fast.instruct.conversation import Conversation, write_conversations
from vikhr_fast.model import Mistral, ModelConfig
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer

RUSSIAN = Path(vikhr_fast.__file__).parent / "demo" / "data" / "russian" / "stories.txt"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with random weights and a tokenizer with a ChatML template."""
    root = tmp_path_factory.mktemp("instruct")
    train_tokenizer(TrainTokenizer(input=(RUSSIAN,), output=root / "tokenizer", vocab_size=520))
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
    return root / "model"


@pytest.fixture(scope="session")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 conversations of two sources, of one to three turns."""
    chance = random.Random(0)
    words = RUSSIAN.read_text(encoding="utf-8").split()

    def words_of(most: int) -> str:
        return " ".join(chance.choices(words, k=chance.randint(1, most)))

    made = []
    for number in range(60):
        messages = [Message("system", words_of(6))] if number % 3 == 0 else []
        for _ in range(chance.randint(1, 3)):
            messages += [Message("user", words_of(8)), Message("assistant", words_of(20))]
        made.append(Conversation(str(number), "ab"[number % 2], "ru", tuple(messages)))
    path = tmp_path_factory.mktemp("conversations") / "all.jsonl"
    write_conversations(path, made)
    return path
