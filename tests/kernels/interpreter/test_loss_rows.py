"""The row kernel against the plain formula on given logits, and the whole head around it."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vikhr_kernels import Buckets, dispatch, linear_ce_kl, reference
from vikhr_kernels.gpu.loss_rows import loss_rows

SMALLEST, LARGEST = (c.block for c in dispatch.TABLE[90]["loss_rows_kernel"][torch.float32])


def plain_rows(
    logits: Tensor, ref_logits: Tensor | None, targets: Tensor, ce_c: Tensor, kl_c: Tensor, z_c: Tensor,
    support: Tensor | None, buckets: Buckets | None, forward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Losses, CE, KL and gradient by PyTorch's own functions and its autograd."""
    logits = logits.detach().clone().requires_grad_()
    ce = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    kl = torch.zeros_like(ce)
    if ref_logits is not None:
        kept = slice(None) if support is None else support
        both = (logits[:, kept], ref_logits[:, kept])
        if buckets is not None:
            both = (reference.pooled(x, partition) for x, partition in zip(both, buckets, strict=True))
        log_p, log_q = (x.log_softmax(-1) for x in both)
        if forward:
            log_p, log_q = log_q, log_p
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    losses = ce_c * ce + kl_c * kl + z_c * logits.logsumexp(-1).square()
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    return losses, ce, kl, gradient


def kernel_rows(logits: Tensor, ref_logits: Tensor | None, *rest: object, dtype: torch.dtype) -> tuple[Tensor, ...]:
    losses, ce, kl = (torch.full(logits.shape[:1], torch.nan) for _ in range(3))
    gradient = loss_rows(logits.clone(), ref_logits, *rest, losses, ce, kl, dtype)
    return losses, ce, kl, gradient


def rows(
    vocabulary: int, scale: float, difference: float, count: int = 3
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(count, vocabulary, generator=generator) * scale
    ref_logits = logits + torch.randn(count, vocabulary, generator=generator) * difference
    targets = torch.randint(vocabulary, (count,), generator=generator)
    targets[0] = vocabulary - 1
    coefficients = [torch.rand(count, generator=generator) + 0.5 for _ in range(2)]
    return logits, ref_logits, targets, [*coefficients, torch.full((count,), 1e-2)]


def as_float64(given: tuple[object, ...]) -> list[object]:
    return [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in given]


CASES = [
    (vocabulary, scale, difference)
    for vocabulary in (1, 2, 61, SMALLEST, SMALLEST + 1, LARGEST + 1, 2 * LARGEST + 907)
    for scale, difference in ((1.0, 0.7), (1e-3, 1e-4), (30.0, 20.0))
]


@pytest.mark.parametrize(("vocabulary", "scale", "difference"), CASES)
@pytest.mark.parametrize("forward", [False, True])
def test_rows_as_right_as_plain_pytorch(
    vocabulary: int, scale: float, difference: float, forward: bool, assert_as_right: Callable
) -> None:
    logits, ref_logits, targets, coefficients = rows(vocabulary, scale, difference)
    given = (logits, ref_logits, targets, *coefficients, None, None, forward)
    ours = kernel_rows(*given, dtype=torch.float32)
    assert_as_right(ours, plain_rows(*given), plain_rows(*as_float64(given)))


@pytest.mark.parametrize(("forward", "size"), list(itertools.product([False, True], [61, LARGEST + 333])))
@pytest.mark.parametrize("kept", [pytest.param("half", marks=pytest.mark.gate), "one", "all", "none"])
def test_support(forward: bool, size: int, kept: str, assert_as_right: Callable) -> None:
    logits, ref_logits, targets, coefficients = rows(size, 3.0, 1.0)
    logits[:, 5] += 0 if kept == "all" else 200  # outside the support it must not matter to the KL
    support = torch.rand(size, generator=torch.Generator().manual_seed(2)) < {"half": 0.5, "all": 2}.get(kept, -1)
    support[5], support[7] = kept == "all", kept != "none"
    given = (logits, ref_logits, targets, *coefficients, support, None, forward)
    ours = kernel_rows(*given, dtype=torch.float32)
    assert_as_right(ours, plain_rows(*given), plain_rows(*as_float64(given)))


def rows_with_buckets(
    vocabulary: int, ref_vocabulary: int, size: int, scale: float = 1.0, count: int = 3
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], Buckets]:
    logits, _, targets, coefficients = rows(vocabulary, scale, 0.0, count)
    generator = torch.Generator().manual_seed(size)
    ref_logits = torch.randn(count, ref_vocabulary, generator=generator) * scale
    bucket, ref_bucket = (torch.randperm(pieces, generator=generator) % size for pieces in (vocabulary, ref_vocabulary))
    return logits, ref_logits, targets, coefficients, Buckets.of(bucket, ref_bucket)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize(
    ("vocabulary", "ref_vocabulary", "size"),
    [(1, 1, 1), (2, 3, 2), (64, 40, 1), (61, 97, 19), pytest.param(200, 180, 150, marks=pytest.mark.gate)],
)
def test_buckets(
    vocabulary: int, ref_vocabulary: int, size: int, scale: float, forward: bool, assert_as_right: Callable
) -> None:
    logits, ref_logits, targets, coefficients, buckets = rows_with_buckets(vocabulary, ref_vocabulary, size, scale)
    given = (logits, ref_logits.clone(), targets, *coefficients, None, buckets, forward)
    ours = kernel_rows(*given, dtype=torch.float32)
    assert torch.equal(given[1], ref_logits)
    assert_as_right(ours, plain_rows(*given), plain_rows(*as_float64(given)))


