from collections.abc import Callable

import pytest
import torch

from vikhr_kernels import reference, swiglu
from vikhr_kernels.gpu.swiglu import in_rows


@pytest.mark.parametrize(
    "shape", [(1,), (3, 5, 7), (2047,), (2048,), pytest.param((2, 2053), marks=pytest.mark.gate)], ids=str
)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0])
def test_as_right_as_plain_pytorch(
    shape: tuple[int, ...], scale: float, dtype: torch.dtype, assert_as_right: Callable, differentiate: Callable
) -> None:
    generator = torch.Generator().manual_seed(1)
    gate, up = ((torch.randn(*shape, generator=generator) * scale).to(dtype) for _ in range(2))
    ours = differentiate(swiglu, gate, up)
    plain = differentiate(reference.swiglu, gate, up)
    assert_as_right(ours, plain, differentiate(reference.swiglu, gate.double(), up.double()))


def test_far_gates_saturate(dtype: torch.dtype) -> None:
    gate = torch.tensor([-6e4, -100.0, 0.0, 100.0, 6e4], dtype=dtype, requires_grad=True)
    output = swiglu(gate, torch.ones(5, dtype=dtype))
    assert output.tolist() == reference.swiglu(gate, torch.ones(5, dtype=dtype)).tolist()
    (d_gate,) = torch.autograd.grad(output.sum(), gate)
    assert d_gate.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("shape", [(5, 16), (3, 2053), (2, 3, 10)], ids=str)
def test_slices_of_longer_rows(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Bit for bit as from tensors of their own; what lies around the slices is NaN."""
    *leading, size = shape
    wide = torch.full((*leading, 4 * size), torch.nan, dtype=dtype)
    wide[..., : 3 * size] = torch.randn(*leading, 3 * size, generator=torch.Generator().manual_seed(1))
    slices = wide.chunk(4, -1)[:3]
    expected = None
    for sliced in range(8):  # every subset of them: three steps from row to row
        given = [x if sliced >> i & 1 else x.contiguous() for i, x in enumerate(slices)]
        gate, up = (x.detach().requires_grad_() for x in given[:2])
        output = swiglu(gate, up)
        assert output.is_contiguous()
        results = output, *torch.autograd.grad(output, (gate, up), given[2])
        expected = expected or results
        assert all(torch.equal(a, e) for a, e in zip(results, expected, strict=True))


def test_what_rows_cannot_be_read_from_is_copied() -> None:
    x = torch.arange(120.0).view(4, 30)
    for slices in (x[:, 3:10], x[::2, :7], x.view(2, 2, 30)[..., 20:], x[1, 5:], x[:1].expand(4, -1)):
        assert in_rows(slices).data_ptr() == slices.data_ptr()
        assert torch.equal(in_rows(slices).view(slices.shape), slices)
    for odd in (x.T, x[:, ::2], x.view(2, 2, 30).transpose(0, 1)):
        assert in_rows(odd).stride() == (odd.shape[-1], 1)
        assert torch.equal(in_rows(odd).view(odd.shape), odd)


def test_nothing_at_all() -> None:
    for shape in ((0, 3), (3, 0), (2, 0, 3)):
        gate = torch.ones(shape, requires_grad=True)
        output = swiglu(gate, gate)
        assert output.shape == shape
        assert torch.autograd.grad(output.sum(), gate)[0].shape == shape
