"""The kernels on a GPU in bf16: errors against float64, equal bits run after run, no waiting for the device.

pytest -m gpu
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import vikhr_kernels
from vikhr_kernels import (
    GradientSum,
    Length,
    PackedDocuments,
    adamw,
    embedding,
    linear,
    linear_ce_kl,
    reference,
    scale_into,
    split_master,
    stack,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
RUNS = 10
TOKENS = 517


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return (torch.randn(*shape, generator=generator, device="cuda") * scale).bfloat16()


def head(ops: object, **options: object) -> Callable:
    targets = torch.arange(TOKENS, device="cuda") * 7 % 5003
    targets[::5] = -100
    return lambda *x: ops.linear_ce_kl(*x[:2], targets, *x[2:], chunk_tokens=128, **options)


def packed(ops: object, window: int | None, length: Length = "short") -> Callable:
    lengths = torch.tensor([1, 200, 3, 0, 256, TOKENS - 460])
    cu_seqlens = torch.cat((lengths.new_zeros(1), lengths.cumsum(0))).int().cuda()
    documents = PackedDocuments.of(cu_seqlens, TOKENS, window, length)
    return lambda *x: ops.flash_attention(*x, documents=documents)


def positions() -> Tensor:
    return torch.arange(TOKENS, device="cuda") % 101


SUPPORT = torch.arange(5003) % 3 > 0
HEAD_INPUTS = ((TOKENS, 256), (5003, 256), (TOKENS, 128), (5003, 128))
CASES: dict[str, tuple[Callable, tuple[tuple[int, ...], ...]]] = {
    "rms_norm": (lambda ops: lambda x, w: ops.rms_norm(x, w, 1e-5), ((TOKENS, 4096), (4096,))),
    "rms_norm_residual": (
        lambda ops: lambda x, w, r: ops.rms_norm(x, w, 1e-5, r), ((TOKENS, 1000), (1000,), (TOKENS, 1000)),
    ),
    "rope": (lambda ops: lambda q, k: ops.rope(q, k, positions(), 1e4), ((TOKENS, 32, 128), (TOKENS, 8, 128))),
    "attention": (lambda ops: ops.flash_attention, ((TOKENS, 32, 128), (TOKENS, 8, 128), (TOKENS, 8, 128))),
    "attention_packed": (lambda ops: packed(ops, None), ((TOKENS, 8, 128), (TOKENS, 1, 128), (TOKENS, 1, 128))),
    "attention_packed_long": (
        lambda ops: packed(ops, None, "long"), ((TOKENS, 32, 128), (TOKENS, 8, 128), (TOKENS, 8, 128)),
    ),
    "attention_window": (lambda ops: packed(ops, 70), ((TOKENS, 8, 64), (TOKENS, 2, 64), (TOKENS, 2, 64))),
    "attention_batch_64": (
        lambda ops: lambda *x: ops.flash_attention(*x, window=100), ((2, 300, 6, 64), (2, 300, 6, 64), (2, 300, 6, 64)),
    ),
    "swiglu": (lambda ops: ops.swiglu, ((TOKENS, 14337), (TOKENS, 14337))),
    "head": (lambda ops: head(ops), HEAD_INPUTS),
    "head_forward_kl": (lambda ops: head(ops, kl_direction="forward", z_loss=1e-3), HEAD_INPUTS),
    "head_support": (lambda ops: head(ops, kl_support=SUPPORT.cuda(), reduction="none"), HEAD_INPUTS),
    "head_without_reference": (lambda ops: head(ops), HEAD_INPUTS[:2]),
}  # fmt: skip


def run(operation: Callable, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = operation(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    differentiable = [y for y in outputs if y.requires_grad]
    upstream = [torch.ones_like(y) if y.dim() < 2 else normal(*y.shape, seed=9).to(y.dtype) for y in differentiable]
    gradients = torch.autograd.grad(differentiable, leaves, upstream, allow_unused=True)
    return *outputs, *(g for g in gradients if g is not None)


def inputs_of(name: str) -> list[Tensor]:
    return [normal(*shape, seed=i, scale=0.5) for i, shape in enumerate(CASES[name][1])]


@pytest.mark.parametrize("name", CASES)
def test_error_is_at_most_twice_plain_pytorch(name: str) -> None:
    operation, inputs = CASES[name][0], inputs_of(name)
    ours, plain = run(operation(vikhr_kernels), inputs), run(operation(reference), inputs)
    truth = run(operation(reference), [x.double() for x in inputs])
    for a, p, t in zip(ours, plain, truth[: len(ours)], strict=False):
        error, plain_error = (float((x.double() - t).norm() / t.norm().clamp(min=1e-30)) for x in (a, p))
        # plain PyTorch's single number may be right by luck, so a loss is judged by its tokens
        floor = torch.finfo(a.dtype if a.dim() else torch.bfloat16).eps
        assert error <= max(2 * plain_error, floor)


@pytest.mark.parametrize("name", CASES)
def test_equal_bits_over_ten_runs(name: str) -> None:
    operation, inputs = CASES[name][0](vikhr_kernels), inputs_of(name)
    first = run(operation, inputs)
    for _ in range(RUNS - 1):
        for a, e in zip(run(operation, inputs), first, strict=True):
            assert torch.equal(a, e)


@pytest.mark.parametrize("name", CASES)
def test_never_waits_for_the_device(name: str) -> None:
    operation, inputs = CASES[name][0](vikhr_kernels), inputs_of(name)
    run(operation, inputs)  # compiles, and fills the caches
    leaves = [x.clone().requires_grad_() for x in inputs]
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = operation(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.grad(sum(y.sum() for y in outputs), leaves[:2])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", CASES)
def test_compiled_equals_eager(name: str) -> None:
    operation, inputs = CASES[name][0](vikhr_kernels), inputs_of(name)
    compiled = torch.compile(operation, fullgraph=True)
    for a, e in zip(run(compiled, inputs), run(operation, inputs), strict=True):
        torch.testing.assert_close(a, e)


def test_attention_beyond_two_billion_elements() -> None:
    """The last document of a row whose offsets don't fit into 32 bits is attended to as if it were alone."""
    length = 300
    tokens = 2**31 // (32 * 128) + length
    bounds = torch.tensor([0, tokens - length, tokens], dtype=torch.int32, device="cuda")
    alone = [normal(length, heads, 128, seed=i).requires_grad_() for i, heads in enumerate((32, 8, 8))]
    upstream = normal(length, 32, 128, seed=3)

    def at_the_end(x: Tensor) -> Tensor:
        row = x.new_zeros(tokens, *x.shape[1:])
        row[-length:] = x.detach()
        return row

    leaves = [at_the_end(x).requires_grad_() for x in alone]
    out = vikhr_kernels.flash_attention(*leaves, cu_seqlens=bounds, window=64)
    results = out, *torch.autograd.grad(out, leaves, at_the_end(upstream))
    expected = vikhr_kernels.flash_attention(*alone, window=64)
    expected = expected, *torch.autograd.grad(expected, alone, upstream)
    for a, e in zip(results, expected, strict=True):
        torch.testing.assert_close(a[-length:], e)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("head")])
