"""CE + KL as trained: equal to the plain formula in float64, exactly 0 at step 0, right for a perturbed reference."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vikhr_fast.config import KLConfig
from vikhr_fast.data.packing import Batch
from vikhr_fast.model.mistral import Mistral, ModelConfig
from vikhr_fast.train.objective import Objective, slerp_weights

SHAPE = ModelConfig(
    vocab_size=67,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    max_position_embeddings=64,
    initializer_range=0.3,
)
TOKENS = 40


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(67, (TOKENS,), generator=generator)
    targets = torch.randint(67, (TOKENS,), generator=generator)
    targets[::7] = -100
    cu_seqlens = torch.tensor([0, 11, 12, TOKENS], dtype=torch.int32)
    return Batch(tokens, targets, cu_seqlens, sources=(torch.arange(TOKENS) >= 12).long())


def models(dtype: torch.dtype, perturbation: float = 0.0) -> tuple[Mistral, Mistral]:
    model = Mistral(SHAPE, dtype=dtype, seed=3)
    reference = copy.deepcopy(model).requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    for parameter in reference.parameters():
        noise = torch.empty(parameter.shape, dtype=torch.float64).normal_(generator=generator)
        parameter += (perturbation * noise).to(dtype)
    return model, reference


def evaluate(dtype: torch.dtype, perturbation: float, mask: Tensor | None = None, **kl: Any) -> tuple[Any, Mistral]:
    model, reference = models(dtype, perturbation)
    objective = Objective(KLConfig(**kl), model, reference, sources=["a", "b"], support=mask, chunk_tokens=9)
    previous = torch.tensor([0.0, 0.0, 5.0, 2.0, 1.0], dtype=torch.float64)
    [(inputs, compared)] = objective.with_reference([batch()])
    loss, losses = objective(inputs, compared, num_tokens=torch.tensor(34), weights=objective.weights(previous))
    loss.backward()
    return (loss.detach(), *losses), model


def plain(perturbation: float, mask: Tensor | None = None, **kl: Any) -> tuple[Tensor, Mistral]:
    """Equation 1 written out with autograd in float64."""
    config = KLConfig(**kl)
    model, reference = models(torch.float64, perturbation)
    inputs = batch()
    log_p, log_q = (m.logits(m(inputs.tokens, cu_seqlens=inputs.cu_seqlens)) for m in (model, reference))
    kept = inputs.targets != -100
    ce = torch.nn.functional.cross_entropy(log_p, inputs.targets, reduction="none")
    if mask is not None:
        log_p, log_q = log_p[:, mask], log_q[:, mask]
    log_p, log_q = log_p.log_softmax(-1), log_q.log_softmax(-1)
    first, second = (log_p, log_q) if config.direction == "reverse" else (log_q, log_p)
    kl_each = (first.exp() * (first - second)).sum(-1) * kept
    source_weights = torch.tensor([config.source_weights.get(name, 1.0) for name in "ab"], dtype=torch.float64)
    weighted = source_weights[inputs.sources] * kl_each
    if config.combine == "sum":
        ce_weight, kl_weight = 1.0, config.weight
    else:
        angle = math.acos(1.0 / math.sqrt(5.0 * 2.0))
        ce_weight = math.sin((1 - config.slerp_factor) * angle) / math.sin(angle)
        kl_weight = math.sin(config.slerp_factor * angle) / math.sin(angle)
    loss = (ce_weight * ce + kl_weight * weighted).sum() / 34
    loss.backward()
    sums = (ce.sum(), kl_each.sum(), ce.square().sum(), weighted.square().sum(), (ce * weighted).sum())
    return torch.stack([loss, *sums]).detach(), model


SUPPORT = torch.arange(67) % 3 != 0
CASES: list[dict[str, Any]] = [
    {"weight": 1.0},
    {"weight": 0.25, "direction": "forward"},
    {"weight": 2.0, "source_weights": {"b": 0.1}},
    {"support": "shared"},
    {"support": "shared", "direction": "forward", "source_weights": {"a": 0.0}},
    {"combine": "slerp", "slerp_factor": 0.3},
    {"combine": "slerp", "slerp_factor": 0.3, "source_weights": {"a": 3.0}},
]


@pytest.mark.parametrize("perturbation", [1e-3, 0.1])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_equals_the_plain_formula(case: dict[str, Any], perturbation: float) -> None:
    support = SUPPORT if case.get("support") == "shared" else None
    actual, model = evaluate(torch.float64, perturbation, support, **case)
    expected, plain_model = plain(perturbation, support, **case)
    torch.testing.assert_close(torch.stack(actual), expected, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(model.parameters(), plain_model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("combine", ["sum", "slerp"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_reference_that_is_not_asked_has_no_influence(combine: str, value: float) -> None:
    """Sequences outside `kl.fraction`, and sources of weight 0; the KL of these is reported all the same."""
    config = KLConfig(combine=combine, source_weights={"a": 0.0})
    drawn, results = (torch.arange(TOKENS) % 3 > 0).double(), []
    inputs = dataclasses.replace(batch(), kl_factor=drawn)
    for fill in (0.0, value):
        for rows in (drawn == 0, inputs.sources == 0):
            model, frozen = models(torch.float64, 0.1)
            objective = Objective(config, model, frozen, sources=["a", "b"])
            [(_, compared)] = objective.with_reference([inputs])
            compared.ref_hidden[rows] = fill
            loss, losses = objective(inputs, compared, num_tokens=torch.tensor(34), weights=(0.4, 0.6))
            loss.backward()
            reported = [] if rows[drawn > 0].any() else [losses.kl]
            gradients = [parameter.grad for parameter in model.parameters()]
            results.append([loss, losses.ce, losses.ce_ce, losses.kl_kl, losses.ce_kl, *reported, *gradients])
    for expected, found in zip(results[:2], results[2:], strict=True):
        assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(expected, found, strict=True))


def test_kl_is_exactly_zero_against_itself_in_float32() -> None:
    (loss, _, kl, *_), model = evaluate(torch.float32, 0.0)
    assert kl == 0
    alone = Objective(KLConfig(weight=0.0), plain_model := models(torch.float32)[0], None, sources=["a", "b"])
    expected, _ = alone(batch(), None, num_tokens=torch.tensor(34), weights=alone.weights(torch.zeros(5)))
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-6)
    for ours, theirs in zip(model.parameters(), plain_model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("perturbation", [3e-3, 1e-2, 0.1])
def test_kl_to_a_perturbed_reference_in_float32(perturbation: float) -> None:
    (_, _, kl, *_), _ = evaluate(torch.float32, perturbation)
    expected, _ = plain(perturbation)
    assert float(kl) == pytest.approx(float(expected[2]), rel=2e-3)
    assert float(kl) / 34 > 1e-5


@given(
    factor=st.floats(0, 1),
    angle=st.floats(0.01, math.pi - 0.01),
    lengths=st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)),
)
@settings(deadline=None)
def test_slerp_weights_are_the_formula(factor: float, angle: float, lengths: tuple[float, float]) -> None:
    first, second = lengths
    moments = torch.tensor([first**2, second**2, first * second * math.cos(angle)], dtype=torch.float64)
    weights = slerp_weights(factor, *moments)
    expected = (math.sin((1 - factor) * angle) / math.sin(angle), math.sin(factor * angle) / math.sin(angle))
    assert [float(w) for w in weights] == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    "moments", [(0.0, 0.0, 0.0), (4.0, 0.0, 0.0), (0.0, 1.0, 0.0), (4.0, 1.0, 2.0), (4.0, 1.0, -2.0)]
)
def test_slerp_is_linear_where_the_angle_is_undefined(moments: tuple[float, float, float]) -> None:
    weights = slerp_weights(0.3, *torch.tensor(moments, dtype=torch.float64))
    assert [float(w) for w in weights] == pytest.approx([0.7, 0.3])
