"""Conversations, and a tiny model with a chat template."""

import random
from pathlib import Path

import pytest

import vikhr_fast
from vikhr_fast.chat.conversation import Conversation, write_conversations
from vikhr_fast.chat.template import Message

RUSSIAN = Path(vikhr_fast.__file__).parent / "experiments" / "sample" / "data" / "russian" / "stories.txt"


@pytest.fixture(scope="session")
def model(workspace: Path) -> Path:
    """A directory with random weights and a tokenizer with a ChatML template."""
    return workspace / "model"


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
