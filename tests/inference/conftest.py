from pathlib import Path

import pytest
import torch

from vikhr_fast.inference.engine import Answerer


@pytest.fixture(scope="session")
def answerer(workspace: Path) -> Answerer:
    """A tiny model with random weights, in float64: no batch changes what is likeliest."""
    made = Answerer(workspace / "model", "cpu")
    made.model.to(torch.float64)
    return made
