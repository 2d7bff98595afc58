"""What the loss head isn't asked about has no influence on it: in the kernel, eagerly and in the reference.

Rows whose labels are ignored, whose weight is 0, or whose KL has the weight 0 are filled with NaN, infinities or 1e30:
no bit of the results changes. A row that is trained on shows what it holds.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from vikhr_kernels import Buckets, allow_triton, linear_ce_kl, reference

pytestmark = pytest.mark.usefixtures("small_blocks")  # buckets take long in the interpreter

HIDDEN, REF_HIDDEN, VOCABULARY, REF_VOCABULARY = 6, 5, 37, 29
BITS = {torch.float32: torch.int32, torch.float16: torch.int16}


@contextmanager
def eager_only() -> Iterator[None]:
    allow_triton(False)
    try:
        yield
    finally:
        allow_triton(True)


def eager(*inputs: object, **options: object) -> tuple[Tensor, ...]:
    with eager_only():
        return linear_ce_kl(*inputs, **options)


IMPLEMENTATIONS = {"kernel": linear_ce_kl, "eager": eager, "reference": reference.linear_ce_kl}
for_each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@dataclass
class Case:
    """Inputs of the head; `poison` fills rows of any of them."""

    dtype: torch.dtype
    inputs: dict[str, Tensor | None]
    options: dict[str, object]
    with_gradient: bool
    upstream: Tensor

    def run(self, implementation: str) -> dict[str, Tensor]:
        """Loss, CE, KL and the gradients."""
        head = IMPLEMENTATIONS[implementation]
        given = {name: None if x is None else x.clone() for name, x in self.inputs.items()}
        hidden, weight = (given.pop(name).to(self.dtype) for name in ("hidden", "weight"))
        for name in ("ref_hidden", "ref_weight"):
            given[name] = None if given[name] is None else given[name].to(self.dtype)
        hidden, weight = hidden.requires_grad_(self.with_gradient), weight.requires_grad_(self.with_gradient)
        loss, ce, kl = head(hidden, weight, **given, **self.options)
        results = {"loss": loss.detach(), "ce": ce, "kl": kl}
        if self.with_gradient:
            upstream = self.upstream.to(loss.dtype) if loss.dim() else torch.ones_like(loss)
            with eager_only() if head is eager else nullcontext():
                gradients = torch.autograd.grad(loss, (hidden, weight), upstream)
            results |= dict(zip(("d_hidden", "d_weight"), gradients, strict=True))
        return results

    def poison(self, rows: Tensor, value: float, *names: str) -> None:
        for name in names:
            if (x := self.inputs[name]) is not None:
                x[rows] = value


@st.composite
def cases(draw: st.DrawFn, needs_reference: bool = False) -> tuple[Case, Tensor]:
    """A case, and which of its rows may be poisoned; one at least may be, and one isn't."""
    tokens = draw(st.integers(2, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = torch.tensor(draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)))
    rows[draw(st.integers(0, tokens - 2))], rows[-1] = True, False
    with_reference, reduction = needs_reference or draw(st.booleans()), draw(st.sampled_from(["sum", "mean", "none"]))
    support, buckets, ref_vocabulary = None, None, VOCABULARY
    restriction = draw(st.sampled_from(["none", "support", "buckets"]))
    if restriction == "support":
        support = torch.rand(VOCABULARY, generator=generator) < 0.7
    elif restriction == "buckets" and with_reference:
        ref_vocabulary = REF_VOCABULARY
        sizes = VOCABULARY, REF_VOCABULARY
        buckets = Buckets.of(*(torch.randperm(size, generator=generator) % 11 for size in sizes))
    inputs = {
        "hidden": normal(tokens, HIDDEN),
        "weight": normal(VOCABULARY, HIDDEN),
        "targets": torch.randint(VOCABULARY, (tokens,), generator=generator),
        "ref_hidden": normal(tokens, REF_HIDDEN) if with_reference else None,
        "ref_weight": normal(ref_vocabulary, REF_HIDDEN) if with_reference else None,
        "token_weights": torch.ones(tokens, dtype=torch.float64),
        "ce_weight": torch.ones(tokens, dtype=torch.float64),
        "kl_weight": torch.ones(tokens, dtype=torch.float64),
    }
    options: dict[str, object] = {
        "reduction": reduction,
        "kl_direction": draw(st.sampled_from(["reverse", "forward"])),
        "kl_support": support,
        "kl_buckets": buckets,
        "z_loss": draw(st.sampled_from([0.0, 0.1])),
        "chunk_tokens": draw(st.integers(1, 8)),
        "num_tokens": draw(st.sampled_from([None, 5, torch.tensor(3.0)])),
    }
    dtype = draw(st.sampled_from([torch.float32, torch.float16]))
    return Case(dtype, inputs, options, draw(st.booleans()), torch.rand(tokens, generator=generator)), rows