@pytest.mark.gate
@pytest.mark.parametrize("forward", [False, True])
def test_buckets_of_a_wide_row(forward: bool, assert_as_right: Callable) -> None:
    logits, ref_logits, targets, coefficients, buckets = rows_with_buckets(LARGEST + 7, 40, 19, count=1)
    given = (logits, ref_logits, targets, *coefficients, None, buckets, forward)
    ours = kernel_rows(*given, dtype=torch.float32)
    assert_as_right(ours, plain_rows(*given), plain_rows(*as_float64(given)))


@pytest.mark.gate
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("forward", [False, True])
def test_with_buckets_too_a_narrow_gradient_lies_over_the_logits(forward: bool, slack: float) -> None:
    logits, ref_logits, targets, coefficients, buckets = rows_with_buckets(200, 97, 70)
    rest = (ref_logits, targets, *coefficients, None, buckets, forward)
    *wide_results, wide = kernel_rows(logits, *rest, dtype=torch.float32)
    for dtype in (torch.float16, None):
        memory = logits.clone()
        results = [torch.full((3,), torch.nan) for _ in range(3)]
        narrow = loss_rows(memory, *rest, *results, dtype)
        if dtype is not None:
            assert narrow.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()
            torch.testing.assert_close(narrow.float(), wide, rtol=2**-11 * 1.01, atol=slack * 2**-23)
        for a, e in zip(results, wide_results, strict=True):
            torch.testing.assert_close(a, e, rtol=slack * 2**-22, atol=0)


@pytest.mark.gate
@pytest.mark.parametrize("size", [8, 61, SMALLEST, LARGEST + 334, 2 * LARGEST + 907])
def test_a_narrow_gradient_lies_over_the_logits(size: int, slack: float) -> None:
    logits, ref_logits, targets, coefficients = rows(size, 1.0, 0.5)
    given = (logits, ref_logits, targets, *coefficients, None, None, False)
    *wide_results, wide = kernel_rows(*given, dtype=torch.float32)
    memory = logits.clone()
    results = [torch.full((3,), torch.nan) for _ in range(3)]
    narrow = loss_rows(memory, *given[1:], *results, torch.float16)
    assert narrow.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()
    assert torch.equal(narrow, wide.half())
    for a, e in zip(results, wide_results, strict=True):  # compiled for another dtype, products are fused otherwise
        torch.testing.assert_close(a, e, rtol=slack * 2**-22, atol=0)


def test_without_a_reference(assert_as_right: Callable) -> None:
    logits, _, targets, coefficients = rows(LARGEST + 5, 2.0, 0.0)
    given = (logits, None, targets, *coefficients, None, None, False)
    ours = kernel_rows(*given, dtype=torch.float32)
    assert_as_right(ours, plain_rows(*given), plain_rows(*as_float64(given)))
    assert not ours[2].any()


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("difference", [3e-2, 1e-3, 3e-5])
def test_a_small_kl_keeps_its_digits(forward: bool, difference: float) -> None:
    logits, ref_logits, targets, coefficients = rows(LARGEST + 1, 1.0, difference)
    given = (logits, ref_logits, targets, torch.zeros(3), coefficients[1], torch.zeros(3), None, None, forward)
    _, _, kl, gradient = kernel_rows(*given, dtype=torch.float32)
    _, _, true_kl, true_gradient = plain_rows(*as_float64(given))
    assert ((kl - true_kl).abs() <= 1e-4 * true_kl).all()
    # What stays is the rounding of the log-partition functions against log p - log q.
    assert float((gradient - true_gradient).norm() / true_gradient.norm()) < 1e-6 + 4e-7 / difference
    assert (kl >= 0).all()


