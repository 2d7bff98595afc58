"""Attention on a CPU is the reference's, in results and gradients, and no document sees another."""

import pytest
import torch

from vikhr_kernels import PackedDocuments, cpu, reference

DOCUMENTS = [[0, 7], [0, 1, 2, 9, 20], [0, 3, 3, 11]]


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("bounds", DOCUMENTS, ids=str)
def test_attention_equals_the_references(bounds: list[int], window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.full((bounds[-1], 12, 8), torch.nan, dtype=torch.float64)  # slices of one product, as in a model
    wide[:, :8] = torch.randn(bounds[-1], 8, 8, generator=generator, dtype=torch.float64)
    documents, results = PackedDocuments.of(torch.tensor(bounds, dtype=torch.int32), bounds[-1], window), []
    for operation in (cpu.flash_attention, reference.flash_attention):
        q, k, v = (x.detach().requires_grad_() for x in wide[:, :8].split((4, 2, 2), dim=1))
        attended = operation(q, k, v, documents=documents)
        upstream = torch.arange(attended.numel(), dtype=torch.float64).view_as(attended).cos()
        results.append((attended, *torch.autograd.grad(attended, (q, k, v), upstream)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_is_as_near_to_the_truth(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(150, heads, 16, generator=generator).to(dtype) for heads in (4, 2, 2)]
    documents, results = PackedDocuments.of(torch.tensor([0, 90, 150], dtype=torch.int32), 150), []
    for operation, wide in ((cpu, dtype), (reference, dtype), (reference, torch.float64)):
        q, k, v = (x.to(wide).requires_grad_() for x in values)
        attended = operation.flash_attention(q, k, v, documents=documents)
        results.append((attended, *torch.autograd.grad(attended.square().sum(), (q, k, v))))
    for ours, plain, truth in zip(*results, strict=True):
        assert (ours - truth).norm() <= 2 * (plain - truth).norm()