def test_ignored_tokens_have_no_influence(name: str) -> None:
    operation, inputs, results = CASES[name][0](vikhr_kernels), inputs_of(name), []
    for value in (0.0, torch.nan, torch.inf):
        inputs[0][::5] = value
        if len(inputs) > 2:
            inputs[2][::5] = value
        results.append(run(operation, inputs))
    for other in results[1:]:
        assert all(torch.equal(a, e) for a, e in zip(other, results[0], strict=True))


@pytest.mark.parametrize("name", CASES)
def test_autocast_changes_nothing(name: str) -> None:
    operation, inputs = CASES[name][0](vikhr_kernels), inputs_of(name)
    expected = run(operation, inputs)
    with torch.autocast("cuda", torch.float16):
        results = run(operation, inputs)
    assert all(torch.equal(a, e) for a, e in zip(results, expected, strict=True))


def test_head_memory_does_not_grow_with_the_tokens() -> None:
    weight, ref_weight = (normal(40000, 512, seed=i, scale=0.05).requires_grad_(i == 0) for i in range(2))
    peaks = []
    for tokens in (8192, 16384):  # one chunk and two
        hidden, ref_hidden = normal(tokens, 512).requires_grad_(), normal(tokens, 512, seed=3)
        targets = torch.zeros(tokens, dtype=torch.int64, device="cuda")
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss, *_ = linear_ce_kl(hidden, weight, targets, ref_hidden, ref_weight)
        gradients = hidden.numel() * 2 + weight.numel() * 4
        peaks.append(torch.cuda.max_memory_allocated() - before - gradients)
        del loss
    assert max(peaks) < 2.6 * 2**30
    assert peaks[1] - peaks[0] < 2**20


