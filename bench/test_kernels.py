"""pytest-benchmark suites: `pytest bench --benchmark-group-by=group`; forward and backward of every kernel."""

from typing import Any

import pytest
import torch
from cases import all_cases
from measuring import Sizes

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="measures a GPU, and there is none")

CASES = all_cases(Sizes())


@pytest.mark.parametrize("contestant", ["ours", "eager"])
@pytest.mark.parametrize(
    ("kernel", "size"), [(case.kernel, size) for case in CASES.values() for size in case.sizes[:3]]
)
def test_speed(benchmark: Any, kernel: str, size: int, contestant: str) -> None:
    benchmark.group = f"{kernel} {size}"
    inputs = CASES[kernel].make(size, torch.device("cuda"), torch.bfloat16)
    run = getattr(CASES[kernel], contestant)

    def timed() -> None:
        run(inputs)
        torch.cuda.synchronize()

    benchmark.pedantic(timed, rounds=20, warmup_rounds=3)
