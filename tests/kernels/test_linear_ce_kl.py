"""The chunked loss head against the plain formula in float64.

The grid: dtypes (float64 proves the algebra, float32 the rounding), both directions, with and without support,
every reduction, chunk sizes that divide N, don't, and exceed it.
"""

import itertools
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vikhr_kernels import Buckets, linear_ce_kl, reference
from vikhr_kernels.linear_ce_kl import default_chunk

TOKENS, HIDDEN, REF_HIDDEN, VOCABULARY = 23, 16, 12, 61


@given(st.integers(0, 100_000), st.integers(1, 1 << 24), st.booleans())
@settings(max_examples=300, deadline=None)
def test_default_chunks_are_few_and_equal_and_fit(tokens: int, token_bytes: int, on_gpu: bool) -> None:
    chunk = default_chunk(tokens, token_bytes, on_gpu=on_gpu)
    most = max(128, (2560 << 20 if on_gpu else 320 << 20) // token_bytes // 128 * 128)
    chunks = -(-tokens // most)
    assert chunk % 128 == 0
    assert chunk <= most
    assert -(-tokens // chunk) == chunks
    assert tokens == 0 or chunk < -(-tokens // chunks) + 128


def make_inputs(seed: int = 0, dtype: torch.dtype = torch.float64, tokens: int = TOKENS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    targets = torch.randint(VOCABULARY, (tokens,), generator=generator)
    targets[::5] = -100
    return {
        "hidden": normal(tokens, HIDDEN).requires_grad_(),
        "weight": normal(VOCABULARY, HIDDEN).requires_grad_(),
        "targets": targets,
        "ref_hidden": normal(tokens, REF_HIDDEN),
        "ref_weight": normal(VOCABULARY, REF_HIDDEN),
    }


def options(seed: int = 1, tokens: int = TOKENS) -> dict[str, object]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "token_weights": torch.rand(tokens, generator=generator, dtype=torch.float64) + 0.5,
        "kl_support": torch.rand(VOCABULARY, generator=generator) < 0.6,
    }


def widen(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x
        for name, x in inputs.items()
    }


def gradients(loss: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    d_hidden, d_weight = torch.autograd.grad(loss, [inputs["hidden"], inputs["weight"]])
    return d_hidden, d_weight


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize(
    ("direction", "support", "reduction", "chunk"),
    list(itertools.product(["reverse", "forward"], [False, True], ["sum", "mean", "none"], [1, 7, TOKENS, 100])),
)
def test_float64_equals_the_plain_formula(direction: str, support: bool, reduction: str, chunk: int) -> None:
    extra = options()
    if not support:
        del extra["kl_support"]
    arguments = {"ce_weight": 0.7, "kl_weight": 1.3, "z_loss": 1e-2, "reduction": reduction, "kl_direction": direction}
    ours, plain = make_inputs(), make_inputs()
    actual = linear_ce_kl(**ours, **arguments, **extra, chunk_tokens=chunk)
    expected = reference.linear_ce_kl(**plain, **arguments, **extra)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)
    upstream = torch.rand_like(expected[0])
    for a, e in zip(
        gradients((actual[0] * upstream).sum(), ours), gradients((expected[0] * upstream).sum(), plain), strict=True
    ):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12)


@given(seed=st.integers(0, 2**20), scale=st.sampled_from([1e-3, 1.0, 30.0]), tokens=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_float32_error_is_at_most_twice_plain_pytorch(seed: int, scale: float, tokens: int) -> None:
    inputs = make_inputs(seed, torch.float32, tokens)
    with torch.no_grad():
        inputs["hidden"] *= scale
    truth = widen(inputs)
    expected = reference.linear_ce_kl(**truth, reduction="sum")
    plain = reference.linear_ce_kl(**inputs, reduction="sum")
    plain_gradients = gradients(plain[0], inputs)
    actual = linear_ce_kl(**inputs, reduction="sum", chunk_tokens=8)
    floor = 5e-6  # both are right to float32 rounding: no ratio is asked below it
    actual_gradients = gradients(actual[0], inputs)
    for a, p, e in zip(
        (*actual, *actual_gradients),
        (*plain, *plain_gradients),
        (*expected, *gradients(expected[0], truth)),
        strict=True,
    ):
        if e.norm() > 0:
            assert relative_error(a, e) <= max(2 * relative_error(p, e), floor)


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_small_kl_keeps_its_digits_in_float32(direction: str, size: float) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(4001, 32, generator=generator) * 0.5
    hidden = torch.randn(50, 32, generator=generator) * 3
    perturbed = hidden + torch.randn(50, 32, generator=generator) * size**0.5 * 0.3
    targets = torch.zeros(50, dtype=torch.int64)
    arguments = {"ce_weight": 0.0, "kl_direction": direction, "reduction": "sum"}
    inputs = {"hidden": perturbed.requires_grad_(), "weight": weight.requires_grad_(), "targets": targets}
    inputs |= {"ref_hidden": hidden, "ref_weight": weight.detach().clone()}
    truth = widen(inputs)
    actual = linear_ce_kl(**inputs, **arguments)
    expected = reference.linear_ce_kl(**truth, **arguments)
    mean_kl = float(expected[2].mean())
    assert size / 30 < mean_kl < size
    # What stays is the logits' own float32 rounding against log p - log q, whose size is sqrt(2 KL).
    bound = 4e-6 / (2 * mean_kl) ** 0.5
    assert relative_error(actual[2], expected[2]) < bound
    assert (actual[2] >= 0).all()
    for a, e in zip(gradients(actual[0], inputs), gradients(expected[0], truth), strict=True):
        assert relative_error(a, e) < bound


def test_kl_of_equal_models_is_exactly_zero_in_float32() -> None:
    inputs = make_inputs(dtype=torch.float32)
    inputs["ref_hidden"], inputs["ref_weight"] = inputs["hidden"].detach().clone(), inputs["weight"].detach().clone()
    loss, _, kl = linear_ce_kl(**inputs, ce_weight=0.0, chunk_tokens=5)
    assert torch.equal(kl, torch.zeros(TOKENS))
    for gradient in gradients(loss, inputs):
        assert torch.equal(gradient, torch.zeros_like(gradient))


LARGE = {torch.float64: 1e160, torch.float32: 1e30, torch.bfloat16: 1e30, torch.float16: 1e4}


@pytest.mark.parametrize("has_z_loss", [False, True])
@pytest.mark.parametrize(
    ("operation", "dtype"),
    [
        *((linear_ce_kl, dtype) for dtype in LARGE),
        *((reference.linear_ce_kl, d) for d in (torch.float64, torch.float32)),
    ],
)
def test_logits_whose_square_overflows(operation: Callable, dtype: torch.dtype, has_z_loss: bool) -> None:
    """One piece has all probability: the float64 truth needs no exponential."""
    inputs, z_loss = make_inputs(), has_z_loss / LARGE[dtype]
    for name in ("hidden", "ref_hidden"):
        inputs[name] = inputs[name].detach().clamp(-2, 2) * LARGE[dtype]
    inputs |= {name: inputs[name].detach().to(dtype) for name in ("hidden", "weight", "ref_hidden", "ref_weight")}
    hidden, weight, ref_hidden, ref_weight = (x.double() for x in inputs.values() if x.is_floating_point())
    logits, ref_logits, kept = hidden @ weight.T, ref_hidden @ ref_weight.T, inputs["targets"] >= 0
    largest, likeliest = logits.max(-1)
    ce = largest - logits.gather(-1, inputs["targets"].clamp(min=0)[:, None]).squeeze(-1)
    kl = ref_logits.amax(-1) - ref_logits.gather(-1, likeliest[:, None]).squeeze(-1)
    expected = (ce + kl + z_loss * largest * largest)[kept].mean()
    d_logits = torch.nn.functional.one_hot(likeliest, VOCABULARY) * (1 + 2 * z_loss * largest)[:, None]
    d_logits -= torch.nn.functional.one_hot(inputs["targets"].clamp(min=0), VOCABULARY)
    d_logits *= kept[:, None] / kept.sum()
    inputs |= {name: inputs[name].requires_grad_() for name in ("hidden", "weight")}
    loss, *_ = operation(**inputs, z_loss=z_loss, chunk_tokens=7)
    assert relative_error(loss, expected) < 1e-5
    for a, e in zip(gradients(loss, inputs), (d_logits @ weight, d_logits.T @ hidden), strict=True):
        # scaled, as the norm squares: and a near tie between two pieces is decided by a rounding of one part in V
        assert relative_error(a.double() / e.abs().max(), e / e.abs().max()) < 4 * torch.finfo(dtype).eps + 1e-6


def test_without_a_reference_it_is_cross_entropy() -> None:
    inputs = make_inputs()
    loss, ce, kl = linear_ce_kl(inputs["hidden"], inputs["weight"], inputs["targets"])
    logits = inputs["hidden"] @ inputs["weight"].T
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, inputs["targets"]))
    assert torch.equal(kl, torch.zeros_like(ce))


def test_all_ignored_gives_zero_loss_and_gradients() -> None:
    inputs = make_inputs()
    inputs["targets"] = torch.full((TOKENS,), -100)
    loss, ce, kl = linear_ce_kl(**inputs)
    assert float(loss) == 0
    assert not ce.any()
    assert not kl.any()
    for gradient in gradients(loss, inputs):
        assert not gradient.any()


def test_global_token_count_and_tensor_weights() -> None:
    inputs = make_inputs()
    kl_weight = torch.rand(TOKENS, dtype=torch.float64)
    mean, ce, kl = linear_ce_kl(**inputs, num_tokens=torch.tensor(50), kl_weight=kl_weight, ce_weight=torch.tensor(0.5))
    torch.testing.assert_close(mean, (0.5 * ce + kl_weight * kl).sum() / 50)


def test_split_into_calls_adds_up() -> None:
    inputs = make_inputs()
    whole = gradients(linear_ce_kl(**inputs, num_tokens=TOKENS)[0], inputs)
    parts = [
        linear_ce_kl(
            inputs["hidden"][rows],
            inputs["weight"],
            inputs["targets"][rows],
            inputs["ref_hidden"][rows],
            inputs["ref_weight"],
            num_tokens=TOKENS,
        )[0]
        for rows in (slice(0, 9), slice(9, TOKENS))
    ]
    for a, e in zip(gradients(parts[0] + parts[1], inputs), whole, strict=True):
        torch.testing.assert_close(a, e)


def test_head_gradient_is_summed_in_float32_whatever_the_chunks() -> None:
    generator = torch.Generator().manual_seed(4)
    hidden = torch.rand(600, 8, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(11, 8, generator=generator).bfloat16().requires_grad_()
    targets = torch.zeros(600, dtype=torch.int64)
    one, many = (
        torch.autograd.grad(linear_ce_kl(hidden, weight, targets, reduction="sum", chunk_tokens=size)[0], weight)[0]
        for size in (600, 2)
    )
    torch.testing.assert_close(many, one, rtol=2**-8, atol=0)  # one rounding at the end


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_loss_that_is_divided_has_divided_gradients(dtype: torch.dtype) -> None:
    """Rounded once: as far from the truth as one rounding of it, and its share of the bf16 logits' gradient."""
    inputs = make_inputs(dtype=dtype)
    whole = gradients(linear_ce_kl(**inputs)[0], inputs)
    divided = gradients(linear_ce_kl(**inputs)[0] / 3, inputs)
    for a, e in zip(divided, whole, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), e.double() / 3, rtol=1.01 * torch.finfo(dtype).eps, atol=0)


def test_opcheck() -> None:
    inputs = make_inputs()
    inputs["targets"] = inputs["targets"].clamp(min=0)  # the op underneath takes ids only
    support = options()["kl_support"]
    ones = torch.ones(TOKENS, dtype=torch.float64)
    for with_gradient in (False, True):
        torch.library.opcheck(
            torch.ops.vikhr.linear_ce_kl.default,
            (*inputs.values(), ones, ones, ones, support, [], False, 7, with_gradient),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden", torch.zeros(TOKENS, 1, HIDDEN)),
        ("weight", torch.zeros(VOCABULARY, HIDDEN + 1, dtype=torch.float64)),
        ("weight", torch.zeros(VOCABULARY, HIDDEN, dtype=torch.float32)),
        ("targets", torch.zeros(TOKENS, dtype=torch.int32)),
        ("targets", torch.full((TOKENS,), VOCABULARY)),
        ("ref_weight", None),
        ("ref_hidden", torch.zeros(TOKENS - 1, REF_HIDDEN, dtype=torch.float64)),
        ("kl_support", torch.ones(VOCABULARY + 1, dtype=torch.bool)),
        ("kl_support", torch.zeros(VOCABULARY, dtype=torch.bool)),
    ],
)
def test_wrong_arguments_are_named(name: str, value: Tensor | None) -> None:
    arguments = {**make_inputs(), name: value}
    with pytest.raises(ValueError, match=name):
        linear_ce_kl(**arguments)


def test_no_gradient_reaches_the_reference() -> None:
    inputs = make_inputs()
    inputs["ref_hidden"].requires_grad_()
    linear_ce_kl(**inputs)[0].backward()
    assert inputs["ref_hidden"].grad is None
    assert inputs["hidden"].grad is not None
    alone = {**inputs, "hidden": inputs["hidden"].detach(), "weight": inputs["weight"].detach()}
    assert not linear_ce_kl(**alone)[0].requires_grad


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_derivative_is_refused(reduction: str) -> None:
    inputs = make_inputs()
    loss = linear_ce_kl(**inputs, reduction=reduction)[0].sum()
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss, inputs["hidden"], create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("restriction", ["none", "support", "buckets"])
def test_blocks_of_rows_change_nothing(dtype: torch.dtype, restriction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the row step takes a few tokens at a time; with other sizes of blocks it gives the same bits."""
    module, results = sys.modules["vikhr_kernels.linear_ce_kl"], []
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(n, 6, generator=generator, dtype=torch.float64).to(dtype) for n in (7, 13, 7, 13)]
    factors = torch.rand(2, 7, generator=generator, dtype=torch.float64)
    options = {
        "none": {},
        "support": {"kl_support": torch.arange(13) % 3 > 0},
        "buckets": {"kl_buckets": Buckets.of(torch.arange(13) % 4, torch.arange(13) // 4)},
    }[restriction]
    for rows in (100, 3, 1):
        row_bytes = 13 * torch.promote_types(dtype, torch.float32).itemsize
        monkeypatch.setitem(module._BLOCK_BYTES, "cpu", rows * row_bytes)
        hidden, weight, *frozen = (value.clone().requires_grad_() for value in values)
        loss, ce, kl = linear_ce_kl(
            hidden, weight, torch.arange(7), *frozen, ce_weight=factors[0], kl_weight=factors[1], z_loss=0.1,
            **options,
        )  # fmt: skip
        results.append((loss, ce, kl, *torch.autograd.grad(loss, (hidden, weight))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))
