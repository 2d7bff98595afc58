"""A step on one rank: nothing is gathered, no parameter is copied, gradients add up where they are made."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import make_config

from vikhr_fast.config import TrainConfig
from vikhr_fast.ranks import process_group
from vikhr_fast.train.inputs import open_inputs, record_inputs
from vikhr_fast.train.interruption import Interruption
from vikhr_fast.train.loop import Training
from vikhr_kernels.gradient_sum import GradientSum, stacked

WAYS = [("float32", "float32"), ("float64", "float32"), ("bfloat16", "float32"), ("bfloat16", "split")]
MICRO_BATCHES = 4


@contextmanager
def opened(config: TrainConfig) -> Iterator[Training]:
    inputs = open_inputs(config)
    record_inputs(config, inputs)
    with process_group(config.runtime) as ranks:
        yield Training(config, inputs, ranks, Interruption())


def config_of(workspace: Path, output: Path, dtype: str, master: str) -> TrainConfig:
    runtime, optimizer = {"dtype": dtype}, {"master": master, "warmup_steps": 0}
    return make_config(workspace, output, runtime=runtime, optimizer=optimizer)


class Written(TorchDispatchMode):
    """Counts operations that write or make a tensor of a parameter's shape, and communication of tensors."""

    def __init__(self, shapes: set[torch.Size]) -> None:
        super().__init__()
        self.shapes, self.calls, self.scaled = shapes, Counter[tuple[str, torch.Size]](), 0

    def __torch_dispatch__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))
        name = str(func).split(".")
        self.scaled += name[1] == "scale_into"
        if isinstance(result, Tensor) and result.shape in self.shapes and not _is_view(func):
            self.calls[name[1], result.shape] += 1
        return result


def _is_view(func: Any) -> bool:
    aliases = [value.alias_info for value in func._schema.returns]
    return all(alias is not None and not alias.is_write for alias in aliases)


@pytest.mark.parametrize(("dtype", "master"), WAYS)
def test_what_a_step_does_to_tensors_of_the_parameters_sizes(
    workspace: Path, tmp_path: Path, dtype: str, master: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    communicated: list[str] = []
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "broadcast"):
        monkeypatch.setattr(dist, name, lambda *_, name=name, **__: communicated.append(name))
    with opened(config_of(workspace, tmp_path / "run", dtype, master)) as training:
        whole = [stacked(weights) for weights in training.model.sharing_input()]
        assert all(matrix is not None for matrix in whole)  # q, k, v are one product, gate and up another one
        matrices = {p.shape for p in training.model.parameters() if p.dim() > 1}
        matrices |= {matrix.shape for matrix in whole if matrix is not None}
        steps = training._batches()
        training._step(*next(steps))
        step, batches = next(steps)
        update = training.optimizer.update
        with Written(matrices) as written:
            monkeypatch.setattr(training.optimizer, "update", lambda *_: None)
            training._step(step, batches)
        monkeypatch.setattr(training.optimizer, "update", update)
        addresses = [parameter.data_ptr() for parameter in training.model.parameters()]
        training._step(*next(steps))
        assert addresses == [parameter.data_ptr() for parameter in training.model.parameters()]
    assert len(batches) == MICRO_BATCHES
    assert communicated == []
    vocabulary = torch.Size((520, 32))
    layers, ends = Counter[str](), Counter[str]()
    for (name, shape), calls in written.calls.items():
        (ends if shape == vocabulary else layers)[name] += calls
    # Two layers, each with a product for q, k and v, one for the output, one for gate and up, one for down.
    assert layers == {"addmm": 2 * 4 * MICRO_BATCHES}
    # Of the embedding only the rows of a batch's tokens; of the head what the loss has made already, as of its input.
    assert ends == {"zero_": 1, "index_add_": MICRO_BATCHES}
    assert written.scaled == 2 * MICRO_BATCHES


@pytest.mark.parametrize(("dtype", "master"), WAYS)
def test_a_gradient_reaches_every_parameter_in_every_micro_batch(
    workspace: Path, tmp_path: Path, dtype: str, master: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: Counter[int] = Counter()

    with opened(config_of(workspace, tmp_path / "run", dtype, master)) as training:
        sums: dict[str, GradientSum] = {name: p.gradient_sum for name, p in training.model.named_parameters()}
        backward = Tensor.backward

        def counting(loss: Tensor) -> None:
            for one in sums.values():
                one.clear()
            backward(loss)
            for number, one in enumerate(sums.values()):
                added[number] += not one._is_empty

        monkeypatch.setattr(Tensor, "backward", counting)
        training._step(*next(training._batches()))
    assert added == dict.fromkeys(range(len(sums)), MICRO_BATCHES)


@pytest.mark.parametrize(("dtype", "master"), WAYS)
@pytest.mark.parametrize("spoiling", ["interrupted", "skipped", "measured", "poisoned"])
def test_what_an_unfinished_step_leaves_behind_is_forgotten(
    workspace: Path, tmp_path: Path, dtype: str, master: str, spoiling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for spoilt in (False, True):
        with opened(config_of(workspace, tmp_path / str(spoilt), dtype, master)) as training:
            step, batches = next(training._batches())
            if spoilt and spoiling == "interrupted":
                signals = partial(next, iter([0, 0, 15]))
                monkeypatch.setattr(type(training.ranks), "most", lambda *_, signals=signals: (signals(),))
                assert training._step(step, batches[::-1]) is None
                monkeypatch.undo()
            if spoilt and spoiling == "skipped":
                monkeypatch.setattr("vikhr_fast.train.loop.reason_to_skip", lambda *_: "tested")
                training._step(step, batches[::-1])
                monkeypatch.undo()
            if spoilt and spoiling == "measured":
                training.measure(batches[-1])
            if spoilt and spoiling == "poisoned":
                for parameter in training.model.parameters():
                    parameter.gradient_sum._total.fill_(torch.nan)
            first = training._step(step, batches)
            assert first is not None
            trained = [p.detach().clone() for p in training.model.parameters()]
            outcomes.append((first.loss, first.grad_norm, trained))
    (loss, norm, weights), (other_loss, other_norm, others) = outcomes
    assert (loss, norm) == (other_loss, other_norm)
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))


def test_in_float64_the_sums_are_autograds_gradients(workspace: Path, tmp_path: Path) -> None:
    """A whole step's, against a model of the same weights that knows nothing of sums or wide products."""
    with opened(config_of(workspace, tmp_path / "run", "float64", "float32")) as training:
        _, batches = next(training._batches())
        plain = training.objective._reference
        assert plain is not None
        plain.requires_grad_(True)
        for parameter in plain.parameters():
            parameter.data = parameter.data.clone()  # parts what is stacked
        tokens = sum(batch.trained_tokens for batch in batches)
        for batch in batches:
            loss, _ = training.objective(
                batch.tokens, batch.targets, batch.cu_seqlens, batch.sources,
                num_tokens=torch.tensor(tokens), weights=(1.0, 0.0),
            )  # fmt: skip
            loss.backward()
            hidden = plain(batch.tokens, cu_seqlens=batch.cu_seqlens)
            log_p = plain.logits(hidden).log_softmax(-1)
            (torch.nn.functional.nll_loss(log_p, batch.targets, reduction="sum") / tokens).backward()
        for name, parameter in training.model.named_parameters():
            right = dict(plain.named_parameters())[name].grad
            found = parameter.gradient_sum.total
            assert right is not None
            assert (found - right).norm() <= 1e-12 * right.norm(), name
