# ruff: noqa: N803
"""Kernels that aren't this project's, as Triton compiles them: products by every way to load, and more."""

import signal
from collections.abc import Callable

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

pytest.importorskip("ptx_emulator", exc_type=ImportError)
from ptx_emulator import emulating

pytestmark = pytest.mark.slow

TILE = 64


@triton.jit
def product_kernel(a, b, p_out, N, K, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ROWS_OF_B: tl.constexpr):
    """[64, N] = a [64, K] times b, which is [N, K] or, by rows, [K, N]."""
    start = tl.program_id(0) * BLOCK_N
    b_sum = tl.zeros([64, BLOCK_N], dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        b_a = a.load([0, k])
        if ROWS_OF_B:
            b_sum = tl.dot(b_a, b.load([k, start]), b_sum)
        else:
            b_sum = tl.dot(b_a, tl.trans(b.load([start, k])), b_sum)
    o_row, o_column = tl.arange(0, 64), start + tl.arange(0, BLOCK_N)
    tl.store(p_out + o_row[:, None] * N + o_column[None, :], b_sum, mask=(o_column < N)[None, :])


@triton.jit
def pointer_product_kernel(p_a, p_b, p_out, N, K, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """[64, N] = a [64, K] times b [N, K] transposed."""
    o_row, o_column = tl.arange(0, 64), tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    b_sum = tl.zeros([64, BLOCK_N], dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        o_k = k + tl.arange(0, BLOCK_K)
        b_a = tl.load(p_a + o_row[:, None] * K + o_k[None, :], mask=(o_k < K)[None, :], other=0.0)
        b_b = tl.load(
            p_b + o_column[None, :] * K + o_k[:, None], mask=(o_k < K)[:, None] & (o_column < N)[None, :], other=0.0
        )
        b_sum = tl.dot(b_a, b_b, b_sum)
    tl.store(p_out + o_row[:, None] * N + o_column[None, :], b_sum, mask=(o_column < N)[None, :])


@triton.jit
def count_kernel(p_values, p_counts, p_most, n, BLOCK: tl.constexpr):
    """A histogram of small numbers, and the largest of them, by atomic operations."""
    o_x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_values = tl.load(p_values + o_x, mask=o_x < n)
    tl.atomic_add(p_counts + b_values, 1.0, mask=o_x < n)
    tl.atomic_max(p_most, tl.max(tl.where(o_x < n, b_values, 0)))


@triton.jit
def scan_kernel(p_x, p_sums, p_sorted, BLOCK: tl.constexpr):
    """Running sums, and the numbers by size."""
    o_x = tl.arange(0, BLOCK)
    b_x = tl.load(p_x + o_x)
    tl.store(p_sums + o_x, tl.cumsum(b_x))
    tl.store(p_sorted + o_x, tl.sort(b_x))


def normal(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == torch.float32:  # tf32, the rest of the fraction cut off
        a, b = ((x.view(torch.int32) & -(2**13)).view(torch.float32) for x in (a, b))
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "row_bytes"),
    [(dtype, width) for dtype in (torch.bfloat16, torch.float16) for width in (128, 64, 32)]
    + [(torch.float32, 128), (torch.float32, 64)],  # Triton's products are at least 16 deep
    ids=str,
)
@pytest.mark.parametrize("rows_of_b", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_products_of_swizzled_tiles(dtype: torch.dtype, row_bytes: int, rows_of_b: bool, seed: int) -> None:
    """A row of a tile is as wide as what is swizzled: 128, 64 and 32 bytes, for either operand's depth and columns."""
    block = row_bytes // dtype.itemsize
    n, k = 70, 5 * block  # the last tile of columns sticks out
    a, b = normal(TILE, k, dtype=dtype, seed=1), normal(n, k, dtype=dtype, seed=2)
    padded = -(-n * dtype.itemsize // 16) * 16 // dtype.itemsize
    stored = torch.nn.functional.pad(b.T, (0, padded - n), value=torch.nan)[:, :n] if rows_of_b else b
    box_of_b = [block, max(block, 16)] if rows_of_b else [16, block]
    with emulating(90, seed=seed) as emulation:
        out = torch.empty(TILE, n)
        compiled = product_kernel[(-(-n // box_of_b[rows_of_b]),)](
            TensorDescriptor(a, [TILE, k], [k, 1], [TILE, block]),
            TensorDescriptor(stored, list(stored.shape), [stored.stride(0), 1], box_of_b),
            out, n, k, BLOCK_N=box_of_b[rows_of_b], BLOCK_K=block, ROWS_OF_B=rows_of_b, num_warps=4,
        )  # fmt: skip
    assert compiled.metadata.tensordesc_meta[0]["swizzle"] == {128: 3, 64: 2, 32: 1}[row_bytes]
    assert "wgmma.mma_async" in compiled.asm["ptx"]
    assert_product(out, a, b.T)
    assert not emulation.findings, emulation.report()
    assert not emulation.left_out(out)


@pytest.mark.parametrize("architecture", [80, 86, 89, 90])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("n", "k", "stages"), [(70, 100, 3), (16, 16, 1)])
def test_products_of_tiles_by_pointers(architecture: int, dtype: torch.dtype, n: int, k: int, stages: int) -> None:
    a, b = normal(TILE, k, dtype=dtype, seed=1), normal(n, k, dtype=dtype, seed=2)
    with emulating(architecture, seed=1) as emulation:
        out = torch.empty(TILE, n)
        pointer_product_kernel[(-(-n // 32),)](a, b, out, n, k, BLOCK_N=32, BLOCK_K=32, num_stages=stages, num_warps=4)
    assert_product(out, a, b.T)
    # Triton 3.6 forgot the fence between cp.async and wgmma in such loops; 3.7 has it.
    forgotten = (architecture, dtype, stages) == (90, torch.float32, 3) and triton.__version__.startswith("3.6")
    expected = {"asynchronous read without fence.proxy.async"} if forgotten else set()
    assert {finding.kind for finding in emulation.findings} == expected, emulation.report()


@pytest.mark.parametrize("architecture", [80, 90])
def test_atomic_operations(architecture: int) -> None:
    values = torch.randint(50, (1000,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    counts, most = torch.zeros(50), torch.zeros((), dtype=torch.int32)
    with emulating(architecture, seed=3) as emulation:
        count_kernel[(8,)](values, counts, most, 1000, BLOCK=128)
    assert torch.equal(counts, values.bincount(minlength=50).float())
    assert most == values.max()
    assert not emulation.findings, emulation.report()


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64], ids=str)
def test_scans_and_sorts(architecture: int, dtype: torch.dtype) -> None:
    x = torch.randint(-1000, 1000, (512,), generator=torch.Generator().manual_seed(0)).to(dtype)
    sums, ordered = torch.zeros_like(x), torch.zeros_like(x)
    with emulating(architecture, seed=1) as emulation:
        scan_kernel[(1,)](x, sums, ordered, BLOCK=512)
    assert torch.equal(sums, x.cumsum(0).to(dtype))
    assert torch.equal(ordered, x.sort().values)
    assert not emulation.findings, emulation.report()


@triton.autotune([triton.Config({"BLOCK": 128}), triton.Config({"BLOCK": 256}, num_warps=8)], key=["n"])
@triton.jit
def tuned_kernel(p_x, p_out, n, BLOCK: tl.constexpr):
    """Twice x."""
    o_x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_out + o_x, 2 * tl.load(p_x + o_x, mask=o_x < n), mask=o_x < n)


def test_an_autotuner_tries_every_configuration() -> None:
    x = normal(300, dtype=torch.float32, seed=1)
    with emulating(80) as emulation:
        out = torch.empty(300)
        tuned_kernel[lambda meta: (triton.cdiv(300, meta["BLOCK"]),)](x, out, 300)
    assert torch.equal(out, 2 * x)
    assert sorted({launch.grid for launch in emulation.launches}) == [(2, 1, 1), (3, 1, 1)]


def test_rough_numbers_are_no_better_and_nearly_as_good() -> None:
    a, b = normal(TILE, 512, dtype=torch.bfloat16, seed=1), normal(32, 512, dtype=torch.bfloat16, seed=2)
    truth, errors = a.double() @ b.T.double(), []
    for rough in (False, True):
        with emulating(80, rough=rough):
            out = torch.empty(TILE, 32)
            pointer_product_kernel[(1,)](a, b, out, 32, 512, BLOCK_N=32, BLOCK_K=32)
        errors.append(float((out - truth).norm() / truth.norm()))
    assert errors[0] < errors[1] < 100 * errors[0]


@triton.jit
def power_kernel(p_x, p_out, BLOCK: tl.constexpr):
    """2 to one number, by every warp for itself, in all elements."""
    tl.store(p_out + tl.arange(0, BLOCK), tl.exp2(tl.load(p_x)) + tl.zeros([BLOCK], dtype=tl.float32))


def rough_error(x: float, seed: int) -> float:
    """How far off a rough power of 2 is, relatively; the same in all warps."""
    number, out = torch.tensor([x]), torch.empty(128)
    with emulating(80, seed=seed, rough=True):
        power_kernel[(1,)](number, out, BLOCK=128)
    assert out.unique().numel() == 1
    return float(out[0].double() / number.double().exp2() - 1)


@pytest.mark.parametrize("start", [1.0, 1.1], ids=["whole", "any"])
def test_rough_numbers_err_as_far_as_they_may_to_either_side(start: float) -> None:
    """By two units in the last place, the manual's bound; it promises that 2 to 0 is 1."""
    errors = [[rough_error(start + i, seed) for i in range(16)] for seed in (0, 1)]
    assert all(abs(error) == pytest.approx(2**-22, rel=0.3) for one in errors for error in one)
    assert {error > 0 for error in errors[0]} == {True, False}
    assert errors[0] != errors[1]
    assert rough_error(0.0, seed=0) == 0


def test_what_the_driver_refuses_is_refused() -> None:
    x = torch.zeros(64, 80, dtype=torch.float16)
    descriptor = TensorDescriptor(x, [64, 80], [80, 1], [64, 64])
    descriptor.strides = [70, 1]  # which Triton itself would have refused
    refused = "the driver refuses such a tensor map: a stride of 140 bytes"
    with emulating(90), pytest.raises(ValueError, match=refused):
        product_kernel[(1,)](descriptor, descriptor, x, 70, 70, BLOCK_N=64, BLOCK_K=64, ROWS_OF_B=False)


def test_more_shared_memory_than_the_chip_has_is_refused() -> None:
    a = torch.zeros(64, 256, dtype=torch.float16)
    wide = {"BLOCK_N": 256, "BLOCK_K": 128, "num_warps": 8, "num_stages": 4}
    with emulating(86), pytest.raises(triton.runtime.errors.OutOfResources, match="shared memory"):
        pointer_product_kernel[(1,)](a, a, torch.zeros(64, 256), 256, 256, **wide)


@pytest.mark.parametrize(
    ("architecture", "setting", "refused"),
    [
        (100, {}, "architecture 100 isn't modelled; 80, 86, 89, 90 are"),
        ("90", {}, "architecture '90' isn't modelled"),
        (90, {"seed": -1}, r"seed is a whole number from 0 to 2\*\*64 - 1, not -1"),
        (90, {"seed": 1.5}, "not 1.5"),
        (90, {"most_instructions": 2**64}, "most_instructions is a whole number"),
    ],
)
def test_other_settings_are_refused(architecture: int, setting: dict[str, int], refused: str) -> None:
    with pytest.raises(ValueError, match=refused), emulating(architecture, **setting):
        pass


def test_nothing_is_emulated_while_the_interpreter_takes_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"), emulating(80):
        pass


@triton.jit
def wait_kernel(p_x, steps, MEETS: tl.constexpr):
    """A loop as long as it is told, in which warps may meet."""
    b_sum = 0.0
    for i in range(steps):
        b_sum += tl.load(p_x + i % 2)
        if MEETS:
            tl.debug_barrier()
    tl.store(p_x, b_sum)


def test_a_loop_may_take_as_long_as_it_is_let() -> None:
    for most, found in ((1000, ["doesn't end"]), (10**6, [])):
        with emulating(80, most_instructions=most) as emulation:
            wait_kernel[(1,)](torch.zeros(2), 1000, False, num_warps=1)
        assert [finding.kind for finding in emulation.findings] == found
        assert all("1000 instructions, the limit" in finding.detail for finding in emulation.findings)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("warps", [1, 4], ids=["alone", "with barriers"])
def test_a_long_loop_is_interrupted(seed: int, warps: int) -> None:
    steps = 2**27
    with emulating(80, seed=seed, most_instructions=2**28) as emulation:
        wait_kernel[(1,)](torch.zeros(2), 1000, warps > 1, num_warps=warps)  # compiled before the signal comes
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            with pytest.raises(KeyboardInterrupt):
                wait_kernel[(1,)](torch.zeros(2), steps, warps > 1, num_warps=warps)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert len(emulation.launches) == 1


@pytest.mark.parametrize("grid", [(-1,), (1.0,), (1, 70_000)])
def test_odd_grids_are_refused(grid: tuple[int, ...]) -> None:
    with emulating(80), pytest.raises(ValueError, match="a grid of"):
        wait_kernel[grid](torch.zeros(2), 1, False)


def test_tensors_that_have_no_memory_here_are_refused() -> None:
    with emulating(80), pytest.raises(ValueError, match="p_x is a tensor of meta without memory here"):
        wait_kernel[(1,)](torch.empty(2, device="meta"), 1, False)
    refused = pytest.raises(ValueError, match=r"reached\[0\] is a tensor of meta")
    with emulating(80) as emulation, refused, emulation.reaching([torch.empty(2, device="meta")]):
        pass


def test_numbers_of_numpy_are_numbers() -> None:
    with emulating(80, seed=np.int64(1)) as emulation:
        wait_kernel[(np.int64(1),)](torch.zeros(2), 1, False, num_warps=1)
    assert len(emulation.launches) == 1


@triton.jit
def fill_kernel(p_out, stride, columns, BLOCK: tl.constexpr):
    """Ones in the columns of a row."""
    o_column = tl.arange(0, BLOCK)
    tl.store(p_out + tl.program_id(0) * stride + o_column, 1.0, mask=o_column < columns)


@pytest.mark.parametrize("architecture", [80, 90])
def test_what_lies_between_the_elements_is_out_of_bounds(architecture: int) -> None:
    """Columns 200 to 255 are somebody else's, unless they are an argument too."""
    whole = torch.zeros(7, 256)
    for columns, found in ((200, []), (201, ["global memory out of bounds"])):
        with emulating(architecture) as emulation:
            fill_kernel[(7,)](whole[:, :200], 256, columns, BLOCK=256)
        assert [finding.kind for finding in emulation.findings] == found
    assert "between its elements (7 times)" in emulation.report().replace("\n", " ")
    assert whole[:, :200].eq(1).all()
    assert whole[:, 200:].eq(0).all()
    with emulating(architecture) as emulation, emulation.reaching([whole[:, 200:]]):
        fill_kernel[(7,)](whole[:, :200], 256, 256, BLOCK=256)
    assert not emulation.findings, emulation.report()


@pytest.mark.parametrize("view", [torch.diagonal, lambda x: x.diagonal().expand(8, 8), lambda x: x[:, :1].expand(8, 8)])
def test_elements_that_are_there_many_times_hide_no_gaps(view: Callable[[Tensor], Tensor]) -> None:
    whole = torch.zeros(8, 9)
    with emulating(80) as emulation:
        fill_kernel[(1,)](view(whole), 0, 8, BLOCK=8)
    assert [finding.kind for finding in emulation.findings] == ["global memory out of bounds"]
    assert whole.count_nonzero() == 1


def test_tensors_of_two_dtypes_may_overlap() -> None:
    """Every other half of four bytes is an argument; all of them are."""
    whole = torch.zeros(16)
    halves = whole.view(torch.float16)[::2]
    for tensors, found in (([], ["global memory out of bounds"]), ([whole], [])):
        with emulating(80) as emulation, emulation.reaching(tensors):
            fill_kernel[(1,)](halves, 0, 16, BLOCK=16)
        assert [finding.kind for finding in emulation.findings] == found


@triton.jit
def copy_kernel(p_x, p_out, n, BLOCK: tl.constexpr):
    """n elements, and none of those after them."""
    o_x = tl.arange(0, BLOCK)
    tl.store(p_out + o_x, tl.load(p_x + o_x), mask=o_x < n)


@pytest.mark.parametrize("architecture", [80, 90])
def test_what_misses_its_tensor_hits_no_other(architecture: int) -> None:
    """Side by side in memory, and both arguments."""
    whole = torch.zeros(256)
    with emulating(architecture) as emulation:
        copy_kernel[(1,)](whole[:128], whole[128:], 100, BLOCK=256)
    assert [finding.kind for finding in emulation.findings] == ["global memory out of bounds"]
    assert "at byte 512 of p_x, which has 512" in emulation.report()


@triton.jit
def histogram_kernel(p_x, p_out, BLOCK: tl.constexpr):
    """By atomic operations on shared memory, which aren't modelled."""
    tl.store(p_out + tl.arange(0, 16), tl.histogram(tl.load(p_x + tl.arange(0, BLOCK)), 16))


def test_a_refusal_says_of_which_kernel_and_line() -> None:
    x, out = torch.zeros(256, dtype=torch.int32), torch.zeros(16, dtype=torch.int32)
    where = r"^histogram_kernel: ptx:\d+, \S*test_triton_kernels.py:\d+:\d+.*: \.shared isn't modelled in: atom"
    with emulating(80), pytest.raises(ValueError, match=where):
        histogram_kernel[(1,)](x, out, BLOCK=256)


@triton.jit
def described_kernel(p_x, p_out, BLOCK: tl.constexpr):
    """A copy by a descriptor that it makes itself."""
    description = tl.make_tensor_descriptor(p_x, [BLOCK, BLOCK], [BLOCK, 1], [BLOCK, BLOCK])
    o_x = tl.arange(0, BLOCK)
    tl.store(p_out + o_x[:, None] * BLOCK + o_x[None, :], description.load([0, 0]))


def test_descriptors_made_in_a_kernel_are_modelled_before_hopper_alone() -> None:
    x, out = normal(32, 32, dtype=torch.float32, seed=1), torch.zeros(32, 32)
    with emulating(80) as emulation:
        described_kernel[(1,)](x, out, BLOCK=32)
    assert torch.equal(out, x)
    assert not emulation.findings, emulation.report()
    with emulating(90), pytest.raises(NotImplementedError, match="tensor descriptors made inside of a kernel"):
        described_kernel[(1,)](x, out, BLOCK=32)


def test_all_is_as_before_afterwards() -> None:
    from triton import knobs
    from triton.runtime import driver

    def state() -> tuple[object, ...]:
        filling = torch.utils.deterministic.fill_uninitialized_memory
        return (
            driver._active,
            knobs.cache.dir,
            knobs.runtime.add_stages_inspection_hook,
            torch.are_deterministic_algorithms_enabled(),
            filling,
        )

    before = state()
    with pytest.raises(KeyError), emulating(80):
        raise KeyError
    assert state() == before
