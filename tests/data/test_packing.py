"""Packing and loading: every target once an epoch, and nothing depends on ranks."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast.data.packing import IGNORED, Batch, PackedCorpus, StepLoader
from vikhr_fast.data.token_shards import TokenShards


@pytest.fixture(scope="module")
def sources(workspace: Path) -> dict[str, TokenShards]:
    return {name: TokenShards.open(workspace / name) for name in ("train", "other")}


@pytest.mark.slow
@given(length=st.integers(2, 400), epochs=st.integers(1, 3), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_every_position_once_an_epoch(sources: dict[str, TokenShards], length: int, epochs: int, seed: int) -> None:
    corpus = PackedCorpus(sources, length, epochs, seed)
    seen: Counter[tuple[int, int, int]] = Counter()
    for index in range(corpus.num_sequences):
        windows = corpus.windows(index)
        assert 0 < sum(window.length for window in windows) <= length
        for window in windows:
            for position in range(window.start, window.start + window.length):
                seen[window.source, window.document, position] += 1
    expected = {
        (number, document, position)
        for number, shards in enumerate(sources.values())
        for document in range(shards.num_documents)
        for position in range(shards.lengths[document] - 1)
    }
    assert seen.keys() == expected
    assert set(seen.values()) == {epochs}
    assert corpus.windows(corpus.num_sequences) == []


def test_batch_holds_inputs_targets_and_boundaries(sources: dict[str, TokenShards]) -> None:
    corpus = PackedCorpus(sources, 100, epochs=1, seed=0)
    shards = list(sources.values())
    indices = [0, 3, corpus.num_sequences - 1, corpus.num_sequences + 5]
    batch = corpus.batch(indices)
    assert batch.tokens.shape == batch.targets.shape == batch.sources.shape == (400,)
    assert batch.cu_seqlens[0] == 0
    assert batch.cu_seqlens[-1] == 400
    start = 0
    for number, window in enumerate(window for index in indices for window in corpus.windows(index)):
        assert batch.cu_seqlens[number] == start
        rows = slice(start, start + window.length)
        text = torch.tensor(shards[window.source].document(window.document).tolist())
        assert torch.equal(batch.tokens[rows], text[window.start : window.start + window.length])
        assert torch.equal(batch.targets[rows], text[window.start + 1 : window.start + window.length + 1])
        assert (batch.sources[rows] == window.source).all()
        start += window.length
    assert (batch.targets[start:] == IGNORED).all()
    assert batch.trained_tokens == start


def test_order_follows_from_the_seed_and_changes_with_epoch_and_seed(sources: dict[str, TokenShards]) -> None:
    def order(seed: int) -> list[object]:
        corpus = PackedCorpus(sources, 64, epochs=2, seed=seed)
        return [corpus.windows(index) for index in range(corpus.num_sequences)]

    first = order(seed=1)
    assert first == order(seed=1)
    assert first != order(seed=2)
    half = len(first) // 2
    assert first[:half] != first[half : 2 * half]


@pytest.mark.parametrize("window", [None, 1, 9, 1000])
@pytest.mark.parametrize("sequence_length", [7, 64, 10_000])
def test_mean_pairs_are_those_of_its_batches(
    sources: dict[str, TokenShards], sequence_length: int, window: int | None
) -> None:
    corpus = PackedCorpus(sources, sequence_length, epochs=2, seed=0)
    lengths = [window.length for index in range(corpus.num_sequences) for window in corpus.windows(index)]
    pairs = [sum(min(i + 1, window or i + 1) for i in range(length)) for length in lengths]
    assert corpus.mean_pairs(window) == pytest.approx(sum(pairs) / sum(lengths), rel=1e-12)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    assert Batch(bounds, bounds, bounds, bounds).seen_pairs(window) == sum(pairs)


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 12), (1, 3), (2, 6), (2, 2), (4, 3)])
def test_ranks_and_micro_batches_only_divide_a_step(
    sources: dict[str, TokenShards], ranks: int, micro_batch: int
) -> None:
    corpus = PackedCorpus(sources, 64, epochs=1, seed=0)
    num_steps = -(-corpus.num_sequences // 12)
    expected = [Counter(batch_documents(corpus, range(12 * step, 12 * step + 12))) for step in range(num_steps)]
    actual = [Counter[tuple[int, ...]]() for _ in range(num_steps)]
    for rank in range(ranks):
        loader = StepLoader(corpus, sequences_per_step=12, micro_batch=micro_batch, rank=rank, ranks=ranks)
        for step, batches in loader.steps(0, num_steps):
            left = min(12, corpus.num_sequences - 12 * step)
            assert len(batches) == -(-left // (ranks * micro_batch))  # none of padding alone
            for batch in batches:
                actual[step].update(documents_of(batch.tokens, batch.targets, batch.cu_seqlens))
    assert actual == expected


def test_loader_goes_on_from_any_step(sources: dict[str, TokenShards]) -> None:
    loader = StepLoader(PackedCorpus(sources, 64, epochs=1, seed=0), sequences_per_step=4, micro_batch=2)
    whole = dict(loader.steps(0, 6))
    for step, batches in loader.steps(4, 6):
        for ours, expected in zip(batches, whole[step], strict=True):
            assert torch.equal(ours.tokens, expected.tokens)
    assert list(loader.steps(6, 6)) == []


def batch_documents(corpus: PackedCorpus, indices: range) -> list[tuple[int, ...]]:
    batch = corpus.batch(list(indices))
    return documents_of(batch.tokens, batch.targets, batch.cu_seqlens)


def documents_of(tokens: torch.Tensor, targets: torch.Tensor, cu_seqlens: torch.Tensor) -> list[tuple[int, ...]]:
    """The tokens of each packed document that has targets."""
    pieces = zip(tokens.split(cu_seqlens.diff().tolist()), targets.split(cu_seqlens.diff().tolist()), strict=True)
    return [tuple(piece.tolist()) for piece, target in pieces if (target != IGNORED).any()]


def test_padding_is_cut_into_documents_no_longer_than_a_sequence(sources: dict[str, TokenShards]) -> None:
    corpus = PackedCorpus(sources, 50, epochs=1, seed=0)
    batch = corpus.batch([corpus.num_sequences, corpus.num_sequences + 1])
    assert batch.cu_seqlens.tolist() == [0, 50, 100]
    assert batch.trained_tokens == 0
