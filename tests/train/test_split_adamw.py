"""Masters split into bf16 parameters and remainders: resumed bit for bit, with float32 and with bf16 moments."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from training_runs import make_config

from vikhr_fast.config import TrainConfig
from vikhr_fast.errors import InputError
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.train.gradients import ReducedGradients
from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import METRICS


def small_run(workspace: Path, output: Path, moments: str = "float32", **changes: Any) -> TrainConfig:
    optimizer = {"master": "split", "moments": moments, "weight_decay": 0.1, "max_grad_norm": 0.5}
    return make_config(
        workspace,
        output,
        **{
            "runtime": {"dtype": "bfloat16"},
            "optimizer": optimizer,
            "schedule": {"max_steps": 12, "checkpoint_every": 4},
            **changes,
        },
    )


def losses(output: Path) -> list[tuple[float, float]]:
    return [(line["loss"], line["grad_norm"]) for line in read_lines(output / METRICS)]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_a_resumed_run_goes_on_bit_for_bit(workspace: Path, tmp_path: Path, moments: str) -> None:
    train(small_run(workspace, tmp_path / "whole", moments=moments))
    steps = {"max_steps": 8, "checkpoint_every": 4}
    train(small_run(workspace, tmp_path / "parts", moments=moments, schedule=steps))
    (tmp_path / "parts" / "model").rename(tmp_path / "halfway")
    train(small_run(workspace, tmp_path / "parts", moments=moments))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    parts, whole = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    assert {value.dtype for value in whole.values()} == {torch.bfloat16}


@pytest.mark.slow
def test_bf16_moments_learn_as_float32_ones_do(workspace: Path, tmp_path: Path) -> None:
    for moments in ("float32", "bfloat16"):
        train(small_run(workspace, tmp_path / moments, moments=moments))
    wide, half = (torch.tensor(losses(tmp_path / moments))[:, 0] for moments in ("float32", "bfloat16"))
    assert wide[0] == half[0]
    assert not torch.equal(wide, half)
    torch.testing.assert_close(half, wide, rtol=5e-3, atol=0)
    assert float(wide[-1]) < 0.95 * float(wide[0])


@pytest.mark.parametrize(
    ("optimizer", "dtype", "message"),
    [
        (
            {"master": "split"},
            "float32",
            r'optimizer.master: "split" needs runtime.dtype = "bfloat16", not \'float32\'',
        ),
        ({"moments": "bfloat16"}, "bfloat16", r'optimizer.moments: "bfloat16" needs optimizer.master = "split"'),
    ],
)
def test_what_does_not_go_together_is_refused(
    workspace: Path, tmp_path: Path, optimizer: dict[str, str], dtype: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(make_config(workspace, tmp_path / "run", runtime={"dtype": dtype}, optimizer=optimizer))
    assert not (tmp_path / "run").exists()


def test_a_gradient_that_is_still_being_added_is_not_given_to_the_next_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP2 makes it on one stream, calls the hook on another and drops it: the allocator must be told."""
    events: list[object] = []

    class OnGpu(torch.Tensor):
        is_cuda = True

        def record_stream(self, stream: object) -> None:
            events.append(stream)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the hook's stream")
    parameter = torch.zeros(3, 2)
    taking = SimpleNamespace(_sums={parameter: torch.ones(3, 2)}, _shards=1)
    ReducedGradients._take(cast(ReducedGradients, taking), [parameter], torch.ones(6).as_subclass(OnGpu))
    assert events == ["the hook's stream"]
    assert torch.equal(taking._sums[parameter], torch.full((3, 2), 2.0))
