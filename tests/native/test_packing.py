"""Packing against a naive best-fit decreasing, and the laws it has to keep."""

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast._native import pack_windows

Window = tuple[int, int, int]  # document, start, length

lengths_strategy = st.lists(st.integers(1, 60), max_size=60)
capacity_strategy = st.integers(1, 40)
block_strategy = st.integers(1, 70)
deterministic = settings(max_examples=300, deadline=None)


def pack(lengths: list[int], capacity: int, block: int) -> list[list[Window]]:
    documents, starts, sizes, offsets = pack_windows(np.array(lengths, dtype=np.int64), capacity, block)
    assert {array.dtype for array in (documents, starts, sizes, offsets)} == {np.dtype(np.int64)}
    assert offsets[0] == 0
    assert offsets[-1] == len(documents) == len(starts) == len(sizes)
    windows = list(zip(documents.tolist(), starts.tolist(), sizes.tolist(), strict=True))
    return [windows[begin:end] for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


def naive_pack(lengths: list[int], capacity: int, block: int) -> list[list[Window]]:
    sequences: list[list[Window]] = []
    for first in range(0, len(lengths), block):
        windows = [
            (document, start, min(capacity, length - start))
            for document, length in list(enumerate(lengths))[first : first + block]
            for start in range(0, length, capacity)
        ]
        bins: list[list[Window]] = []
        room: list[int] = []
        filled: list[int] = []  # when each bin was filled last
        for now, window in enumerate(sorted(windows, key=lambda window: -window[2])):
            fitting = [index for index in range(len(bins)) if room[index] >= window[2]]
            if not fitting:
                fitting = [len(bins)]
                bins.append([])
                room.append(capacity)
                filled.append(now)
            best = min(fitting, key=lambda index: (room[index], -filled[index]))
            bins[best].append(window)
            room[best] -= window[2]
            filled[best] = now
        sequences += bins
    return sequences


@deterministic
@given(lengths=lengths_strategy, capacity=capacity_strategy, block=block_strategy)
def test_is_best_fit_decreasing(lengths: list[int], capacity: int, block: int) -> None:
    assert pack(lengths, capacity, block) == naive_pack(lengths, capacity, block)


@deterministic
@given(lengths=lengths_strategy, capacity=capacity_strategy, block=block_strategy)
def test_every_position_once_and_none_too_many(lengths: list[int], capacity: int, block: int) -> None:
    sequences = pack(lengths, capacity, block)
    positions = [
        (document, position)
        for sequence in sequences
        for document, start, size in sequence
        for position in range(start, start + size)
    ]
    assert sorted(positions) == [
        (document, position) for document, length in enumerate(lengths) for position in range(length)
    ]
    assert all(1 <= sum(size for *_, size in sequence) <= capacity for sequence in sequences)
    # A document is cut only at multiples of the capacity.
    assert all(start % capacity == 0 for sequence in sequences for _, start, _ in sequence)
    # Sequences hold documents of one block only, block after block.
    blocks = [{document // block for document, *_ in sequence} for sequence in sequences]
    assert all(len(one) == 1 for one in blocks)
    assert [one for (one,) in blocks] == sorted(one for (one,) in blocks)


@settings(deterministic, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), capacity=st.integers(100, 5000), block=st.sampled_from([7, 60, 300]))
def test_wide_capacities(seed: int, capacity: int, block: int) -> None:
    # Several levels of the search for space, and blocks on both sides of the counting sort.
    lengths = np.random.default_rng(seed).integers(1, 4000, 300).tolist()
    assert pack(lengths, capacity, block) == naive_pack(lengths, capacity, block)


def test_capacity_beyond_all_text_costs_nothing() -> None:
    assert pack([5, 3, 9, 2], 2**31 - 1, 4) == [[(2, 0, 9), (0, 0, 5), (1, 0, 3), (3, 0, 2)]]


def test_a_million_documents_take_no_seconds() -> None:
    lengths = np.random.default_rng(5).integers(1, 2000, 1_000_000)
    start = time.perf_counter()
    *_, offsets = pack_windows(lengths, 1024, 1000)
    assert time.perf_counter() - start < 2  # about 0.1 on an idle core
    assert lengths.sum() / (1024 * (len(offsets) - 1)) > 0.99


@pytest.mark.parametrize(
    ("lengths", "capacity", "block", "message"),
    [
        ([3, 0], 4, 1, "document 1 has length 0; it must be at least 1"),
        ([3, -5], 4, 1, "document 1 has length -5"),
        ([3], 0, 1, "capacity is 0"),
        ([3], -1, 1, "capacity is -1"),
        ([3], 2**31, 1, "capacity is 2147483648; it must be between 1 and 2147483647"),
        ([3], 4, 0, "block is 0; it must be at least 1"),
        ([2**62, 2**62], 1, 1, r"the lengths sum to more than 2\^63"),
        ([2**62], 1, 1, "choose a larger capacity"),
        ([[3]], 4, 1, "lengths must have one axis"),
    ],
)
def test_wrong_arguments(lengths: list[int], capacity: int, block: int, message: str) -> None:
    array: npt.NDArray[np.int64] = np.array(lengths, dtype=np.int64)
    with pytest.raises(ValueError, match=message):
        pack_windows(array, capacity, block)


def test_lengths_are_never_rounded() -> None:
    with pytest.raises(TypeError):
        pack_windows(np.array([1.5]), 4, 1)
