"""What tests of training share: a small configuration, and processes started as torchrun would."""

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from byte_level import make_tokenizer

import vikhr_fast
from vikhr_fast.config import TrainConfig, config_values, train_config
from vikhr_fast.corpus.shard import Shard, write_shards
from vikhr_fast.model.mistral import Mistral, ModelConfig
from vikhr_fast.tokenizer import JsonEncoder
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer

DATA = Path(vikhr_fast.__file__).parent / "experiments" / "sample" / "data"


def make_workspace(root: Path) -> None:
    """Fills a directory with models (tiny, with their tokenizer) and the shards `train`, `other` and `validation`.

    `tied` is as `model`, but a Llama whose head is its embedding matrix; `original` has another shape, and a byte-level
    vocabulary.
    """
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
    write_model(root, "model", shape)
    write_model(root, "tied", replace(shape, tie_word_embeddings=True, model_type="llama"))
    file = make_tokenizer(root / "byte-level", [(root / "train.txt").read_text(encoding="utf-8")], vocab_size=420)
    rows = JsonEncoder.from_file(file).vocab_size + 4
    other = replace(shape, vocab_size=rows, hidden_size=24, num_hidden_layers=1, head_dim=6, model_type="llama")
    Mistral(other, seed=2).save_pretrained(root / "original")
    shutil.copytree(file.parent, root / "original", dirs_exist_ok=True)


def write_model(root: Path, name: str, shape: ModelConfig) -> Path:
    """Writes a model of random weights into a workspace, with its tokenizer."""
    Mistral(shape, seed=1).save_pretrained(root / name)
    for file in (root / "tokenizer").iterdir():
        shutil.copy(file, root / name)
    return root / name


def make_config(workspace: Path, output: Path, model: str = "model", **changes: dict[str, Any]) -> TrainConfig:
    """A small run of a model of the workspace; `changes` are merged into its sections."""
    values: dict[str, Any] = {
        "model": workspace / model,
        "output": output,
        "data": {"train": {"train": workspace / "train"}, "sequence_length": 96, "epochs": 4},
        "batch": {"micro_batch": 2, "sequences_per_step": 8},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 3},
        "kl": {},
        "runtime": {"device": "cpu", "dtype": "float64", "threads": 1, "chunk_tokens": 50},
        "schedule": {},
    }
    for section, change in changes.items():
        values[section] = {**values.get(section, {}), **change}
    return train_config(values, "test")


def start_ranks(command: Sequence[str], ranks: int) -> list[subprocess.Popen[str]]:
    """Starts a Python command once a rank, as torchrun would; a single rank starts without a process group."""
    port = _free_port()
    shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in range(ranks):
        mine = {**shared, "RANK": rank, "LOCAL_RANK": rank} if ranks > 1 else {}
        environment = {**os.environ, **{name: str(value) for name, value in mine.items()}}
        processes.append(
            subprocess.Popen(
                [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    return processes


def _free_port() -> int:
    """A port that nothing listens on, below those that the system gives to connections while the ranks start."""
    while True:
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", random.SystemRandom().randrange(10_000, 32_768)))
            return int(free.getsockname()[1])


def run_ranks(command: Sequence[str], ranks: int) -> None:
    """Runs a Python command on all ranks to a good end, without a warning."""
    for process in start_ranks(command, ranks):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert "Warning" not in errors, errors


def write_config(config: TrainConfig, path: Path) -> list[str]:
    """Writes the configuration as TOML; returns the Python command that trains with it."""
    values = {key: value for key, value in config_values(config).items() if value is not None}
    path.write_text(_toml(values))
    return ["-m", "vikhr_fast.train", "--config", str(path)]


def _toml(values: dict[str, Any], prefix: str = "") -> str:
    plain = {key: value for key, value in values.items() if not isinstance(value, dict) and value is not None}
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in plain.items())
    for key, value in values.items():
        if isinstance(value, dict):
            text += f"[{prefix}{key}]\n" + _toml(value, f"{prefix}{key}.")
    return text