@pytest.mark.parametrize("moment_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adamw_bits_equal_the_reference_on_gpu_and_cpu(moment_dtype: torch.dtype) -> None:
    settings = {"learning_rate": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    generator = torch.Generator().manual_seed(0)
    masters = [torch.randn(size, generator=generator) for size in (1, 513, 100_003)]
    gradients = [[torch.randn(m.shape, generator=generator).bfloat16() for m in masters] for _ in range(20)]

    def train(operation: Callable, device: str) -> list[Tensor]:
        halves = [split_master(master.to(device)) for master in masters]
        parameters, remainders = [upper.clone() for upper, _ in halves], [lower for _, lower in halves]
        moments = [[torch.zeros(m.shape, dtype=moment_dtype, device=device) for m in masters] for _ in range(2)]
        for step, each in enumerate(gradients, 1):
            scale = torch.tensor(1 / step, device=device)
            moved = [gradient.to(device) for gradient in each]
            changing = {"step": step, "gradient_scale": scale, "rounding_seed": 7 * step}
            operation(parameters, remainders, moved, *moments, **changing, **settings)
        # moments as they are: their bits follow from the same operations
        return [x.cpu() for x in (*(p.view(torch.int16) for p in parameters), *remainders, *moments[0], *moments[1])]

    ours = train(adamw, "cuda")
    for expected in (train(reference.adamw, "cuda"), train(reference.adamw, "cpu")):
        assert all(torch.equal(a, e) for a, e in zip(ours, expected, strict=True))


@pytest.mark.parametrize("narrow", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scaling_rounds_once_or_adds(narrow: torch.dtype) -> None:
    x, before, factor = normal(1031, 97).float(), normal(1031, 97, seed=1).float(), torch.tensor(1 / 3, device="cuda")
    out, added = torch.full(x.shape, torch.nan, dtype=narrow, device="cuda"), before.clone()
    scale_into(out, x, factor, accumulate=False)
    assert torch.equal(out, (x * factor).to(narrow))
    scale_into(added, x, factor, accumulate=True)
    torch.testing.assert_close(added.double(), before.double() + x.double() * factor.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["rope", "attention", "attention_window", "swiglu"])
def test_slices_of_longer_rows_give_the_same_bits(name: str) -> None:
    operation, inputs = CASES[name][0](vikhr_kernels), inputs_of(name)
    wide = torch.cat((*inputs, torch.full_like(inputs[0], torch.nan)), 1)
    slices = wide.split([x.shape[1] for x in (*inputs, inputs[0])], 1)[:-1]
    results = []
    for given in (inputs, slices):
        leaves = [x.detach().requires_grad_() for x in given]
        outputs = operation(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        results.append((*outputs, *torch.autograd.grad(outputs, leaves, [normal(*y.shape, seed=9) for y in outputs])))
    for a, e in zip(*results, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("together", [True, False])
def test_sums_of_gradients_over_micro_batches(dtype: torch.dtype, together: bool) -> None:
    """The products that add into float32, wide and apart, and the embedding's rows: against float64, and equal bits."""
    sizes, width, vocabulary = (384, 128, 128), 256, 40
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda").to(dtype)

    values = [normal(n, width) for n in (*sizes, vocabulary)]
    batches = [
        (torch.randint(vocabulary, (500,), generator=generator, device="cuda"), [normal(500, n) for n in sizes])
        for _ in range(3)
    ]
    batches[0][0][:] = 7  # one token again and again
    found, plain, truth = [], [], []
    for run in ("sums", "sums", "plain", "truth"):
        wide = torch.float64 if run == "truth" else dtype
        *weights, table = (nn.Parameter(value.to(wide)) for value in values)
        if run == "sums":
            if together:
                stack(weights)
            for weight, total in zip(
                weights, torch.full((sum(sizes), width), torch.nan, device="cuda").split(sizes), strict=True
            ):
                GradientSum(total if together else total.clone()).attach(weight)
            GradientSum(torch.full_like(table, torch.nan, dtype=torch.float32)).attach(table)
        for tokens, d in batches:
            if run == "sums":
                outputs = linear(embedding(tokens, table), *weights)
            else:
                outputs = reference.linear(nn.functional.embedding(tokens, table), *weights)
            torch.autograd.backward(outputs, [d_y.to(wide) for d_y in d])
        kept = [GradientSum.of(x).total if run == "sums" else x.grad for x in (*weights, table)]
        {"sums": found, "plain": plain, "truth": truth}[run].append(kept)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    for ours, theirs, right in zip(found[0], plain[0], truth[0], strict=True):
        assert (ours - right).norm() <= 2 * (theirs - right).norm()
