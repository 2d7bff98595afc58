"""A whole model on the kernels: logits, loss, gradients and an update are those of the eager operations."""

import os

import pytest
import torch
from torch import Tensor

import vikhr_kernels
from vikhr_fast.config import OptimizerConfig, RuntimeConfig
from vikhr_fast.distributed.ranks import process_group
from vikhr_fast.model.mistral import Mistral, ModelConfig
from vikhr_fast.train.optimizer import MasterAdamW
from vikhr_fast.train.split_adamw import SplitAdamW
from vikhr_kernels import join_master, reference

SHAPE = ModelConfig(
    vocab_size=53,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=64,
    sliding_window=5,
    initializer_range=0.2,
)
TOKENS = torch.randint(53, (29,), generator=torch.Generator().manual_seed(0))


def run(model: Mistral) -> tuple[Tensor, ...]:
    """Hidden states, loss, CE, KL and, after backward, nothing else; the head goes through three chunks."""
    hidden = model(TOKENS, cu_seqlens=torch.tensor([0, 1, 12, 29], dtype=torch.int32))
    frozen = model.lm_head.weight.detach()
    options = {"targets": TOKENS.roll(-1), "ref_hidden": 0.9 * hidden.detach(), "ref_weight": frozen}
    loss, ce, kl = model.lm_head(hidden, chunk_tokens=10, **options)
    loss.backward()
    return hidden.detach(), loss.detach(), ce, kl


@pytest.mark.gate
def test_model_on_kernels_equals_the_eager_one(slack: float) -> None:
    results = []
    for ops, allowed in ((reference, False), (vikhr_kernels, True)):
        vikhr_kernels.allow_triton(allowed)
        model = Mistral(SHAPE, ops=ops, seed=1)
        outputs = run(model)
        logits = outputs[0] @ model.lm_head.weight.detach().T
        results.append((logits, *outputs, *(p.grad for p in model.parameters())))
    assert float(results[0][4].mean()) > 1e-4
    for eager, triton in zip(*results, strict=True):
        torch.testing.assert_close(triton, eager, rtol=slack * 1e-4, atol=slack * 1e-6)


def updates(kind: str) -> Tensor:
    """What two optimiser steps change in all masters: by the kernels, eagerly, or in float64."""
    vikhr_kernels.allow_triton(kind == "kernels")
    config = OptimizerConfig(learning_rate=3e-2, eps=1e-3, weight_decay=0.1)
    start = {name: p.detach().clone() for name, p in Mistral(SHAPE, seed=1).named_parameters()}
    model = Mistral(SHAPE, ops=vikhr_kernels if kind == "kernels" else reference, seed=1)
    model.to(torch.float64 if kind == "truth" else torch.bfloat16)
    with process_group(RuntimeConfig(device="cpu")) as ranks:
        masters = {name: master.double() if kind == "truth" else master.clone() for name, master in start.items()}
        optimizer = (MasterAdamW if kind == "truth" else SplitAdamW)(model, masters, config, ranks)
        for _ in range(2):
            run(model)
            optimizer.update(optimizer.gradient_norm(), max_norm=0.5)
        after = [
            p.detach() if kind == "truth" else join_master(p.detach(), optimizer.state[p]["remainder"])
            for p in model.parameters()
        ]
    return torch.cat([(x.double() - start[name]).flatten() for name, x in zip(start, after, strict=True)])


@pytest.mark.gate
@pytest.mark.skipif("EMULATED_ARCHITECTURE" not in os.environ, reason="bf16 is wrong in the interpreter")
def test_optimiser_steps_on_kernels_are_as_right_as_eager_ones() -> None:
    """In bf16, on split masters, with gradients added up in float32 by the products and the head, and clipped."""
    truth, eager, kernels = (updates(kind) for kind in ("truth", "eager", "kernels"))
    assert float(truth.abs().mean()) > 1e-2
    assert (kernels - truth).norm() <= 2 * (eager - truth).norm() < 0.1 * truth.norm()
