"""The optimiser step: exact float32 masters behind bf16 parameters, and PyTorch's AdamW."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_kernels import adamw, join_master, reference, split_master

SETTINGS = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def as_bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=50))
@settings(deadline=None, derandomize=True)
def test_split_round_trip_of_any_bits(bits: list[int]) -> None:
    master = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    upper, remainder = split_master(master)
    joined = join_master(upper, remainder)
    number = ~master.isnan()
    assert torch.equal(as_bits(joined)[number], as_bits(master)[number])
    assert joined[~number].isnan().all()
    assert upper[~number].isnan().all()  # a NaN must show in what the model computes with


def test_split_of_ties_denormals_and_extremes() -> None:
    one = 0x3F800000
    patterns = [
        one + 0x8000, one + 0x18000, one + 0x7FFF, one + 0x8001,  # ties and their neighbours
        0x00000001, 0x007FFFFF, 0x00008000, 0x00007FFF,  # denormals
        0x7F7FFFFF, 0x7F800000, 0x7F7F8000, 0x00800000,  # largest, infinity, the last that rounds up, smallest normal
        0x7FFFFFFF, 0x7F800001,  # NaNs, the first as a GPU makes it
    ]  # fmt: skip
    signed = patterns + [pattern - 2**31 for pattern in patterns]
    master = torch.tensor(signed, dtype=torch.int32).view(torch.float32)
    upper, remainder = split_master(master)
    number = ~master.isnan()
    assert torch.equal(as_bits(join_master(upper, remainder))[number], as_bits(master)[number])
    assert upper.isnan().tolist() == master.isnan().tolist()
    assert int(remainder[0]) == -0x8000  # a tie goes away from zero, where nearest-even would need +0x8000
    ties = torch.tensor([index in (0, 1, 6) for index in range(14)] * 2)
    rounded = master.to(torch.bfloat16)
    assert torch.equal(upper[number & ~ties], rounded[number & ~ties])


def test_a_thousand_steps_on_the_split_equal_a_thousand_on_masters() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 5), (7,), (64, 33)]
    masters = [torch.randn(shape, generator=generator) * 0.1 for shape in shapes]
    halves = [split_master(master) for master in masters]
    parameters, remainders = [upper.clone() for upper, _ in halves], [lower for _, lower in halves]
    moments = [[torch.zeros(shape) for shape in shapes] for _ in range(4)]
    for step in range(1, 1001):
        gradients = [torch.randn(shape, generator=generator) * 10 ** (-step / 250) for shape in shapes]
        changing = {"step": step, "learning_rate": 1e-3 / step**0.5, "gradient_scale": torch.tensor(0.7), **SETTINGS}
        adamw(parameters, remainders, gradients, *moments[:2], **changing)
        reference.adamw(masters, None, gradients, *moments[2:], **changing)
    for i, master in enumerate(masters):
        assert torch.equal(as_bits(join_master(parameters[i], remainders[i])), as_bits(master))
        for split_moment, plain_moment in zip(moments[:2], moments[2:], strict=True):
            assert torch.equal(as_bits(split_moment[i]), as_bits(plain_moment[i]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_is_torch_adamw(dtype: torch.dtype) -> None:
    """In float64 to its rounding: the algebra. In float32 to a few roundings: PyTorch fuses some multiply-adds."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(200, generator=generator, dtype=dtype)
    theirs = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.AdamW([theirs], lr=1e-2, foreach=False, **SETTINGS)
    ours, moments = start.clone(), [[torch.zeros(200, dtype=dtype)] for _ in range(2)]
    for step in range(1, 51):
        theirs.grad = torch.randn(200, generator=generator, dtype=dtype) * 0.1
        optimiser.step()
        adamw([ours], None, [theirs.grad * 2], *moments, step=step, learning_rate=1e-2, gradient_scale=0.5, **SETTINGS)
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(ours, theirs.detach(), rtol=tolerance, atol=tolerance)


def test_no_parameters_is_no_step() -> None:
    adamw([], [], [], [], [], step=1, learning_rate=1.0, **SETTINGS)
