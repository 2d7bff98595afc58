from collections.abc import Callable

import pytest
import torch

from vikhr_kernels import reference, swiglu


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2047,), (2048,), (2, 2053)], ids=str)
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


def test_strided_inputs() -> None:
    fused = torch.randn(5, 16)
    gate, up = fused.chunk(2, dim=1)
    assert torch.equal(swiglu(gate, up), swiglu(gate.contiguous(), up.contiguous()))
    assert swiglu(torch.ones(0, 3), torch.ones(0, 3)).shape == (0, 3)
