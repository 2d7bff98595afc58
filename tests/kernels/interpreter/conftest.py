"""Tests of the kernels themselves in Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/kernels/interpreter`.

The interpreter is chosen when a kernel is decorated, once a process: an ordinary run leaves this folder to the
subprocesses of ../test_interpreter.py. bf16 arithmetic is wrong in the interpreter: float32 and float16 here, bf16
on a GPU (../test_gpu.py).

The rule is FlashAttention's: the error against float64 is at most twice that of plain PyTorch in the same dtype, or
what rounding the arguments of its exponentials costs.
"""

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]

DTYPES = [torch.float32, torch.float16]


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Whatever PyTorch allocates without a value is NaN: an element that a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def assert_as_right() -> Callable[..., None]:
    """Compares a kernel's results, plain PyTorch's in the same dtype and the truth in float64, one by one.

    `size` is that of products (scores, logits) of which exponentials are taken: their root mean square. A rounding of
    one moves a probability by size * eps, relatively. Where plain PyTorch rounds once and divides by the sum of what
    came of it, a near-certain token's error cancels; it doesn't where probabilities are made again from products that
    may be rounded otherwise, as some processors do, and a logarithm of the sum.
    """

    def check(
        ours: tuple[Tensor, ...], plain: tuple[Tensor, ...], truth: tuple[Tensor, ...], size: float = 1.0
    ) -> None:
        for index, (a, p, t) in enumerate(zip(ours, plain, truth, strict=True)):
            assert a.shape == t.shape
            assert a.dtype == p.dtype
            if t.numel() == 0:
                continue
            scale = t.detach().abs().max().clamp(min=1e-30)
            ours_error, plain_error = (
                float(((x.detach().double() - t.detach()) / scale).square().mean().sqrt()) for x in (a, p)
            )
            # Below one rounding of the largest element no ratio is asked for: plain PyTorch may be right by luck.
            floor = max(torch.finfo(a.dtype).eps, size * torch.finfo(torch.float32).eps)
            assert ours_error <= max(2 * plain_error, floor), (index, ours_error, plain_error)

    return check


@pytest.fixture
def differentiate() -> Callable[..., tuple[Tensor, ...]]:
    """The outputs of f(*inputs) and the gradients, by the floating inputs, of their sum weighted by fixed numbers."""

    def run(f: Callable[..., object], *inputs: Tensor) -> tuple[Tensor, ...]:
        inputs = tuple(x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs)
        outputs = f(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        generator = torch.Generator().manual_seed(5)
        total = sum((y * torch.randn(y.shape, generator=generator).half().to(y.dtype)).sum() for y in outputs)
        return *outputs, *torch.autograd.grad(total, [x for x in inputs if x.requires_grad])

    return run
