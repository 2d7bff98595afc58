"""A step on one rank: nothing is gathered, no parameter is copied, gradients add up where they are made."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_runs import make_config

from vikhr_fast.config import TrainConfig
from vikhr_fast.data.packing import IGNORED, Batch
from vikhr_fast.distributed.ranks import Ranks, process_group
from vikhr_fast.model.config import read_config
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.train import inputs
from vikhr_fast.train.batches import step_batches
from vikhr_fast.train.inputs import open_inputs, record_inputs
from vikhr_fast.train.signals import Interrupted, Interruption
from vikhr_fast.train.state import TrainState
from vikhr_fast.train.step import TrainStep
from vikhr_kernels import GradientSum, PackedDocuments, attention_dispatch
from vikhr_kernels.layout import stacked

WAYS = [("float32", "float32"), ("float64", "float32"), ("bfloat16", "float32"), ("bfloat16", "split")]
MICRO_BATCHES = 4
VOCABULARY = torch.Size((520, 32))


@contextmanager
def opened(config: TrainConfig) -> Iterator[tuple[TrainStep, Iterator[list[Batch]]]]:
    given = open_inputs(config)
    record_inputs(config, given)
    with process_group(config.runtime) as ranks, closing(step_batches(config, given, ranks, 0)) as steps:
        yield TrainStep(config, given, ranks, Interruption()), steps


def config_of(workspace: Path, output: Path, dtype: str, master: str) -> TrainConfig:
    runtime, optimizer = {"dtype": dtype}, {"master": master, "warmup_steps": 0}
    return make_config(workspace, output, runtime=runtime, optimizer=optimizer)


def test_a_step_without_a_trained_token_comes_to_0(workspace: Path, tmp_path: Path) -> None:
    with opened(config_of(workspace, tmp_path / "run", "float32", "float32")) as (train_step, steps):
        batches = [dataclasses.replace(batch, targets=torch.full_like(batch.targets, IGNORED)) for batch in next(steps)]
        result = train_step.measure(TrainState(), batches)
    assert (result.tokens, result.loss, result.ce, result.kl, result.grad_norm) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(("window", "length"), [(None, "long"), (3, "short")])
def test_every_layer_attends_by_one_object_and_the_runs_length(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int | None, length: str
) -> None:
    """One a forward pass; its length is that of all documents under the model's window, whatever is in a batch."""
    monkeypatch.setattr(attention_dispatch, "LONG", 4)
    config = read_config(workspace / "model")
    monkeypatch.setattr(inputs, "shape_of", lambda _: dataclasses.replace(config, sliding_window=window))
    with opened(config_of(workspace, tmp_path / "run", "float32", "float32")) as (train_step, steps):
        models = [train_step.model, train_step.objective._reference]
        seen: list[list[PackedDocuments]] = [[] for _ in models]
        for model, given in zip(models, seen, strict=True):
            for layer in model.model.layers:
                attend = layer.self_attn.flash_attention
                layer.self_attn.flash_attention = partial(recorded, attend, given)
        batches = next(steps)
        train_step(TrainState(), batches)
    layers = train_step.model.config.num_hidden_layers
    assert layers > 1
    for given in seen:
        assert {documents.length for documents in given} == {length}
        assert [len(set(map(id, given[i : i + layers]))) for i in range(0, len(given), layers)] == [1] * len(batches)


def recorded(
    attend: Callable[..., Tensor], given: list[PackedDocuments], *x: Tensor, documents: PackedDocuments
) -> Tensor:
    given.append(documents)
    return attend(*x, documents=documents)


class Written(TorchDispatchMode):
    """Counts the tensors of given shapes that operations make or write, alone or in a list."""

    def __init__(self, shapes: set[torch.Size]) -> None:
        super().__init__()
        self.shapes, self.calls = shapes, Counter[tuple[str, torch.Size]]()

    def __torch_dispatch__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))
        written = [] if _is_view(func) else tree_leaves(result)
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written += tree_leaves(value)
        places = {x.data_ptr(): x.shape for x in written if isinstance(x, Tensor) and x.shape in self.shapes}
        self.calls.update((str(func).split(".")[1], shape) for shape in places.values())
        return result


def _is_view(func: Any) -> bool:
    aliases = [value.alias_info for value in func._schema.returns]
    return all(alias is not None and not alias.is_write for alias in aliases)


