"""Bit for bit as in plain PyTorch, which rounds once, too; a sum to the rounding of its product."""

import pytest
import torch

from vikhr_kernels import reference, scale_into

SIZES = [(1,), (2047,), (3, 2048), pytest.param((4, 1, 1025), marks=pytest.mark.gate), (0, 5)]


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize(
    ("wide", "narrow"),
    [(torch.float32, torch.float32), (torch.float32, torch.float16), (torch.float16, torch.float16)],
    ids=str,
)
def test_rounds_once(shape: tuple[int, ...], wide: torch.dtype, narrow: torch.dtype) -> None:
    x, factor = normal(*shape).to(wide), torch.tensor(1 / 3)
    out = torch.empty(shape, dtype=narrow)  # NaN
    scale_into(out, x, factor, accumulate=False)
    assert torch.equal(out, (x.double() * factor.double()).float().to(narrow))
    expected = torch.empty_like(out)
    reference.scale_into(expected, x, factor, accumulate=False)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_adds_to_what_is_there(shape: tuple[int, ...]) -> None:
    x, before, factor = normal(*shape), normal(*shape, seed=2), torch.tensor(1 / 3)
    out, expected = before.clone(), before.double()
    scale_into(out, x, factor, accumulate=True)
    reference.scale_into(expected, x.double(), factor.double(), accumulate=True)
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-7)


def test_infinities_and_nan_stay() -> None:
    x, out = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, 7e4]), torch.empty(5, dtype=torch.float16)
    scale_into(out, x, torch.tensor(1.0), accumulate=False)
    torch.testing.assert_close(out, x.half(), rtol=0, atol=0, equal_nan=True)
