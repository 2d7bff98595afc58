from pathlib import Path

import pytest
import torch

from vikhr_fast.inference.engine import Engine


@pytest.fixture(scope="session")
def engine(workspace: Path) -> Engine:
    """A tiny model with random weights, in float64: no batch changes what is likeliest."""
    made = Engine(workspace / "model", "cpu")
    made.model.to(torch.float64)
    return made
