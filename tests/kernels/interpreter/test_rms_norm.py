from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vikhr_kernels import dispatch, reference, rms_norm

SHAPES = [(1, 1), (1, 64), pytest.param((7, 37), marks=pytest.mark.gate), (5, 1031), (2, 3, 1024), (0, 8)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, residual = (torch.randn(*shape, generator=generator) * scale for _ in range(2))
    weight = torch.randn(shape[-1], generator=generator)
    return x.to(dtype), weight.to(dtype), residual.to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
def test_as_right_as_plain_pytorch(
    shape: tuple[int, ...], with_residual: bool, dtype: torch.dtype, assert_as_right: Callable, differentiate: Callable
) -> None:
    given = inputs(shape, dtype, 1.0)[: 2 + with_residual]

    def by(f: Callable) -> Callable:
        return lambda x, weight, residual=None: f(x, weight, 1e-5, residual)

    ours = differentiate(by(rms_norm), *given)
    plain = differentiate(by(reference.rms_norm), *given)
    assert_as_right(ours, plain, differentiate(by(reference.rms_norm), *(x.double() for x in given)))


@pytest.mark.parametrize("scale", [1e-4, 1e2])
def test_sizes_whose_squares_leave_float16(
    scale: float, dtype: torch.dtype, assert_as_right: Callable, differentiate: Callable
) -> None:
    x, weight, _ = inputs((3, 41), dtype, scale)
    ours = differentiate(lambda x, w: rms_norm(x, w, 1e-6), x, weight)
    plain = differentiate(lambda x, w: reference.rms_norm(x, w, 1e-6), x, weight)
    truth = differentiate(lambda x, w: reference.rms_norm(x, w, 1e-6), x.double(), weight.double())
    assert_as_right(ours, plain, truth)


@pytest.mark.parametrize("rows", [1, 3, 4, pytest.param(11, marks=pytest.mark.gate)])
def test_weight_gradient_over_programs_of_several_rows(
    rows: int, monkeypatch: pytest.MonkeyPatch, assert_as_right: Callable, differentiate: Callable
) -> None:
    monkeypatch.setattr(dispatch, "multiprocessors", lambda _: 1)  # 4 programs
    x, weight, residual = inputs((rows, 50), torch.float32, 1.0)
    ours = differentiate(lambda *t: rms_norm(t[0], t[1], 1e-5, t[2]), x, weight, residual)
    plain = differentiate(lambda *t: reference.rms_norm(t[0], t[1], 1e-5, t[2]), x, weight, residual)
    truth = differentiate(
        lambda *t: reference.rms_norm(t[0], t[1], 1e-5, t[2]), x.double(), weight.double(), residual.double()
    )
    assert_as_right(ours, plain, truth)


def test_strided_inputs_and_upstream() -> None:
    x, weight, _ = inputs((6, 10), torch.float32, 1.0)
    wide = torch.randn(6, 20)
    wide[:, ::2] = x
    strided, plain = wide[:, ::2].detach().requires_grad_(), x.clone().requires_grad_()
    ours, expected = rms_norm(strided, weight, 1e-5), rms_norm(plain, weight, 1e-5)
    assert torch.equal(ours, expected)
    upstream = torch.randn(10, 6).T
    for a, e in zip(
        torch.autograd.grad(ours, strided, upstream),
        torch.autograd.grad(expected, plain, upstream.contiguous()),
        strict=True,
    ):
        assert torch.equal(a, e)


def test_only_the_sum_is_used() -> None:
    x, weight, residual = (t.requires_grad_() for t in inputs((3, 8), torch.float32, 1.0))
    _, summed = rms_norm(x, weight, 1e-5, residual)
    upstream = torch.randn(3, 8)
    assert all(torch.equal(g, upstream) for g in torch.autograd.grad(summed, [x, residual], upstream))


def test_too_wide_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="8193 elements"):
        rms_norm(torch.ones(1, 8193), torch.ones(8193), 1e-5)


def test_weight_gradient_is_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "multiprocessors", lambda _: 1)
    x = torch.tensor([[0.1, 2.0], [0.1, 2.0]], dtype=torch.float16)  # two programs, each over float16's range
    weight = torch.ones(2, dtype=torch.float16, requires_grad=True)
    (d_weight,) = torch.autograd.grad(rms_norm(x, weight, 1e-5), weight, torch.tensor([[6e4] * 2, [-6e4] * 2]).half())
    assert d_weight.tolist() == [0.0, 0.0]
