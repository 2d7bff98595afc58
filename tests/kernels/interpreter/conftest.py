"""Tests of the kernels themselves, without a GPU: in Triton's interpreter, or compiled and executed by the emulator.

    TRITON_INTERPRET=1 pytest tests/kernels/interpreter
    EMULATED_ARCHITECTURE=80 pytest tests/kernels/interpreter  # ../../gates/emulate.py does so

The interpreter is chosen when a kernel is decorated, once a process: an ordinary run leaves this folder to the
subprocesses of ../test_interpreter.py. bf16 arithmetic is wrong in the interpreter: float32 and float16 there, bf16
in the emulator too.

The rule is FlashAttention's: the error against float64 is at most twice that of plain PyTorch in the same dtype, or
what rounding the arguments of its exponentials costs.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vikhr_kernels import dispatch
from vikhr_kernels.dispatch import Configuration
from vikhr_kernels.gpu import adamw

ARCHITECTURE = int(os.environ.get("EMULATED_ARCHITECTURE", 0))
SEED = int(os.environ.get("EMULATED_SEED", 1))
ROUGH = os.environ.get("EMULATED_ROUGH") == "1"
ONLY_GATE = os.environ.get("EMULATED_CASES") == "gate"
if ARCHITECTURE == 0 and os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]

DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ARCHITECTURE else [])]


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
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """A block that both kernels of a row of logits are given, so that few pieces are several blocks."""
    for table in dispatch.TABLE.values():
        for kernel in ("loss_rows_kernel", "pool_rows_kernel"):
            monkeypatch.setitem(table, kernel, dict.fromkeys(table[kernel], (Configuration(64, 2),)))
    return 64


@pytest.fixture
def slack() -> float:
    """How many roundings a float32 result may be off for one: where all approximations are as wrong as they may be."""
    return 8.0 if ROUGH else 1.0


@pytest.fixture
def assert_as_right(slack: float) -> Callable[..., None]:
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
            single = torch.finfo(torch.float32).eps
            floor = max(slack * single * max(1.0, size), torch.finfo(a.dtype).eps)
            # A GPU adds one product after the other; plain PyTorch's sums are a CPU's here, in several parts.
            ratio = 3 if ARCHITECTURE and a.dtype == torch.float32 else 2
            assert ours_error <= max(ratio * plain_error, floor), (index, ours_error, plain_error)

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


CASES: list[dict[str, object]] = []  # what ran in the emulator: a row for each test and kernel


@pytest.fixture(autouse=True)
def _emulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Launches are compiled and executed by the emulator, where it was asked for, and it must find nothing."""
    if not ARCHITECTURE:
        yield
        return
    from ptx_emulator import emulating

    with emulating(ARCHITECTURE, seed=SEED, rough=ROUGH) as emulation, dispatch.compiling_for(ARCHITECTURE):
        step = adamw.step

        def step_on_known_memory(*lists: object, **options: object) -> None:
            with emulation.reaching(itertools.chain(*lists[:5])):
                step(*lists, **options)

        monkeypatch.setattr(dispatch, "INTERPRETED", True)
        monkeypatch.setattr(adamw, "step", step_on_known_memory)
        yield
    parameters = getattr(request.node, "callspec", None)
    dtypes = [value for value in parameters.params.values() if isinstance(value, torch.dtype)] if parameters else []
    for launch in emulation.launches:
        numbers = {"seconds": launch.seconds, "lane_instructions": launch.lane_instructions}
        name = str((dtypes or [torch.float32])[0]).removeprefix("torch.")
        CASES.append({"test": request.node.nodeid, "kernel": launch.kernel, "dtype": name, **numbers})
    assert not emulation.findings, emulation.report()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the emulator: a table's tiles for their own architecture alone, and few cases where few were asked for."""

    def is_wanted(item: pytest.Item) -> bool:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        is_own = parameters.get("architecture", ARCHITECTURE) == ARCHITECTURE
        return is_own and (not ONLY_GATE or item.get_closest_marker("gate") is not None)

    if ARCHITECTURE:
        items[:] = [item for item in items if item.path.parent != Path(__file__).parent or is_wanted(item)]


def pytest_sessionfinish() -> None:
    """Leaves the cases where they were asked for."""
    if record := os.environ.get("EMULATED_RECORD"):
        beside = Path(record).with_suffix(".beside")
        beside.write_text(json.dumps(CASES), encoding="utf-8")
        beside.replace(record)