@pytest.mark.parametrize(("dtype", "master"), WAYS)
def test_what_a_step_does_to_tensors_of_the_parameters_sizes(
    workspace: Path, tmp_path: Path, dtype: str, master: str
) -> None:
    with opened(config_of(workspace, tmp_path / "run", dtype, master)) as (train_step, steps):
        frozen = train_step.objective._reference
        assert frozen is not None
        assert not any(
            isinstance(module, FSDPModule) for model in (train_step.model, frozen) for module in model.modules()
        )
        whole = [stacked(weights) for model in (train_step.model, frozen) for weights in model.sharing_input()]
        assert all(matrix is not None for matrix in whole)  # q, k, v are one product, gate and up another one
        matrices = {p.shape for p in train_step.model.parameters() if p.dim() > 1}
        matrices |= {matrix.shape for matrix in whole if matrix is not None}
        state = TrainState().after(train_step(TrainState(), next(steps)))
        batches = next(steps)
        addresses = [parameter.data_ptr() for parameter in train_step.model.parameters()]
        with Written(matrices) as written:
            train_step(state, batches)
        assert addresses == [parameter.data_ptr() for parameter in train_step.model.parameters()]
    assert len(batches) == MICRO_BATCHES
    layers, ends = Counter[str](), Counter[str]()
    for (name, shape), calls in written.calls.items():
        (ends if shape == VOCABULARY else layers)[name] += calls
    # What the update writes of a matrix: master and moments (by PyTorch's signature gradients, by ours remainders), the
    # clipped gradient; then the copy of masters that are wider.
    if master == "split":
        update = {"adamw": 4}
    else:
        update = {"_fused_adamw_": 4, "_foreach_mul_": 1, **({"_foreach_copy_": 1} if dtype == "bfloat16" else {})}
    # Two layers, each with a product for q, k and v, one for the output, one for gate and up, one for down.
    products = {"addmm": 2 * 4 * MICRO_BATCHES}
    assert layers == {**products, **{name: 2 * 7 * each for name, each in update.items()}}
    # Of the embedding the rows of a batch's tokens; of the head what the loss has made already.
    rows = {"zero_": 1, "index_add_": MICRO_BATCHES, "linear_ce_kl": MICRO_BATCHES, "scale_into": MICRO_BATCHES}
    assert ends == {**rows, **{name: 2 * each for name, each in update.items()}}


@pytest.mark.parametrize(("dtype", "master"), WAYS)
def test_a_gradient_reaches_every_parameter_in_every_micro_batch(
    workspace: Path, tmp_path: Path, dtype: str, master: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: Counter[int] = Counter()

    with opened(config_of(workspace, tmp_path / "run", dtype, master)) as (train_step, steps):
        sums: dict[str, GradientSum] = {name: GradientSum.of(p) for name, p in train_step.model.named_parameters()}
        backward = Tensor.backward

        def counting(loss: Tensor) -> None:
            for one in sums.values():
                one.clear()
            backward(loss)
            for number, one in enumerate(sums.values()):
                added[number] += not one.is_empty

        monkeypatch.setattr(Tensor, "backward", counting)
        train_step(TrainState(), next(steps))
    assert added == dict.fromkeys(range(len(sums)), MICRO_BATCHES)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "master"), WAYS)
@pytest.mark.parametrize("spoiling", ["interrupted", "skipped", "measured", "poisoned"])
def test_what_an_unfinished_step_leaves_behind_is_forgotten(
    workspace: Path, tmp_path: Path, dtype: str, master: str, spoiling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for spoilt in (False, True):
        with opened(config_of(workspace, tmp_path / str(spoilt), dtype, master)) as (train_step, steps):
            state, batches = TrainState(), next(steps)
            if spoilt and spoiling == "interrupted":
                signals = partial(next, iter([0, 0, 15]))
                monkeypatch.setattr(Ranks, "all_reduce_max", lambda *_, signals=signals: (signals(),))
                with pytest.raises(Interrupted):
                    train_step(state, batches[::-1])
                monkeypatch.undo()
            if spoilt and spoiling == "skipped":
                monkeypatch.setattr("vikhr_fast.train.step.reason_to_skip", lambda *_: "tested")
                assert train_step(state, batches[::-1]).is_skipped
                monkeypatch.undo()
            if spoilt and spoiling == "measured":
                train_step.measure(state, batches[::-1])
            if spoilt and spoiling == "poisoned":
                for parameter in train_step.model.parameters():
                    GradientSum.of(parameter)._total.fill_(torch.nan)
            first = train_step(state, batches)
            trained = [p.detach().clone() for p in train_step.model.parameters()]
            outcomes.append((first.loss, first.grad_norm, trained))
    (loss, norm, weights), (other_loss, other_norm, others) = outcomes
    assert (loss, norm) == (other_loss, other_norm)
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))


@pytest.mark.parametrize(("dtype", "master"), WAYS)
def test_the_sums_are_autograds_gradients(workspace: Path, tmp_path: Path, dtype: str, master: str) -> None:
    """A whole step's, of each parameter, against models of the same weights without sums or wide products."""
    with opened(config_of(workspace, tmp_path / "run", dtype, master)) as (train_step, steps):
        batches = next(steps)
        plain, exact = (
            Mistral.from_pretrained(workspace / "model", dtype=getattr(torch, name)) for name in (dtype, "float64")
        )
        exact.load_state_dict(plain.state_dict())
        sums = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in plain.named_parameters()}
        num_tokens = torch.tensor(sum(batch.trained_tokens for batch in batches))
        for batch in batches:
            train_step.objective(batch, None, num_tokens=num_tokens, weights=(1.0, 0.0))[0].backward()
            hidden = plain(batch.tokens, cu_seqlens=batch.cu_seqlens)
            plain.lm_head(hidden, targets=batch.targets, num_tokens=num_tokens)[0].backward()
            log_p = exact.logits(exact(batch.tokens, cu_seqlens=batch.cu_seqlens)).log_softmax(-1)
            (F.nll_loss(log_p, batch.targets, reduction="sum") / num_tokens).backward()
            for name, parameter in plain.named_parameters():
                assert parameter.grad is not None
                sums[name] += parameter.grad
                parameter.grad = None
        truths = dict(exact.named_parameters())
        for name, parameter in train_step.model.named_parameters():
            found, truth = GradientSum.of(parameter), truths[name].grad
            assert found is not None
            assert truth is not None
            error, allowed = (found.total - truth).norm(), (sums[name] - truth).norm()
            assert error <= (1e-12 * truth.norm() if dtype == "float64" else 2 * allowed), name
