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
@settings(deadline=None)
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


def test_bf16_moments_follow_what_nearest_rounding_loses() -> None:
    """A steady gradient moves a mean of half-life 693 steps: rounded to the nearest bf16, it would stop far too low."""
    size, gradient = 4096, 1.0
    parameter, remainder = split_master(torch.zeros(size))
    moments = [torch.zeros(size, dtype=torch.bfloat16) for _ in range(2)]
    nearest = torch.zeros((), dtype=torch.bfloat16)
    settings = {"learning_rate": 1e-3, "betas": (0.999, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    for step in range(1, 1001):
        gradients = [torch.full((size,), gradient)]
        adamw([parameter], [remainder], gradients, *([m] for m in moments), step=step, rounding_seed=step, **settings)
        nearest += (gradient - nearest) * 0.001
    expected = 1 - 0.999**1000
    assert float(nearest) < 0.5 * expected
    for moment in moments:
        error = moment.double().mean() - expected
        assert abs(float(error)) < 4 * float(moment.double().std()) / size**0.5
        assert 0 < float(moment.double().std()) < 0.05 * expected
    steps = join_master(parameter, remainder).double()
    assert float(steps.mean()) == pytest.approx(-1.0, rel=0.01)


def test_random_bits_are_even_and_differ_by_element_tensor_and_seed() -> None:
    count = 1 << 16
    draws = [
        reference.random_bits(count, tensor, seed, torch.device("cpu")) for tensor, seed in ((0, 7), (1, 7), (0, 8))
    ]
    for bits in draws:
        for half in (bits & 0xFFFF, bits >> 16):
            assert abs(float(half.double().mean()) - 32767.5) < 4 * 18918 / count**0.5
        ones = torch.stack([bits >> place & 1 for place in range(32)]).double().mean(1)
        assert ((ones - 0.5).abs() < 5 * 0.5 / count**0.5).all()
    for a, b in ((0, 1), (0, 2), (1, 2)):
        pair = torch.stack([draws[a], draws[b]]).double()
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / count**0.5
    neighbours = torch.stack([draws[0][:-1], draws[0][1:]]).double()
    assert abs(float(torch.corrcoef(neighbours)[0, 1])) < 5 / count**0.5


def test_no_parameters_is_no_step() -> None:
    adamw([], [], [], [], [], step=1, learning_rate=1.0, **SETTINGS)
