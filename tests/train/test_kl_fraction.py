"""The KL on a share of the sequences: in expectation the whole KL, and the same run on any number of ranks."""

import itertools
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from training_runs import make_config, run_ranks

from vikhr_fast.config import TrainConfig, config_values
from vikhr_fast.data import packing
from vikhr_fast.data.packing import IGNORED, Batch, PackedCorpus, StepLoader, draw
from vikhr_fast.distributed.ranks import process_group
from vikhr_fast.errors import InputError
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.train.batches import step_batches
from vikhr_fast.train.inputs import open_inputs
from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import METRICS
from vikhr_fast.train.signals import Interruption
from vikhr_fast.train.state import TrainState
from vikhr_fast.train.step import TrainStep

IN_TURN = Path(__file__).parents[1] / "helpers" / "runs_in_turn.py"
NAMES = ("step", "loss", "ce", "kl", "grad_norm", "tokens", "flops", "reference_flops")


@pytest.fixture(scope="module")
def other(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference whose KL isn't zero at any step."""
    directory = tmp_path_factory.mktemp("reference") / "model"
    shutil.copytree(workspace / "model", directory)
    generator = torch.Generator().manual_seed(7)
    weights = load_file(directory / "model.safetensors")
    moved = {name: w + 0.05 * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    save_file(moved, directory / "model.safetensors")
    return directory


def config_of(workspace: Path, output: Path, other: Path, fraction: float, **changes: Any) -> TrainConfig:
    sections: dict[str, Any] = {"batch": {"micro_batch": 1, "sequences_per_step": 16}, "schedule": {"max_steps": 5}}
    sections |= changes
    kl = {"fraction": fraction, "reference": other, **sections.pop("kl", {})}
    return make_config(workspace, output, kl=kl, **sections)


@contextmanager
def opened(config: TrainConfig) -> Iterator[tuple[TrainStep, Callable[[], Iterator[list[Batch]]]]]:
    config.output.mkdir(parents=True)
    with process_group(config.runtime) as ranks:
        inputs = open_inputs(config, verify=False)
        yield TrainStep(config, inputs, ranks, Interruption()), partial(step_batches, config, inputs, ranks, 0)


def step_of(train_step: TrainStep, state: TrainState, batches: list[Batch]) -> tuple[dict[str, Tensor], Tensor]:
    """The gradients of a step, and the loss with the sums that are reported; nothing is updated."""
    found: dict[str, Tensor] = {}

    def record(*_: object) -> None:
        found.update({name: gradient.clone() for name, gradient in train_step.optimizer.gradients().items()})
        train_step.optimizer.skip()

    train_step.optimizer.update = record  # type: ignore[method-assign]
    result = train_step(state, batches)
    return found, torch.tensor([result.loss, *result.losses], dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
@pytest.mark.parametrize("combine", ["sum", "slerp"])
def test_the_expected_gradient_is_the_full_one(
    workspace: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, combine: str, micro_batch: int
) -> None:
    """Over all subsets of a step of four sequences, each as likely as any other; the sums for slerp's weights, too."""
    changes: dict[str, Any] = {
        "batch": {"micro_batch": micro_batch, "sequences_per_step": 4},
        "kl": {"combine": combine},
        "data": {"train": {"train": workspace / "train", "other": workspace / "other"}, "epochs": 1},
    }
    state = TrainState(losses=(9.0, 2.0, 8.0, 3.0, 2.0))  # of the step before: slerp's weights follow from them
    outcomes = []
    with opened(config_of(workspace, tmp_path / "full", other, 1.0, **changes)) as (train_step, steps):
        expected, expected_sums = step_of(train_step, state, next(steps()))
    for count in (1, 2, 3):
        subsets = list(itertools.combinations(range(4), count))
        config = config_of(workspace, tmp_path / str(count), other, count / 4, **changes)
        with opened(config) as (train_step, steps):
            for subset in subsets:
                monkeypatch.setattr(packing, "draw", lambda *_, subset=subset: set(subset))
                outcomes.append(step_of(train_step, state, next(steps())))
        gradients, sums = zip(*outcomes[-len(subsets) :], strict=True)
        torch.testing.assert_close(sum(sums) / len(subsets), expected_sums, rtol=1e-12, atol=1e-12)
        for name, gradient in expected.items():
            mean = sum(found[name] for found in gradients) / len(subsets)
            assert (mean - gradient).norm() <= 1e-12 * gradient.norm(), name
            assert (gradients[0][name] - gradient).norm() > 1e-4 * gradient.norm()  # one subset alone isn't enough


@given(
    seed=st.integers(0, 2**40),
    first=st.integers(0, 10**9),
    count=st.integers(1, 50),
    fractions=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
)
@settings(deadline=None)
def test_draws_are_of_the_size_asked_for_and_nested(seed: int, first: int, count: int, fractions: list[float]) -> None:
    sequences = range(first, first + count)
    small, large = (draw(seed, sequences, fraction) for fraction in fractions)
    assert small <= large <= set(sequences)
    assert [len(small), len(large)] == [math.ceil(fraction * count - 1e-9) for fraction in fractions]
    assert draw(seed, sequences[::-1], fractions[0]) == small


def test_every_sequence_and_every_pair_is_drawn_as_often_as_any_other() -> None:
    trials = 4000
    found = [draw(seed, range(100, 106), 0.5) for seed in range(trials)]
    singles = Counter(sequence for drawn in found for sequence in drawn)
    pairs = Counter(pair for drawn in found for pair in itertools.combinations(sorted(drawn), 2))
    assert len(singles) == 6
    assert len(pairs) == 15
    assert all(abs(n - trials / 2) < 5 * math.sqrt(trials / 4) for n in singles.values())
    assert all(abs(n - trials / 5) < 5 * math.sqrt(trials * 4 / 25) for n in pairs.values())


@pytest.fixture(scope="module")
def corpus(workspace: Path) -> PackedCorpus:
    return open_inputs(make_config(workspace, workspace / "unused"), verify=False).corpus


@given(
    shape=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 3]), st.integers(1, 4)),
    share=st.integers(1, 48),
)
@settings(deadline=None, max_examples=25)
def test_all_ranks_ask_the_reference_as_often(corpus: PackedCorpus, shape: tuple[int, int, int], share: int) -> None:
    """And together they have every token of the step once, with the factor of its own sequence."""
    ranks, micro_batch, accumulation = shape
    size = ranks * micro_batch * accumulation
    fraction = min(share, size) / size
    sizes = {"sequences_per_step": size, "micro_batch": micro_batch, "ranks": ranks}
    for step in {0, -(-corpus.num_sequences // size) - 1}:
        sequences = range(step * size, min((step + 1) * size, corpus.num_sequences))
        drawn = draw(corpus.seed, sequences, fraction)
        expected, found = Counter[tuple[int, float]](), Counter[tuple[int, float]]()
        for sequence in sequences:
            factor = len(sequences) / len(drawn) if sequence in drawn else 0.0
            targets = corpus.batch([sequence]).targets
            expected.update((target, factor) for target in targets[targets != IGNORED].tolist())
        asked = []
        for rank in range(ranks):
            loader = StepLoader(corpus, **sizes, rank=rank, kl_fraction=fraction)
            [(_, batches)] = loader.steps(step, step + 1)
            asked.append([batch.has_kl for batch in batches])
            for batch in batches:
                trained = batch.targets != IGNORED
                factors = torch.as_tensor(batch.kl_factor, dtype=torch.float64).expand(len(trained))
                found.update(zip(batch.targets[trained].tolist(), factors[trained].tolist(), strict=True))
        assert found == expected
        assert asked.count(asked[0]) == ranks
        assert asked[0] == sorted(asked[0], reverse=True)
        assert sum(asked[0]) == -(-len(drawn) // (ranks * micro_batch))


@pytest.fixture(scope="module")
def on_ranks(
    workspace: Path, other: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The metrics of runs with a quarter of the KL, by how it is combined and the ranks."""
    root = tmp_path_factory.mktemp("ranks")
    metrics = {}
    ways = {1: (3, 1), 2: (1, 2), 4: (1, 1)}  # micro-batches of other sizes, and of other groups of the reference
    for ranks, (micro_batch, together) in ways.items():
        files = []
        for combine in ("sum", "slerp"):
            output = root / f"{combine}-{ranks}"
            config = config_of(
                workspace,
                output,
                other,
                0.25,
                batch={"micro_batch": micro_batch, "sequences_per_step": 12},
                kl={"combine": combine},
                schedule={"max_steps": 3},
                runtime={"reference_micro_batches": together, "keep_gathered": ranks == 4},
            )
            output.with_suffix(".json").write_text(json.dumps(config_values(config)))
            files.append(str(output.with_suffix(".json")))
        run_ranks([str(IN_TURN), *files], ranks)
        metrics |= {(c, ranks): read_lines(root / f"{c}-{ranks}" / METRICS) for c in ("sum", "slerp")}
    return metrics


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("combine", ["sum", "slerp"])
def test_it_is_the_same_run_on_any_ranks(
    on_ranks: dict[tuple[str, int], list[dict[str, Any]]], combine: str, ranks: int
) -> None:
    alone, ours = on_ranks[combine, 1], on_ranks[combine, ranks]
    assert len(alone) == 3
    assert min(line["kl"] for line in alone) > 1e-3
    for line, expected in zip(ours, alone, strict=True):
        for name in ("loss", "ce", "kl", "grad_norm", "tokens"):
            assert line[name] == pytest.approx(expected[name], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("combine", ["sum", "slerp"])
def test_a_stopped_run_goes_on_bit_for_bit(workspace: Path, other: Path, tmp_path: Path, combine: str) -> None:
    def config(output: str, steps: int) -> TrainConfig:
        changes: dict[str, Any] = {"kl": {"combine": combine}, "schedule": {"max_steps": steps}}
        return config_of(workspace, tmp_path / output, other, 0.25, **changes)

    whole = train(config("whole", 6))
    for steps in (2, 3, 6):
        shutil.rmtree(tmp_path / "parts" / "model", ignore_errors=True)
        parts = train(config("parts", steps))
    first, second = (
        [[line[name] for name in NAMES] for line in read_lines(tmp_path / output / METRICS)]
        for output in ("whole", "parts")
    )
    assert first == second
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


def test_another_share_is_another_run(workspace: Path, other: Path, tmp_path: Path) -> None:
    config = config_of(workspace, tmp_path / "run", other, 0.25, schedule={"max_steps": 1})
    shutil.rmtree(train(config))
    with pytest.raises(InputError, match=r"this run began with other values of kl\.fraction"):
        train(replace(config, kl=replace(config.kl, fraction=0.5)))


@pytest.mark.parametrize(
    ("fraction", "sequences"), [(0.3, "4.8"), (0.05, "0.8"), (1 / 3, "5.33333"), (1e-12, "1.6e-11")]
)
def test_a_share_must_be_whole_sequences(
    workspace: Path, other: Path, tmp_path: Path, fraction: float, sequences: str
) -> None:
    with pytest.raises(InputError, match=rf"kl\.fraction: .* of batch\.sequences_per_step 16 is {sequences} sequences"):
        train(config_of(workspace, tmp_path / "run", other, fraction))


def test_without_a_reference_nothing_is_drawn(workspace: Path, tmp_path: Path) -> None:
    outcomes = []
    for name, fraction in (("all", 1.0), ("half", 0.5)):
        config = make_config(
            workspace, tmp_path / name, kl={"weight": 0.0, "fraction": fraction}, schedule={"max_steps": 2}
        )
        train(config)
        outcomes.append([[line[name] for name in NAMES] for line in read_lines(config.output / METRICS)])
    assert outcomes[0] == outcomes[1]
