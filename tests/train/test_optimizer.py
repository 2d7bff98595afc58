"""The learning-rate schedule, the parameter groups and what an optimiser keeps."""

import pytest
import torch

from vikhr_fast.config import OptimizerConfig, RuntimeConfig
from vikhr_fast.distributed.ranks import process_group
from vikhr_fast.model.mistral import Mistral, ModelConfig
from vikhr_fast.train.checkpoint import _values
from vikhr_fast.train.optimizer import MasterAdamW, Optimizer, learning_rate
from vikhr_fast.train.split_adamw import SplitAdamW


def rates(num_steps: int = 21, **options: object) -> list[float]:
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=4, final_fraction=0.1, **options)
    return [learning_rate(step, num_steps, config) for step in range(num_steps)]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_warm_up_is_linear_and_reaches_the_peak(schedule: str) -> None:
    assert rates(schedule=schedule)[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


def test_schedules_end_where_they_should() -> None:
    assert set(rates(schedule="constant")[4:]) == {2.0}
    linear, cosine = rates(schedule="linear"), rates(schedule="cosine")
    assert linear[-1] == pytest.approx(0.2)
    assert cosine[-1] == pytest.approx(0.2)
    assert linear[12] == pytest.approx(1.1)
    assert cosine[12] == pytest.approx(1.1)
    assert cosine[8] > linear[8]
    assert sorted(cosine[4:], reverse=True) == cosine[4:]


def test_run_no_longer_than_warm_up() -> None:
    assert rates(num_steps=3, schedule="cosine") == pytest.approx([0.5, 1.0, 1.5])
    assert rates(num_steps=5, schedule="linear")[-1] == pytest.approx(0.2)


@pytest.fixture(params=["float32", "split"])
def optimizer(request: pytest.FixtureRequest) -> Optimizer:
    split = request.param == "split"
    shape = ModelConfig(
        vocab_size=3, hidden_size=4, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=2, max_position_embeddings=8,
    )  # fmt: skip
    model = Mistral(shape, dtype=torch.bfloat16 if split else torch.float32)
    masters = {name: parameter.detach().float() for name, parameter in model.named_parameters()}
    config = OptimizerConfig(weight_decay=0.3, beta1=0.8, beta2=0.7, eps=1e-3)
    with process_group(RuntimeConfig(device="cpu", threads=1)) as ranks:
        return (SplitAdamW if split else MasterAdamW)(model, masters, config, ranks)


def test_only_matrices_are_decayed(optimizer: Optimizer) -> None:
    decayed, plain = optimizer.param_groups
    assert [p.dim() for p in decayed["params"]] == [2] * 9
    assert [tuple(p.shape) for p in plain["params"]] == [(4,)] * 3
    assert decayed["weight_decay"] == 0.3
    assert plain["weight_decay"] == 0.0
    assert decayed["betas"] == (0.8, 0.7)
    assert decayed["eps"] == 1e-3


def test_a_checkpoint_before_the_first_update_holds_all(optimizer: Optimizer) -> None:
    """As after a first step that was skipped."""
    values = _values(optimizer)
    assert len(values["model"]) == 12
    for name, state in values["optimizer"]["state"].items():
        assert float(state.pop("step")) == 0.0
        assert all(tensor.shape == values["model"][name].shape for tensor in state.values())
