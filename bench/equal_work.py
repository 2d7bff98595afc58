"""Proves that contestants of the training step do the same work, before anything is timed.

Small weights and many short documents, so that the mask between documents matters: random weights at full size hardly
attend to anything, and a contestant whose documents see each other would keep its loss.
"""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import torch
from contestants import Make, ce_and_kl
from schema import EqualWork
from torch import Tensor

from vikhr_fast.data.packing import Batch
from vikhr_fast.model.config import ModelConfig

SHAPE = ModelConfig(
    vocab_size=211, hidden_size=256, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, max_position_embeddings=128, initializer_range=0.06,
)  # fmt: skip
LENGTH, SEQUENCES, MEAN_LENGTH = 128, 2, 16
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.05}  # where all documents see each other, gradients are off by 1.2


def documents_alone(student: Path, reference: Path, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients by transformers on the CPU, each document by itself: nothing to mask, nothing that leaks."""
    from transformers import AutoModelForCausalLM

    model, frozen = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
        for path in (student, reference)
    )
    rows = [batch.tokens[None, start:end] for start, end in pairwise(batch.cu_seqlens.tolist())]
    logits, expected = (torch.cat([each(row).logits[0] for row in rows]) for each in (model, frozen))
    loss = ce_and_kl(logits, expected.detach(), batch.targets)
    loss.backward()
    return float(loss.detach()), {name: parameter.grad for name, parameter in model.named_parameters()}


def compare(
    makers: dict[str, Make], truth: tuple[float, dict[str, Tensor]], batch: Batch, dtype: torch.dtype
) -> Iterable[EqualWork | tuple[str, Exception]]:
    """Each contestant beside the truth, or what it raised."""
    loss, gradients = truth
    for name, make in makers.items():
        try:
            contestant = make("none")
            contestant.forget_gradients()
            contestant.run(batch)
            loss_error = abs(float(contestant.run(batch)) - loss) / abs(loss)
            twice = {name: gradient / 2 for name, gradient in contestant.gradients().items()}  # they add up
            gradient_error = _error(twice, gradients)
        except Exception as problem:  # whatever a peer raises
            yield name, problem
            continue
        yield EqualWork(
            contestant=name, loss_error=loss_error, gradient_error=gradient_error, bound=BOUNDS[dtype],
            passed=max(loss_error, gradient_error) <= BOUNDS[dtype],
        )  # fmt: skip
        contestant.forget_gradients()


def _error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    if missing := expected.keys() ^ actual.keys():
        raise ValueError(f"gradients of other parameters: {', '.join(sorted(missing))}")
    difference, norm = (
        sum(float(x.double().square().sum()) for x in each) ** 0.5
        for each in ([actual[name].cpu() - value for name, value in expected.items()], expected.values())
    )
    return difference / norm
