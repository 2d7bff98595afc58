"""torch.compile of the layers: the same losses to rounding, whatever is computed again."""

from pathlib import Path

import pytest
import torch
from training_runs import make_config

from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import METRICS, read_lines


def losses(workspace: Path, output: Path, **runtime: object) -> torch.Tensor:
    config = make_config(
        workspace, output, runtime={"dtype": "float32", **runtime}, schedule={"max_steps": 4}, kl={"weight": 0.5}
    )
    train(config)
    return torch.tensor([(line["loss"], line["grad_norm"]) for line in read_lines(output / METRICS)])


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_compiled_layers_give_the_same_losses(
    workspace: Path, tmp_path: Path, checkpointing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the compiler's last stage left out: what is traced, differentiated and split is what would be compiled."""
    compiled: list[object] = []

    def compile_traced(function: object) -> object:
        compiled.append(function)
        return real(function, backend="aot_eager")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compile_traced)
    plain = losses(workspace, tmp_path / "plain", checkpointing=checkpointing)
    assert not compiled
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    fast = losses(workspace, tmp_path / "compiled", checkpointing=checkpointing, compile=True)
    assert len(compiled) == 4  # two layers of the model, two of its reference
    assert not torch._dynamo.utils.counters["graph_break"]
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=0)


@pytest.mark.nightly
def test_the_whole_compiler(workspace: Path, tmp_path: Path) -> None:
    torch._dynamo.reset()
    plain, fast = (losses(workspace, tmp_path / str(on), compile=on) for on in (False, True))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=0)
