from pathlib import Path

import pytest
import torch

from vikhr_fast.inference.engine import ChatEngine


@pytest.fixture(scope="session")
def engine(workspace: Path) -> ChatEngine:
    """A tiny model with random weights, in float64: no batch changes what is likeliest."""
    made = ChatEngine(workspace / "model", "cpu")
    made.model.to(torch.float64)
    return made
