"""The kernel's bits against the reference's, which ../test_adamw.py ties to float32 masters and to PyTorch."""

import pytest
import torch
from torch import Tensor

from vikhr_kernels import adamw, reference, split_master

SIZES = (1, 511, 512, 513, 4096, 5000)
SETTINGS = {"learning_rate": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def state(
    split: bool, gradient_dtype: torch.dtype, moment_dtype: torch.dtype, offset: int = 0
) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def lists(dtype: torch.dtype) -> list[Tensor]:
        # An offset makes addresses that aren't multiples of 16.
        return [torch.randn(size + offset, generator=generator).to(dtype)[offset:] for size in SIZES]

    masters, moments = lists(torch.float32), lists(moment_dtype)
    halves = [split_master(master) for master in masters]
    return {
        "parameters": [upper.clone() for upper, _ in halves] if split else masters,
        "remainders": [lower for _, lower in halves] if split else None,
        "gradients": lists(gradient_dtype),
        "first_moments": moments,
        "second_moments": [moment.square() for moment in lists(moment_dtype)],
    }


def bits(tensors: list[Tensor]) -> list[Tensor]:
    views = {2: torch.int16, 4: torch.int32}
    return [tensor.view(views[tensor.element_size()]) for tensor in tensors]


def assert_same_bits(ours: dict[str, list[Tensor]], expected: dict[str, list[Tensor]]) -> None:
    for name, tensors in ours.items():
        for index, (a, e) in enumerate(zip(bits(tensors or []), bits(expected[name] or []), strict=True)):
            assert torch.equal(a, e), (name, index)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("gradient_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("moment_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset", [0, pytest.param(1, marks=pytest.mark.gate)])
def test_equal_bits_over_steps(
    split: bool, gradient_dtype: torch.dtype, moment_dtype: torch.dtype, offset: int
) -> None:
    ours, expected = (state(split, gradient_dtype, moment_dtype, offset) for _ in range(2))
    for step in range(1, 4):
        scale = torch.tensor(1.0 / step)
        changing = {"step": step, "gradient_scale": scale, "rounding_seed": 2**31 - step}
        adamw(**ours, **changing, **SETTINGS)
        reference.adamw(**expected, **changing, **SETTINGS)
    assert_same_bits(ours, expected)


@pytest.mark.parametrize("moment_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extremes_keep_their_bits(moment_dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 3.4e38, -3.4e38, torch.inf, -torch.inf, torch.nan, 1 + 2**-8])
    gradients = torch.tensor([0.0, 1e-30, 1e-20, 3e38, 1.0, -1.0, 0.0, 1.0, 1.0, torch.nan])
    gradients.view(torch.int32)[9] = 0x7FFFFFFF  # a GPU's NaN: with random bits added to it, it would be -0

    def extreme() -> dict[str, list[Tensor]]:
        upper, lower = split_master(values)
        # A NaN as a GPU makes it, 0x7FFFFFFF, whose plain rounding to bf16 would be -0.
        upper.view(torch.int16)[8], lower[8] = -(2**15), -1
        zeros = [torch.zeros(10, dtype=moment_dtype) for _ in range(2)]
        return {
            "parameters": [upper.clone()], "remainders": [lower], "gradients": [gradients.clone()],
            "first_moments": zeros[:1], "second_moments": zeros[1:],
        }  # fmt: skip

    ours, expected = extreme(), extreme()
    for step in (1, 2):
        adamw(**ours, step=step, **SETTINGS)
        reference.adamw(**expected, step=step, **SETTINGS)
    for name in ("parameters", "first_moments", "second_moments"):
        torch.testing.assert_close(ours[name], expected[name], rtol=0, atol=0, equal_nan=True)
    finite = ~ours["parameters"][0].isnan()
    assert torch.equal(ours["remainders"][0][finite], expected["remainders"][0][finite])
    assert ours["parameters"][0].isnan().tolist() == [False] * 8 + [True] * 2
