"""The learning-rate schedule and the parameter groups."""

import pytest
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict

from vikhr_fast.config import OptimizerConfig
from vikhr_fast.train.optimizer import build_optimizer, learning_rate


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


def test_only_matrices_are_decayed() -> None:
    model = nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.3, beta1=0.8, beta2=0.7, eps=1e-3))
    decayed, plain = optimizer.param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(3, 4), (2, 4)]
    assert decayed["weight_decay"] == 0.3
    assert plain["weight_decay"] == 0.0
    assert decayed["betas"] == (0.8, 0.7)
    assert decayed["eps"] == 1e-3


def test_a_checkpoint_before_the_first_update_is_not_a_step_of_the_optimiser() -> None:
    """As after a first step that was skipped: PyTorch fills an empty state by a step without gradients."""
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, OptimizerConfig())
    get_state_dict(model, optimizer)
    assert [float(state["step"]) for state in optimizer.state.values()] == [0.0, 0.0]