def few_examples(count: int) -> settings:
    """As they are: they are small, and to look for smaller ones takes minutes in the interpreter."""
    phases = (Phase.explicit, Phase.generate)
    return settings(max_examples=count, deadline=None, phases=phases)


poisons = st.sampled_from([torch.nan, torch.inf, -torch.inf, 1e30])


def assert_equal_bits(results: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in results.items():
        assert expected[name].isfinite().all(), name
        assert torch.equal(*(x.view(BITS[x.dtype]) for x in (value, expected[name]))), name


@for_each_implementation
@given(cases(), poisons)
@few_examples(40)
def test_an_ignored_token_has_no_influence(implementation: str, drawn: tuple[Case, Tensor], value: float) -> None:
    case, rows = drawn
    case.inputs["targets"][rows] = -100
    case.poison(rows, 0.0, "hidden", "ref_hidden")
    expected = case.run(implementation)
    case.poison(rows, value, "hidden", "ref_hidden", "token_weights", "ce_weight", "kl_weight")
    case.upstream[rows] = value
    results = case.run(implementation)
    assert_equal_bits(results, expected)
    for name in {"ce", "kl", "d_hidden"} & results.keys():
        assert not results[name][rows].any()


@for_each_implementation
@given(cases(), poisons)
@few_examples(25)
def test_a_token_of_weight_0_has_no_influence_but_on_its_own_ce_and_kl(
    implementation: str, drawn: tuple[Case, Tensor], value: float
) -> None:
    case, rows = drawn
    case.poison(rows, 0.0, "token_weights", "hidden", "ref_hidden")
    expected = case.run(implementation)
    case.poison(rows, value, "hidden", "ref_hidden")
    results = case.run(implementation)
    if value != 1e30:  # of which the CE may be a number
        assert not results["ce"][rows].isfinite().any()
    for name in ("ce", "kl"):
        results[name], expected[name] = results[name][~rows], expected[name][~rows]
    assert_equal_bits(results, expected)
    assert not results.get("d_hidden", torch.zeros(len(rows)))[rows].any()


@for_each_implementation
@given(cases(needs_reference=True), poisons)
@few_examples(25)
def test_a_kl_of_weight_0_has_no_influence(implementation: str, drawn: tuple[Case, Tensor], value: float) -> None:
    case, rows = drawn
    case.poison(rows, 0.0, "kl_weight", "ref_hidden")
    expected = case.run(implementation)
    case.poison(rows, value, "ref_hidden")
    results = case.run(implementation)
    results["kl"], expected["kl"] = results["kl"][~rows], expected["kl"][~rows]
    assert_equal_bits(results, expected)


@for_each_implementation
@given(cases(), poisons, st.sampled_from(["hidden", "ref_hidden", "token_weights", "ce_weight", "kl_weight"]))
@few_examples(25)
def test_a_trained_token_shows_what_it_holds(
    implementation: str, drawn: tuple[Case, Tensor], value: float, name: str
) -> None:
    case, rows = drawn
    if case.inputs["ref_hidden"] is None and name in ("ref_hidden", "kl_weight"):
        return
    expected = case.run(implementation)
    case.poison(rows, value, name)
    results = case.run(implementation)
    if value != value or (name.endswith("hidden") and value != 1e30):
        loss = results["loss"][rows] if case.options["reduction"] == "none" else results["loss"]
        assert loss.isnan().all()
        if case.with_gradient:
            assert results["d_hidden"][rows].isnan().all()
            assert results["d_weight"].isnan().any()
    assert not torch.equal(results["loss"], expected["loss"])


@for_each_implementation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [0, torch.tensor(0), torch.tensor(0.0)], ids=["number", "tensor", "floating"])
@pytest.mark.parametrize("ignored", [False, True])
def test_no_tokens_to_divide_by_give_0(implementation: str, dtype: torch.dtype, count: object, ignored: bool) -> None:
    hidden, ref_hidden = torch.full((2, 3, HIDDEN), torch.nan, dtype=dtype)
    weight, ref_weight = torch.ones(2, VOCABULARY, HIDDEN, dtype=dtype)
    targets = torch.tensor([-100, -100, -100] if ignored else [1, -100, 2])
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    loss, ce, kl = IMPLEMENTATIONS[implementation](*inputs, targets, ref_hidden, ref_weight, num_tokens=count)
    for result in (loss.detach(), *torch.autograd.grad(loss, inputs)):
        assert not result.any()
    assert bool(ce.any()) is bool(kl.any()) is not ignored
