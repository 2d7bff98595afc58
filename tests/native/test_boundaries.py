"""Where two tokenizations of a text have a boundary in common, against sets of offsets."""

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast import _native

TEXT = st.tuples(st.lists(st.integers(0, 4), max_size=12), st.integers(-1, 3))  # lengths, and where they start


def arrays(texts: list[tuple[list[int], int]]) -> list[np.ndarray]:
    lengths = [length for own, _ in texts for length in own]
    offsets = [*accumulate((len(own) for own, _ in texts), initial=0)]
    return [np.array(values, dtype=np.int64) for values in (lengths, offsets, [start for _, start in texts])]


def expected(first: tuple[list[int], int], second: tuple[list[int], int], at: int) -> list[int]:
    ends, others = (list(accumulate(lengths, initial=start))[1:] for lengths, start in (first, second))
    last = {end: place for place, end in enumerate(others)}
    return [at + last[end] if end in last and end not in ends[n + 1 :] else -1 for n, end in enumerate(ends)]


@given(pairs=st.lists(st.tuples(TEXT, TEXT), max_size=4))
@settings(max_examples=500, deadline=None)
def test_shared_boundaries(pairs: list[tuple[tuple[list[int], int], tuple[list[int], int]]]) -> None:
    first, second = [own for own, _ in pairs], [other for _, other in pairs]
    starts = accumulate((len(lengths) for lengths, _ in second), initial=0)
    wanted = [row for own, other, at in zip(first, second, starts, strict=False) for row in expected(own, other, at)]
    assert _native.shared_boundaries(*arrays(first), *arrays(second)).tolist() == wanted


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (1, [0, 3], "offsets must ascend within the 2 tokens"),
        (1, [0, 2, 2], "of the same texts"),
        (2, [0, 0], "of the same texts"),
        (0, [[1, 1]], "one axis"),
        (0, [-1, 1], "lengths must not be negative"),
    ],
)
@pytest.mark.parametrize("side", [0, 3])
def test_what_does_not_fit_is_refused(place: int, value: list[int], message: str, side: int) -> None:
    given_arrays = [*arrays([([1, 1], 0)]), *arrays([([2, 0], 0)])]
    given_arrays[side + place] = np.array(value, dtype=np.int64)
    with pytest.raises(ValueError, match=message):
        _native.shared_boundaries(*given_arrays)
