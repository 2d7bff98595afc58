"""Activation checkpointing changes what is kept, and no bit of what is computed."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import make_config

import vikhr_kernels
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.model.mistral import Checkpointing, Mistral, ModelConfig
from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import METRICS

pytestmark = pytest.mark.slow

SHAPE = ModelConfig(
    vocab_size=31,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    max_position_embeddings=64,
)
MODES: tuple[Checkpointing, ...] = ("none", "selective", "full")


class Count(TorchDispatchMode):
    """Counts the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[object] = Counter()

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


def test_attention_alone_is_kept_by_selective_checkpointing() -> None:
    tokens = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(0))
    results, attention, norms = [], [], []
    for mode in MODES:
        model = Mistral(SHAPE, ops=vikhr_kernels, seed=1)
        model.set_checkpointing(mode)
        with Count() as count:
            model(tokens).square().sum().backward()
        results.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        attention.append(count.calls[torch.ops.vikhr.flash_attention.default])
        norms.append(count.calls[torch.ops.vikhr.rms_norm.default])
    assert attention == [3, 3, 6]
    assert norms == [7, 13, 13]
    for gradients in results[1:]:
        assert all(torch.equal(a, e) for a, e in zip(gradients, results[0], strict=True))


@pytest.mark.parametrize("master", ["float32", "split"])
def test_a_run_is_the_same_bit_for_bit(workspace: Path, tmp_path: Path, master: str) -> None:
    runs = []
    for mode in MODES:
        config = make_config(
            workspace,
            tmp_path / mode,
            runtime={"dtype": "bfloat16", "checkpointing": mode},
            optimizer={"master": master},
            schedule={"max_steps": 3},
        )
        train(config)
        runs.append([(line["loss"], line["grad_norm"]) for line in read_lines(tmp_path / mode / METRICS)])
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0]) == 3
