from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vikhr_kernels import reference, rope
from vikhr_kernels.gpu import rope as gpu


def inputs(tokens: int, heads: tuple[int, int], size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(tokens, count, size, generator=generator).to(dtype) for count in heads)
    return q, k


@pytest.mark.parametrize(
    ("tokens", "heads", "size"),
    [
        (1, (1, 1), 2),
        (7, (3, 1), 10),
        pytest.param(5, (4, 2), 64, marks=pytest.mark.gate),
        (3, (8, 8), 128),
        (2, (5, 3), 256),
        (0, (2, 1), 4),
    ],
    ids=str,
)
def test_as_right_as_plain_pytorch(
    tokens: int, heads: tuple[int, int], size: int, dtype: torch.dtype, assert_as_right: Callable,
    differentiate: Callable,
) -> None:  # fmt: skip
    q, k = inputs(tokens, heads, size, dtype)
    positions = torch.tensor([0, 1, 2, 0, 1, 900, 3])[:tokens]
    ours = differentiate(lambda q, k: rope(q, k, positions, 1e4), q, k)
    plain = differentiate(lambda q, k: reference.rope(q, k, positions, 1e4), q, k)
    assert_as_right(
        ours, plain, differentiate(lambda q, k: reference.rope(q, k, positions, 1e4), q.double(), k.double())
    )


def test_far_positions(dtype: torch.dtype, assert_as_right: Callable, differentiate: Callable) -> None:
    q, k = inputs(4, (2, 1), 32, dtype)
    positions = torch.tensor([32767, 4095, 100_000, 1], dtype=torch.int32)
    ours = differentiate(lambda q, k: rope(q, k, positions, 1e6), q, k)
    plain = differentiate(lambda q, k: reference.rope(q, k, positions, 1e6), q, k)
    truth = differentiate(lambda q, k: reference.rope(q, k, positions, 1e6), q.double(), k.double())
    assert_as_right(ours, plain, truth)


def test_backward_undoes_forward() -> None:
    q, k = (x.requires_grad_() for x in inputs(5, (2, 2), 8, torch.float32))
    positions = torch.arange(5)
    rotated = rope(q, k, positions, 100.0)
    back = torch.autograd.grad(rotated, (q, k), tuple(x.detach() for x in rotated))
    for a, e in zip(back, (q, k), strict=True):
        torch.testing.assert_close(a, e)


def test_slices_of_one_product(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read where they lie; what lies around them is NaN."""
    wide = torch.full((6, 7, 8), torch.nan, dtype=dtype)
    wide[:, 1:5] = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(1))
    q, k, positions = wide[:, 1:4], wide[:, 4:5], torch.arange(6)
    given = []
    monkeypatch.setattr(gpu, "rotate", lambda *x, rotate=gpu.rotate: given.append(x[:2]) or rotate(*x))
    for a, e in zip(rope(q, k, positions, 1e4), rope(q.contiguous(), k.contiguous(), positions, 1e4), strict=True):
        assert torch.equal(a, e)
        assert a.is_contiguous()
    assert [x.data_ptr() for x in given[0]] == [q.data_ptr(), k.data_ptr()]


def test_what_heads_cannot_be_read_from_is_copied() -> None:
    transposed, k, positions = torch.randn(6, 8, 3).transpose(1, 2), torch.randn(6, 1, 8), torch.arange(6)
    a, _ = rope(transposed, k, positions, 1e4)
    e, _ = rope(transposed.contiguous(), k, positions, 1e4)
    assert torch.equal(a, e)