@pytest.mark.parametrize("z_loss", [0.0, 1e-30])
def test_logits_whose_square_overflows(z_loss: float) -> None:
    logits = torch.tensor([[1e30, -2e30, 5e29, 0.0]])
    one, z = torch.ones(1), torch.full((1,), z_loss)
    given = (logits, None, torch.tensor([2]), one, one, z, None, None, False)
    loss, ce, _, gradient = kernel_rows(*given, dtype=torch.float32)
    torch.testing.assert_close(loss, ce + 1e30 if z_loss else ce)
    torch.testing.assert_close(gradient, torch.tensor([[1.0 + 2 * z_loss * 1e30, 0, -1, 0]]))


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_equal_models_have_no_kl_at_all(shift: float) -> None:
    logits, _, targets, coefficients = rows(LARGEST + 9, 1.0, 0.0)
    shifted, zero = logits + shift, torch.zeros(3)
    given = (shifted, shifted, targets, zero, coefficients[1], zero, None, None, False)
    _, _, kl, gradient = kernel_rows(*given, dtype=torch.float32)
    assert not kl.any()
    assert not gradient.any()


def test_a_certain_target_keeps_its_gradient() -> None:
    logits = torch.zeros(1, 100)
    logits[0, 3] = 12.0
    one, zero = torch.ones(1), torch.zeros(1)
    given = (logits, None, torch.tensor([3]), one, zero, zero, None, None, False)
    *_, gradient = kernel_rows(*given, dtype=torch.float16)
    *_, expected = plain_rows(*as_float64(given))
    assert float(expected[0, 3]) > -1e-3  # p itself rounds to 1 in float16: p - 1 would be 0
    torch.testing.assert_close(gradient.double(), expected, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("tokens", "ignored"), [(1, False), pytest.param(5, False, marks=pytest.mark.gate), (5, True), (0, False)]
)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_head_as_right_as_plain_pytorch(
    tokens: int, ignored: bool, reduction: str, dtype: torch.dtype, assert_as_right: Callable
) -> None:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    hidden, weight, ref_hidden, ref_weight = normal(tokens, 16), normal(97, 16), normal(tokens, 12), normal(97, 12)
    targets = torch.randint(97, (tokens,), generator=generator)
    targets[:: 1 if ignored else 4] = -100

    def run(f: Callable, hidden: Tensor, weight: Tensor, *ref: Tensor) -> tuple[Tensor, ...]:
        hidden, weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
        loss, ce, kl = f(hidden, weight, targets, *ref, reduction=reduction, chunk_tokens=2, z_loss=1e-3)
        factor = torch.arange(1, loss.numel() + 1).to(loss).view(loss.shape)
        return loss, ce, kl, *torch.autograd.grad((loss * factor).sum(), (hidden, weight))

    given = (hidden, weight, ref_hidden, ref_weight)
    ours, plain = run(linear_ce_kl, *given), run(reference.linear_ce_kl, *given)
    size = float((hidden.double() @ weight.double().T).square().mean().sqrt()) if tokens else 1.0  # of the logits
    assert_as_right(ours, plain, run(reference.linear_ce_kl, *(x.double() for x in given)), size=size)


@pytest.mark.gate
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_head_with_buckets_as_right_as_plain_pytorch(
    reduction: str, dtype: torch.dtype, assert_as_right: Callable
) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = ((5, 16), (97, 16), (5, 12), (81, 12))
    given = [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]
    targets = torch.tensor([-100, 96, 0, 5, -100])
    buckets = Buckets.of(*(torch.randperm(pieces, generator=generator) % 23 for pieces in (97, 81)))

    def run(f: Callable, hidden: Tensor, weight: Tensor, *ref: Tensor) -> tuple[Tensor, ...]:
        hidden, weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
        loss, ce, kl = f(hidden, weight, targets, *ref, kl_buckets=buckets, reduction=reduction, chunk_tokens=2)
        factor = torch.arange(1, loss.numel() + 1).to(loss).view(loss.shape)
        return loss, ce, kl, *torch.autograd.grad((loss * factor).sum(), (hidden, weight))

    ours, plain = run(linear_ce_kl, *given), run(reference.linear_ce_kl, *given)
    size = float((given[0].double() @ given[1].double().T).square().mean().sqrt())  # of the logits
    assert_as_right(ours, plain, run(reference.linear_ce_kl, *(x.double() for x in given)), size=size)
