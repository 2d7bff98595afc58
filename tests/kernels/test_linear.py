"""Products with the weights of linear layers: one where weights lie together, gradients summed where they are made."""

from collections import Counter

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vikhr_kernels import GradientSum, embedding, linear, linear_ce_kl, reference, stack
from vikhr_kernels.layout import stacked

SIZES = (6, 2, 3)


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        self.calls[str(func).split(".")[1]] += 1
        return func(*args, **(kwargs or {}))


def make(
    dtype: torch.dtype, *, together: bool, tokens: tuple[int, ...] = (5,), seed: int = 0
) -> tuple[Tensor, list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*tokens, 4, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weights = [nn.Parameter(torch.randn(n, 4, generator=generator, dtype=torch.float64).to(dtype)) for n in SIZES]
    if together:
        stack(weights)
    assert (stacked(weights) is not None) == together
    return x, weights


def attach(weights: list[nn.Parameter], dtype: torch.dtype, *, together: bool) -> list[GradientSum]:
    """Sums whose memory is full of NaN."""
    totals = (
        torch.full((sum(SIZES), 4), torch.nan, dtype=dtype).split(SIZES)
        if together
        else [torch.full((n, 4), torch.nan, dtype=dtype) for n in SIZES]
    )
    sums = [GradientSum(total) for total in totals]
    for weight, one in zip(weights, sums, strict=True):
        one.attach(weight)
    return sums


def upstream(outputs: tuple[Tensor, ...], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in outputs]


@pytest.mark.parametrize("tokens", [(5,), (2, 3), (1,), (0,)], ids=str)
@pytest.mark.parametrize("together", [False, True])
def test_results_and_gradients_are_the_references(together: bool, tokens: tuple[int, ...]) -> None:
    x, weights = make(torch.float64, together=together, tokens=tokens)
    outputs = linear(x, *weights)
    expected = reference.linear(x, *weights)
    for actual, right in zip(outputs, expected, strict=True):
        assert actual.shape == right.shape
        torch.testing.assert_close(actual, right, rtol=1e-12, atol=1e-14)
    d = upstream(expected)
    for actual, right in zip(
        torch.autograd.grad(outputs, [x, *weights], d), torch.autograd.grad(expected, [x, *weights], d), strict=True
    ):
        torch.testing.assert_close(actual, right, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("together", [False, True])
def test_only_what_is_wanted_is_made(together: bool) -> None:
    x, weights = make(torch.float64, together=together)
    d = upstream(reference.linear(x, *weights))
    for frozen in (weights, [x]):
        for tensor in (x, *weights):
            tensor.grad = None
            tensor.requires_grad_(not any(tensor is one for one in frozen))
        with Count() as count:
            torch.autograd.backward(linear(x, *weights), d)
        assert all((tensor.grad is None) == (not tensor.requires_grad) for tensor in (x, *weights))
        assert count.calls["mm"] + count.calls["addmm_"] == (2 if together else 6)


def test_weights_that_lie_together_are_one_product_each_way() -> None:
    x, weights = make(torch.float64, together=True)
    attach(weights, torch.float64, together=True)
    wide = torch.randn(5, sum(SIZES), dtype=torch.float64)
    with Count() as count:
        outputs = linear(x, *weights)
        torch.autograd.backward(outputs, list(wide.split(SIZES, dim=-1)))
    products = {name: calls for name, calls in count.calls.items() if "mm" in name}
    assert products == {"mm": 2, "addmm": 1}  # forward, d_x; the weights' gradients
    assert count.calls["cat"] == 0  # the gradients are slices of one tensor
    assert [y.stride(0) for y in outputs] == [sum(SIZES)] * 3


@pytest.mark.parametrize("layout", ["slices", "swapped", "apart", "one after another", "narrow", "crosswise"])
def test_gradients_may_lie_anywhere(layout: str) -> None:
    x, weights = make(torch.float64, together=True)
    wide = torch.randn(5, 2 * sum(SIZES), dtype=torch.float64)
    first, second, third, *_ = wide[:, : sum(SIZES)].clone().split(SIZES, dim=-1)
    if layout == "swapped":  # the third's columns before the second's
        first, third, second = wide[:, : sum(SIZES)].clone().split((6, 3, 2), dim=-1)
    if layout == "apart":
        third = wide[:, 9:12]
    if layout == "one after another":
        first, second, third = (
            part.view(5, -1) for part in wide.flatten()[: 5 * sum(SIZES)].split([5 * n for n in SIZES])
        )
    if layout == "narrow":  # adjacent columns of rows that are longer
        first, second, third, _ = wide.split((*SIZES, sum(SIZES)), dim=-1)
    if layout == "crosswise":  # they begin where slices would, but their columns don't lie side by side
        first, second, third = (
            wide.as_strided((5, n), (1, 5), offset) for n, offset in zip(SIZES, (0, 6, 8), strict=True)
        )
    d = [first, second, third]
    found = torch.autograd.grad(linear(x, *weights), [x, *weights], d)
    right = torch.autograd.grad(reference.linear(x, *weights), [x, *weights], [y.clone() for y in d])
    for actual, expected in zip(found, right, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


def test_stacked_weights_keep_identity_and_values() -> None:
    _, weights = make(torch.float32, together=False)
    before = [(id(weight), weight.detach().clone()) for weight in weights]
    stack(weights)
    assert [id(weight) for weight in weights] == [number for number, _ in before]
    assert all(torch.equal(weight, value) for weight, (_, value) in zip(weights, before, strict=True))
    whole = stacked(weights)
    assert whole is not None
    assert torch.equal(whole, torch.cat([value for _, value in before]))
    assert stacked(weights[::-1]) is None
    assert stacked([weights[0], weights[2]]) is None


@example(together=(True, False), micro_batches=[3, 2], attached=[True] * 3, seed=0)
@settings(deadline=None, max_examples=60)
@given(
    together=st.tuples(st.booleans(), st.booleans()), micro_batches=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    attached=st.lists(st.booleans(), min_size=3, max_size=3), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_sums_are_the_gradients_of_the_whole_batch(
    together: tuple[bool, bool], micro_batches: list[int], attached: list[bool], seed: int
) -> None:
    """Over any split, with any of the weights' gradients summed, after sums that were left half-filled."""
    _, weights = make(torch.float64, together=together[0], seed=seed)
    sums = attach(weights, torch.float64, together=together[1])
    for weight, wanted in zip(weights, attached, strict=True):
        if not wanted:
            del weight._gradient_sum  # type: ignore[attr-defined]
    batches = [make(torch.float64, together=False, tokens=(n,), seed=seed + i)[0] for i, n in enumerate(micro_batches)]
    given_up, whole = batches[0].detach() + 1, torch.cat(batches)
    torch.autograd.backward(linear(given_up, *weights), upstream(reference.linear(given_up, *weights)))
    for weight, one in zip(weights, sums, strict=True):
        weight.grad = None
        one.clear()
    d_whole = upstream(reference.linear(whole, *weights))
    for batch, *d in zip(batches, *(d_y.split(micro_batches) for d_y in d_whole), strict=True):
        torch.autograd.backward(linear(batch, *weights), d)
    for weight, one, wanted, d_y in zip(weights, sums, attached, d_whole, strict=True):
        found = one.total if wanted else weight.grad
        torch.testing.assert_close(found, d_y.T @ whole.detach(), rtol=1e-12, atol=1e-12)
        assert wanted == (weight.grad is None)


@pytest.mark.parametrize(("dtype", "wide"), [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_sums_are_as_near_to_the_truth_as_float32_is(dtype: torch.dtype, wide: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.zeros(48, 32, dtype=dtype))
    one = GradientSum(torch.full((48, 32), torch.nan, dtype=wide))
    one.attach(weight)
    truth, plain = torch.zeros(48, 32, dtype=torch.float64), torch.zeros(48, 32, dtype=wide)
    for _ in range(16):
        x, d_y = (torch.randn(40, n, generator=generator).to(dtype) for n in (32, 48))
        x.requires_grad_()
        linear(x, weight)[0].backward(d_y)
        truth += d_y.double().T @ x.detach().double()
        plain += d_y.to(wide).T @ x.detach().to(wide)
    assert (one.total - truth).norm() <= 2 * (plain - truth).norm()


@settings(deadline=None, max_examples=40)
@given(micro_batches=st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=1, max_size=3), summed=st.booleans())
def test_the_embeddings_gradient(micro_batches: list[list[int]], summed: bool) -> None:
    weights = [nn.Parameter(torch.arange(28, dtype=torch.float64).view(7, 4)) for _ in range(2)]
    ours, plain = weights
    if summed:
        one = GradientSum(torch.full_like(ours, torch.nan))
        one.attach(ours)
        embedding(torch.tensor([[1, 2]]), ours).sum().backward()  # half-filled and forgotten
        one.clear()
    for number, ids in enumerate(micro_batches):
        tokens = torch.tensor(ids, dtype=torch.int64)
        factor = torch.randn(len(ids), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        for weight, operation in ((ours, embedding), (plain, nn.functional.embedding)):
            rows = operation(tokens, weight)
            assert torch.equal(rows, weight[tokens])
            (rows * factor).sum().backward()
    found = one.total if summed else ours.grad
    assert summed == (ours.grad is None)
    torch.testing.assert_close(found, plain.grad, rtol=1e-12, atol=1e-12)


def test_a_sum_to_which_nothing_was_added_is_zero() -> None:
    one = GradientSum(torch.full((2, 3), torch.nan))
    assert torch.equal(one.total, torch.zeros(2, 3))


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("chunk_tokens", [None, 3])
def test_the_loss_head_adds_to_a_sum_too(reduction: str, chunk_tokens: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    head, summing = (nn.Parameter(torch.linspace(-1, 1, 44, dtype=torch.float64).view(11, 4)) for _ in range(2))
    one = GradientSum(torch.full_like(head, torch.nan))
    one.attach(summing)
    targets = torch.tensor([1, 2, 3, -100, 5, 6, 7])
    for weight in (head, summing):
        for factor in (0.5, 3.0):  # what a user multiplies a loss by reaches the gradient
            loss, _, _ = linear_ce_kl(hidden, weight, targets, reduction=reduction, chunk_tokens=chunk_tokens)
            (factor * loss).sum().backward()
    assert head.grad is not None
    assert summing.grad is None
    torch.testing.assert_close(one.total, head.grad, rtol=1e-12, atol=1e-14)
