"""Predicted bytes against those of real objects: a small model on the kernels' registered operations."""

import dataclasses
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from training_runs import make_config

import vikhr_kernels
from vikhr_fast.distributed.ranks import process_group
from vikhr_fast.model.mistral import Checkpointing, Mistral, ModelConfig
from vikhr_fast.plan.memory import Parameters, layers_bytes, loss_bytes, memory
from vikhr_fast.train.batches import step_batches
from vikhr_fast.train.inputs import open_inputs
from vikhr_fast.train.signals import Interruption
from vikhr_fast.train.state import TrainState
from vikhr_fast.train.step import TrainStep
from vikhr_kernels import GradientSum

SHAPE = ModelConfig(
    vocab_size=700,
    hidden_size=256,
    intermediate_size=640,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=512,
)
TOKENS = 384


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_counted(tied: bool) -> None:
    shape = dataclasses.replace(SHAPE, tie_word_embeddings=tied)
    model, count = Mistral(shape, device="meta"), Parameters.of(shape)
    assert count.total == sum(parameter.numel() for parameter in model.parameters())
    assert count.layer == sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    assert count.head == model.head_module.weight.numel()
    assert count.multiplied == count.total - (0 if tied else model.model.embed_tokens.weight.numel())


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_activations(checkpointing: Checkpointing, stacked: bool) -> None:
    """What autograd keeps between forward and backward, each storage once, without the parameters."""
    model = Mistral(SHAPE, ops=vikhr_kernels, dtype=torch.bfloat16)
    if stacked:
        model.stack_weights()
    model.set_checkpointing(checkpointing)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model(torch.zeros(1, TOKENS, dtype=torch.int64))
    assert hidden.requires_grad
    predicted = layers_bytes(SHAPE, TOKENS, checkpointing)
    if checkpointing != "none":  # the layer that is whole while it is computed again isn't there yet
        predicted -= layers_bytes(dataclasses.replace(SHAPE, num_hidden_layers=1), TOKENS, "none")
    if checkpointing == "selective":  # attention's results are kept beside autograd, by the checkpoint
        predicted -= SHAPE.num_hidden_layers * TOKENS * 4 * (2 * 64 + 4)
    final_norm = 2 * TOKENS * SHAPE.hidden_size
    assert sum(kept.values()) == pytest.approx(predicted + final_norm, rel=0.05)


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that was allocated at once beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    assert recorded.profiler is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("chunk_tokens", [128, 0])
@pytest.mark.parametrize("with_reference", [False, True])
def test_loss_head(chunk_tokens: int, with_reference: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loss head allocates around its row step, as on a GPU: gradients over the logits, products into place."""
    module = sys.modules["vikhr_kernels.linear_ce_kl"]

    def row_step(logits: Tensor, *_: object) -> Tensor:
        return logits.view(torch.bfloat16)[:, -logits.shape[1] :]

    monkeypatch.setattr(module, "_eager_row_steps", row_step)
    monkeypatch.setattr(module, "multiply_into", lambda out, a, b, beta=0: out.fill_(beta))  # noqa: ARG005
    monkeypatch.setattr(torch, "mm", lambda a, b, out: out.zero_())  # noqa: ARG005
    monkeypatch.setattr(module, "_scaled", lambda x, _, dtype: x.to(dtype))  # a CPU makes a float32 copy on the way
    monkeypatch.setattr(module, "_CHUNK_BYTES", dict.fromkeys(("cpu", "cuda"), 600 * 4 * SHAPE.vocab_size))
    head = torch.zeros(SHAPE.vocab_size, SHAPE.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    before = torch.zeros(TOKENS, SHAPE.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(TOKENS, dtype=torch.int64)

    def step() -> None:
        hidden = before.clone()
        reference = (before.detach().clone(), head.detach()) if with_reference else ()
        loss, *_ = vikhr_kernels.linear_ce_kl(hidden, head, targets, *reference, chunk_tokens=chunk_tokens or None)
        del hidden, reference
        loss.backward()

    step()  # gradients are there from now on, as those that micro-batches are added to
    measured = peak_bytes(step)
    assert measured == pytest.approx(loss_bytes(SHAPE, TOKENS, chunk_tokens, with_reference), rel=0.05)


@pytest.mark.parametrize("master", ["float32", "split"])
def test_weights_moments_and_gradients(workspace: Path, tmp_path: Path, master: str) -> None:
    config = make_config(
        workspace,
        tmp_path / "run",
        runtime={"dtype": "bfloat16"},
        optimizer={"master": master},
        batch={"micro_batch": 8},
        schedule={"max_steps": 1},
    )
    config.output.mkdir()
    with process_group(config.runtime) as ranks:
        inputs = open_inputs(config)
        train_step = TrainStep(config, inputs, ranks, Interruption())
        assert train_step.objective._reference is not None
        update, gradients = train_step.optimizer.update, []

        def record(norm: Tensor, max_norm: float) -> None:
            gradients.extend(GradientSum.of(parameter).total for parameter in train_step.model.parameters())
            update(norm, max_norm)

        train_step.optimizer.update = record  # type: ignore[method-assign]
        train_step(TrainState(), next(step_batches(config, inputs, ranks, 0)))
        states = train_step.optimizer.state.values()
        found = {
            "moments": sum(state[name].nbytes for state in states for name in ("exp_avg", "exp_avg_sq")),
            "gradients": sum(x.nbytes for x in gradients),
            "reference": sum(x.nbytes for x in train_step.objective._reference.parameters()),
        }
        found["parameters"] = sum(x.nbytes for x in train_step.model.parameters())
        if master == "split":
            found["remainders"] = sum(state["remainder"].nbytes for state in states)
        else:
            found["master weights"] = sum(x.nbytes for x in train_step.optimizer.stored.values())
        assert all(parameter.grad is None for parameter in train_step.model.parameters())
    predicted = memory(config, inputs.model, 1)
    for name, size in found.items():
        assert size == pytest.approx(predicted[name], rel=0.05), name
