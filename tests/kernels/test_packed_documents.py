"""What attention is told of packed documents, against the definition, token by token."""

import itertools

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vikhr_kernels import PackedDocuments
from vikhr_kernels.packed_documents import BLOCK

LENGTHS = st.lists(st.integers(0, 300), min_size=1, max_size=12)


def packed(lengths: list[int], window: int | None) -> PackedDocuments:
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    apart = torch.stack((bounds, bounds), 1)[:, 0]  # not contiguous
    return PackedDocuments.of(apart, sum(lengths), window)


@given(LENGTHS, st.none() | st.integers(1, 400))
@example([0, 0], None)
@settings(max_examples=60, deadline=None)
def test_ranges(lengths: list[int], window: int | None) -> None:
    first, end = packed(lengths, window).ranges
    starts = list(itertools.accumulate(lengths, initial=0))
    documents = [(s, s + n) for s, n in zip(starts, lengths, strict=False) for _ in range(n)]
    width = window or 10_000
    assert first.tolist() == [max(s, i - width + 1) for i, (s, _) in enumerate(documents)]
    assert end.tolist() == [min(e, i + width) for i, (_, e) in enumerate(documents)]
    assert first.dtype == end.dtype == torch.int32


@given(LENGTHS.filter(any), st.none() | st.integers(1, 400))
@example([128], None)
@example([1300], 1000)
@example([5, 100, 790, 2, 300], 1000)
@settings(max_examples=60, deadline=None)
def test_blocks_of_keys_start_with_the_longest_and_end_with_the_last(lengths: list[int], window: int | None) -> None:
    """By the queries that see one of its keys; the last key sees as far as any."""
    documents = packed(lengths, window)
    _, end = documents.ranges
    order = documents.order.tolist()
    distances = [int(end[start : start + BLOCK].max()) - start for start in range(0, sum(lengths), BLOCK)]
    assert sorted(order) == list(range(len(distances)))
    assert [distances[block] for block in order] == [*sorted(distances[:-1], reverse=True), distances[-1]]


def test_both_are_made_once() -> None:
    documents = packed([3, 200], None)
    once, again = ((*documents.ranges, documents.order) for _ in range(2))
    assert all(a is b for a, b in zip(once, again, strict=True))
