"""The static gate: compiles every kernel and configuration of the dispatch table without a GPU.

    python -m vikhr_kernels.aot [--architecture 90] [--kernel NAME]

The launchers run as they do in training, on tensors as aligned as a GPU's, up to the launch itself: what is compiled
has the very signature of a real call, divisibility by 16 included. A table entry that no launch reaches, a kernel
that the table doesn't know, a spilled register or too much shared memory is a failure (exit code 1).
"""

import argparse
import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from rich.console import Console
from rich.table import Table
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import vikhr_kernels.gpu
from vikhr_kernels import attention_dispatch, dispatch
from vikhr_kernels.attention_dispatch import AttentionConfiguration
from vikhr_kernels.dispatch import Configuration
from vikhr_kernels.gpu import (
    adamw,
    flash_attention,
    flash_attention_backward,
    loss_rows,
    rms_norm,
    rope,
    scale,
    swiglu,
    visible_range,
)

DTYPE = torch.bfloat16
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")


def _rows(width: int, count: int = 2, dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.ones(count, width, dtype=dtype)


# A sample call of the launchers for each kernel: what it is given in training, in the shape that picks the entry.
# Slices of one product's rows and tensors of their own have one signature: all steps are multiples of 16.


def _call_rms_norm_forward(configuration: Configuration) -> None:
    for residual in (None, _rows(configuration.block)):
        rms_norm.forward(_rows(configuration.block), torch.ones(configuration.block, dtype=DTYPE), 1e-5, residual)


def _call_rms_norm_backward(configuration: Configuration) -> None:
    row, scale = _rows(configuration.block, 16), torch.ones(16)
    for d_summed in (None, row):
        rms_norm.backward(row, d_summed, row, torch.ones(configuration.block, dtype=DTYPE), scale)


def _call_rope(configuration: Configuration) -> None:
    size = 2 * configuration.block
    q, k, _ = torch.ones(16, 48, size, dtype=DTYPE).split((32, 8, 8), 1)
    for inverse in (False, True):
        rope.rotate(q, k, torch.zeros(16, dtype=torch.int32), torch.ones(configuration.block), inverse)


def _call_swiglu_forward(configuration: Configuration) -> None:
    swiglu.forward(*_rows(2 * configuration.block).chunk(2, 1))


def _call_swiglu_backward(configuration: Configuration) -> None:
    swiglu.backward(_rows(configuration.block), *_rows(2 * configuration.block).chunk(2, 1))


def _call_scale(configuration: Configuration) -> None:
    x, factor = torch.ones(2 * configuration.block), torch.ones(())
    for accumulate, out in ((False, x.to(DTYPE)), (True, x)):
        scale.scale_into(out, x, factor, accumulate)


def _call_adamw(configuration: Configuration) -> None:
    numbers = ("decay", "first_rate", "second_decay", "second_rate", "second_correction", "eps", "step_size")
    size = 2 * configuration.block
    for split in (True, False):
        for gradient, moment in ((DTYPE, torch.float32), (torch.float32, torch.float32), (torch.float32, DTYPE)):
            moments = [torch.zeros(size, dtype=moment) for _ in range(2)]
            parameters = [torch.zeros(size, dtype=DTYPE if split else torch.float32) for _ in range(2)]
            remainders = [torch.zeros(size, dtype=torch.int16) for _ in range(2 if split else 0)]
            gradients = [torch.zeros(size, dtype=gradient) for _ in range(2)]
            factors = dict.fromkeys(numbers, 0.5)
            adamw.step(parameters, remainders, gradients, moments, moments, torch.ones(()), rounding_seed=3, **factors)


def _call_loss_rows(configuration: Configuration) -> None:
    smaller = [c.block for c in dispatch.TABLE[80]["loss_rows_kernel"][DTYPE] if c.block < configuration.block]
    one_block = (max(smaller, default=0) + configuration.block) // 2
    for vocabulary in {one_block, 40000} if configuration.block < 40000 else {one_block}:
        for with_reference, with_support, forward in (
            (False, False, False),
            (True, False, False),
            (True, True, False),
            (True, False, True),
            (True, True, True),
        ):
            for gradient_dtype in (None, DTYPE):
                logits = _rows(vocabulary, 16, torch.float32)
                support = torch.ones(vocabulary, dtype=torch.bool) if with_support else None
                each = torch.ones(16)
                loss_rows.loss_rows(
                    logits, logits if with_reference else None, torch.zeros(16, dtype=torch.int64), each, each, each,
                    support, forward, each, each, each, gradient_dtype,
                )  # fmt: skip


def _call_visible_range(configuration: Configuration) -> None:
    visible_range.visible_range(torch.tensor([0, configuration.block], dtype=torch.int32), configuration.block, 4096)


def _call_flash_attention(configuration: AttentionConfiguration) -> None:
    tokens, size = 256, configuration.head_size
    q, k, v = torch.ones(tokens, 48, size, dtype=DTYPE).split((32, 8, 8), 1)
    ranges = visible_range.visible_range(torch.tensor([0, tokens], dtype=torch.int32), tokens, tokens)
    out, lse = flash_attention.forward(q, k, v, ranges[0], 1.0)
    flash_attention_backward.backward(out, q, k, v, out, lse, *ranges, 1.0)


SAMPLE_CALLS: dict[str, Callable[[Any], None]] = {
    "rms_norm_forward_kernel": _call_rms_norm_forward,
    "rms_norm_backward_kernel": _call_rms_norm_backward,
    "rms_norm_weight_gradient_kernel": _call_rms_norm_backward,
    "rope_kernel": _call_rope,
    "swiglu_forward_kernel": _call_swiglu_forward,
    "swiglu_backward_kernel": _call_swiglu_backward,
    "scale_kernel": _call_scale,
    "adamw_kernel": _call_adamw,
    "loss_rows_kernel": _call_loss_rows,
    "visible_range_kernel": _call_visible_range,
    **dict.fromkeys(attention_dispatch.KERNELS, _call_flash_attention),
}


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one kernel under one signature."""

    architecture: int
    kernel: str
    configuration: Configuration | AttentionConfiguration
    variant: str  # the constants that aren't the configuration's
    registers: int
    spilled: int  # bytes stored and loaded
    shared: int
    matrix_instructions: str

    @property
    def wrong(self) -> str:
        """What is wrong with it; empty where nothing is."""
        limit = dispatch.ARCHITECTURES[self.architecture].shared_memory
        if self.spilled:
            return f"{self.spilled} bytes spilled"
        matrix = "HGMMA" if self.architecture >= 90 else "HMMA"
        if self.kernel in attention_dispatch.KERNELS and self.matrix_instructions != matrix:
            return f"matrix instructions are {self.matrix_instructions}, not {matrix}"
        return f"{self.shared} bytes of shared memory, over {limit}" if self.shared > limit else ""


@dataclass
class _CompileOnlyDriver:
    """Stands in for a GPU: names what to compile for; nothing can be launched on it."""

    target: GPUTarget
    get_current_device: Callable[[], int] = field(default=lambda: 0)
    get_current_stream: Callable[[int], int] = field(default=lambda _: 0)

    def get_current_target(self) -> GPUTarget:
        return self.target


@contextmanager
def compiling(architecture: int) -> Iterator[list[tuple[JITFunction[Any], dict[str, Any], Any]]]:
    """Makes every launch inside compile instead; yields the list of (kernel, keyword arguments, compiled kernel)."""
    launches: list[tuple[JITFunction[Any], dict[str, Any], Any]] = []
    launch = JITFunction.run

    def compile_only(self: JITFunction[Any], *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> None:  # noqa: ARG001
        launches.append((self, keywords, launch(self, *arguments, grid=grid, warmup=True, **keywords)))

    caches = [kernel.device_caches for kernel in find_kernels().values()]
    for cache in caches:
        cache.clear()  # they belong to the driver of before
    driver.set_active(_CompileOnlyDriver(GPUTarget("cuda", architecture, 32)))
    try:
        with dispatch.compiling_for(architecture), mock.patch.object(JITFunction, "run", compile_only):
            yield launches
    finally:
        driver._active = None
        for cache in caches:
            cache.clear()


def find_kernels() -> dict[str, JITFunction[Any]]:
    """Every kernel of `vikhr_kernels.gpu`, by name."""
    return {
        name: value
        for module in pkgutil.iter_modules(vikhr_kernels.gpu.__path__)
        for name, value in vars(importlib.import_module(f"vikhr_kernels.gpu.{module.name}")).items()
        if isinstance(value, JITFunction) and name.endswith("_kernel")
    }


def measure(compiled: Any, architecture: int) -> tuple[int, int, str]:
    """Registers, spilled bytes and kinds of matrix instructions of a compiled kernel, from the bundled CUDA tools."""
    with tempfile.TemporaryDirectory() as directory:
        ptx, cubin = Path(directory) / "kernel.ptx", Path(directory) / "kernel.cubin"
        ptx.write_text(compiled.asm["ptx"])
        ptxas = get_ptxas(architecture).path
        options = [] if compiled.metadata.enable_fp_fusion else ["--fmad=false"]
        # the options that Triton itself gives, so that this is the code that would run
        command = [ptxas, "-lineinfo", *options, "-v", "--regAllocOptLevel=2"]
        command += [f"--gpu-name={sm_arch_from_capability(architecture)}", str(ptx), "-o", str(cubin)]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
        # without its line numbers' files a listing of the instructions is enough
        sass = subprocess.run(
            [str(tools / "cuobjdump"), "-sass", str(cubin)], check=True, capture_output=True, text=True
        )
    spills, registers = SPILLS.search(log), REGISTERS.search(log)
    if spills is None or registers is None:
        raise RuntimeError(f"ptxas says nothing of registers and spills: {log}")
    kinds = [kind for kind in ("HGMMA", "HMMA") if re.search(rf"\b{kind}\b", sass.stdout)]
    return int(registers[1]), int(spills[2]) + int(spills[3]), "+".join(kinds) or "none"


def compile_all(architecture: int, only: str | None) -> tuple[list[Compiled], list[str]]:
    """Compiles the table of one architecture: the results, and what is missing."""
    table = dispatch.TABLE[architecture] | attention_dispatch.TABLE[architecture]
    kernels = find_kernels()
    names = [only] if only else sorted(kernels.keys() | table.keys() | SAMPLE_CALLS.keys())
    missing = [
        f"sm_{architecture}: {name} is not {where}"
        for name in names
        for where, known in (("a kernel", kernels), ("in the table", table), ("called by the gate", SAMPLE_CALLS))
        if name not in known
    ]
    results: dict[tuple[str, Configuration | AttentionConfiguration, str], Compiled] = {}
    for name in names:
        entries = table.get(name, {})
        for configuration in entries.get(DTYPE, entries.get(torch.int32, ())) if name in SAMPLE_CALLS else ():
            with compiling(architecture) as launches:
                SAMPLE_CALLS[name](configuration)
            reached = False
            for kernel, keywords, compiled in launches:
                if kernel.__name__ != name or not configuration.constants.items() <= keywords.items():
                    continue
                reached = True
                variant = _variant(keywords.keys() - configuration.constants.keys(), keywords)
                if (name, configuration, variant) not in results:
                    registers, spilled, kinds = measure(compiled, architecture)
                    results[name, configuration, variant] = Compiled(
                        architecture, name, configuration, variant, registers, spilled, compiled.metadata.shared, kinds
                    )
            if not reached:
                missing.append(f"sm_{architecture}: no call reaches {name} with {configuration}")
    return list(results.values()), missing


def _variant(names: Set[str], keywords: dict[str, Any]) -> str:
    hidden = {"enable_fp_fusion", "BLOCKS"}
    return " ".join(
        key if value is True else f"{key}={value}"
        for key, value in keywords.items()
        if key in names - hidden and value is not False
    )


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; 0 where every kernel holds, else 1."""
    parser = argparse.ArgumentParser(prog="vikhr_kernels.aot", description="The static gate of the Triton kernels.")
    parser.add_argument("--architecture", type=int, choices=sorted(dispatch.TABLE), help="only this one")
    parser.add_argument("--kernel", choices=sorted(SAMPLE_CALLS), help="only this one")
    options = parser.parse_args(arguments)
    if dispatch.INTERPRETED:
        parser.error("TRITON_INTERPRET is set: the interpreter and the compiler cannot share a process")
    chosen = [options.architecture] if options.architecture else sorted(dispatch.TABLE)
    results, missing = [], []
    for architecture in chosen:
        more, gaps = compile_all(architecture, options.kernel)
        results += more
        missing += gaps
    table = Table("", "kernel", "tile", "warps", "variant", "regs", "spills", "shared", "matrix", title=str(DTYPE))
    for one in results:
        shape = (one.configuration.tile, str(one.configuration.num_warps), one.variant)
        found = (str(one.registers), str(one.spilled), str(one.shared), one.matrix_instructions)
        table.add_row(f"sm_{one.architecture}", one.kernel, *shape, *found, style="red" if one.wrong else "")
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    for one in results:
        if one.wrong:
            print(f"sm_{one.architecture}: {one.kernel} {one.configuration} {one.variant}: {one.wrong}")
    for gap in missing:
        print(gap)
    return int(bool(missing) or any(one.wrong for one in results))


if __name__ == "__main__":
    sys.exit(main())
