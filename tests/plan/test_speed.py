"""FLOPs as plan counts them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vikhr_fast.plan.command import MISTRAL_7B_40K
from vikhr_fast.plan.speed import seen_keys
from vikhr_kernels import seen_pairs


@given(length=st.integers(1, 9000), window=st.none() | st.integers(1, 9000))
def test_keys_beyond_the_window_are_not_counted(length: int, window: int | None) -> None:
    """To half a key: the query itself is counted as half seen."""
    model = replace(MISTRAL_7B_40K, sliding_window=window)
    counted = seen_pairs(length, window) / length
    assert seen_keys(model, length) == pytest.approx(counted, abs=0.5 + 1e-9)
