"""Faults planted into this project's kernels are found, and their lines named.

pytest tests/emulator/test_planted_faults.py -rP    # shows what is said of each
"""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

pytest.importorskip("ptx_emulator", exc_type=ImportError)
from ptx_emulator import Finding, emulating

import vikhr_kernels.gpu
from vikhr_kernels import dispatch
from vikhr_kernels.gpu import flash_attention as right_attention

pytestmark = pytest.mark.slow

SOURCES = Path(vikhr_kernels.gpu.__file__).parent
TOKENS, HEADS = 70, 3


@pytest.fixture
def plant(tmp_path: Path) -> Callable[[str, str, str], ModuleType]:
    """Loads a copy of a kernel's module, one text of which is another."""

    def load(name: str, old: str, new: str) -> ModuleType:
        source = (SOURCES / name).read_text(encoding="utf-8")
        assert source.count(old) == 1
        copy = tmp_path / name
        copy.write_text(source.replace(old, new), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(f"planted_{copy.stem}", copy)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def line_of(name: str, text: str) -> int:
    """Where a text is that stands once, in a kernel's source."""
    lines = (SOURCES / name).read_text(encoding="utf-8").splitlines()
    (number,) = (number for number, line in enumerate(lines, 1) if text in line)
    return number


def assert_named(findings: list[Finding], kind: str, place: str) -> None:
    print("\n".join({finding.source: str(finding) for finding in findings}.values()))  # one for each place
    assert any(finding.kind == kind and place in finding.source for finding in findings)


def attend(module: ModuleType, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(TOKENS, heads, 64, generator=generator).to(dtype) for heads in (HEADS, 1, 1))
    out, _ = module.forward(q, k, v, torch.zeros(TOKENS, dtype=torch.int32), "short", 0.125)
    return out


def lose(pattern: str, which: int) -> Callable[[str, str], str]:
    """A change of PTX: one of the lines that match a pattern is lost."""

    def change(_: str, ptx: str) -> str:
        found = list(re.finditer(rf"(?m)^\s*{pattern}.*$", ptx))[which]
        return ptx[: found.start()] + ptx[found.end() :]

    return change


@pytest.mark.parametrize("architecture", [80, 90])
def test_without_a_fault_nothing_is_found(architecture: int) -> None:
    with dispatch.compiling_for(architecture), emulating(architecture, seed=1) as emulation:
        out = attend(right_attention)
    assert not emulation.findings
    assert not emulation.left_out(out)


@pytest.mark.parametrize("architecture", [80, 90])
def test_a_dropped_barrier(architecture: int, plant: Callable) -> None:
    """The loss head's gradient is written over the logits: every warp must have read the target's first."""
    loss_rows = plant("loss_rows.py", "tl.debug_barrier()", "pass")
    logits = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    ones, results = torch.ones(2), [torch.empty(2) for _ in range(3)]
    with dispatch.compiling_for(architecture), emulating(architecture, seed=1) as emulation:
        loss_rows.loss_rows(
            logits, None, torch.tensor([5, 4999]), ones, ones, ones, None, None, False, *results, torch.float32
        )
    store = line_of("loss_rows.py", "tl.store(p_gradient + o_v")
    assert_named(emulation.findings, "race in global memory", f"loss_rows.py:{store}:")


@pytest.mark.parametrize(
    ("architecture", "pattern", "which", "kind", "place"),
    [
        (80, "cp.async.wait_group", 0, "read of an asynchronous copy not waited for", "tiles.py:{dot}:"),
        (80, "bar.sync", 1, "race in shared memory", "flash_attention.py"),
        (90, "wgmma.wait_group", 0, "use of registers of a wgmma not waited for", "flash_attention.py"),
        (90, "mbarrier.try_wait", 0, "race in shared memory", "tiles.py:{dot}:"),
    ],
)  # fmt: skip
def test_a_dropped_wait(architecture: int, pattern: str, which: int, kind: str, place: str) -> None:
    dot = line_of("tiles.py", "b_product = tl.dot(left[0]")
    with (
        dispatch.compiling_for(architecture),
        emulating(architecture, seed=1, change=lose(pattern, which)) as emulation,
    ):
        attend(right_attention)
    assert_named(emulation.findings, kind, place.format(dot=dot))


@pytest.mark.parametrize("architecture", [80, 90])
def test_a_wrong_mask(architecture: int, plant: Callable) -> None:
    attention = plant("flash_attention.py", "m_query = o_query < T", "m_query = o_query <= T")
    with dispatch.compiling_for(architecture), emulating(architecture) as emulation:
        attend(attention)
    load, store = (line_of("flash_attention.py", text) for text in ("b_first = tl.load(", "store_parts(p_rows"))
    assert_named(emulation.findings, "global memory out of bounds", f"flash_attention.py:{load}:")
    assert_named(emulation.findings, "global memory out of bounds", f"flash_attention.py:{store}:")


@pytest.mark.parametrize("architecture", [80, 90])
def test_a_store_out_of_bounds(architecture: int, plant: Callable) -> None:
    swiglu = plant("swiglu.py", "p_output + i_row * size + o_x", "p_output + (i_row + 1) * size + o_x")
    with dispatch.compiling_for(architecture), emulating(architecture) as emulation:
        out = swiglu.forward(torch.ones(3, 2053), torch.ones(3, 2053))
    store = line_of("swiglu.py", "tl.store(p_output")
    assert_named(emulation.findings, "global memory out of bounds", f"swiglu.py:{store}:")
    assert_named(emulation.left_out(out), "elements left out", f"swiglu.py:{store}:")


@pytest.mark.parametrize("architecture", [80, 90])
def test_a_lost_head(architecture: int, plant: Callable) -> None:
    programs = "(triton.cdiv(tokens, chosen.queries) * heads,)"
    attention = plant("flash_attention.py", programs, programs.replace("heads", "heads - 1"))
    with dispatch.compiling_for(architecture), emulating(architecture) as emulation:
        out = attend(attention)
    assert not emulation.findings
    store = line_of("flash_attention.py", "store_parts(p_rows")
    (finding,) = emulation.left_out(out)
    assert "the first at [0, " in finding.detail
    assert_named([finding], "elements left out", f"flash_attention.py:{store}:")


def test_the_same_seed_finds_the_same() -> None:
    def find() -> list[str]:
        with dispatch.compiling_for(80), emulating(80, seed=5, change=lose("bar.sync", 1)) as emulation:
            attend(right_attention)
        return [str(finding) for finding in emulation.findings]

    assert find() == find() != []
