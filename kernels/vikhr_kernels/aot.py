"""The static gate: compiles every kernel and configuration of the dispatch table without a GPU.

    python -m vikhr_kernels.aot [--architecture 90] [--kernel NAME] [--record]

The launchers run as they do in training, on tensors as aligned as a GPU's, up to the launch itself: what is compiled
has the very signature of a real call, divisibility by 16 included. A table entry that no launch reaches, a kernel
that the table doesn't know, too much shared memory or a spilled register is a failure (exit code 1).

Attention is judged by its two loops over tiles, with a mask and without, instead: registers may spill outside of them.
A loop may wait for spilled registers and for shared memory within limits, and cost no more than is recorded for this
release of Triton in loop_costs.json, to 3%. `--record` writes what is found there; what a GPU measured overrules it.
"""

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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
from vikhr_kernels import attention_dispatch, dispatch, packed_documents
from vikhr_kernels.attention_dispatch import AttentionConfiguration
from vikhr_kernels.buckets import Buckets
from vikhr_kernels.dispatch import Configuration
from vikhr_kernels.gpu import (
    adamw,
    flash_attention,
    flash_attention_backward,
    loss_rows,
    pool_rows,
    rms_norm,
    rope,
    scale,
    swiglu,
)
from vikhr_kernels.machine_code import LoopCost, product_loops

DTYPE = torch.bfloat16
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")

LOOPS = ("masked", "unmasked")  # of an attention kernel; the mask makes the first one longer
PRODUCTS = dict(zip(attention_dispatch.KERNELS, (2, 3, 4), strict=True))  # of tiles, that a step makes
RECORD = Path(__file__).with_name("loop_costs.json")
TOLERANCE = 1.03
MOST_LOCAL_BYTES = 64  # of a thread and a tile
MOST_SHARED_A_TENSOR_CYCLE = 1.4


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
        support, buckets = torch.ones(vocabulary, dtype=torch.bool), Buckets.of(*_buckets(vocabulary))
        for with_reference, kept, both, forward in (
            (False, None, None, False),
            (True, None, None, False),
            (True, support, None, False),
            (True, None, buckets, False),
            (True, None, None, True),
            (True, support, None, True),
            (True, None, buckets, True),
        ):
            for gradient_dtype in (None, DTYPE):
                logits = _rows(vocabulary, 16, torch.float32)
                each = torch.ones(16)
                loss_rows.loss_rows(
                    logits, logits if with_reference else None, torch.zeros(16, dtype=torch.int64), each, each, each,
                    kept, both, forward, each, each, each, gradient_dtype,
                )  # fmt: skip


def _call_pool_rows(configuration: Configuration) -> None:
    vocabulary = max(configuration.block, 40000)
    pool_rows.pool_rows(_rows(vocabulary, 16, torch.float32), Buckets.of(*_buckets(vocabulary)).own)


def _buckets(vocabulary: int) -> tuple[Tensor, Tensor]:
    """Of equal vocabularies, four pieces in each."""
    bucket = torch.arange(vocabulary) // 4
    return bucket, bucket


def _call_flash_attention(configuration: AttentionConfiguration) -> None:
    tokens, size = 256, configuration.head_size
    q, k, v = torch.ones(tokens, 48, size, dtype=DTYPE).split((32, 8, 8), 1)
    first = torch.zeros(tokens, dtype=torch.int32)
    order = torch.zeros(tokens // packed_documents.BLOCK, dtype=torch.int32)
    for length in attention_dispatch.LENGTHS:
        out, lse = flash_attention.forward(q, k, v, first, length, 1.0)
        flash_attention_backward.backward(out, q, k, v, out, lse, first, first, order, length, 1.0)


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
    "pool_rows_kernel": _call_pool_rows,
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
    loops: tuple[LoopCost, ...]  # those with matrix products, which only attention has

    @property
    def name(self) -> str:
        """What its loops are recorded under."""
        tile, warps = self.configuration.tile, self.configuration.num_warps
        return f"sm_{self.architecture} {self.kernel} {self.variant} {tile}, {warps} warps"

    @property
    def fits(self) -> bool:
        """Whether the chip has as much shared memory."""
        return self.shared <= dispatch.ARCHITECTURES[self.architecture].shared_memory

    @property
    def resident_programs(self) -> int:
        """Programs that a multiprocessor holds at once, by registers and shared memory; each takes 1 KiB more of it."""
        threads = 32 * self.configuration.num_warps
        shared = dispatch.ARCHITECTURES[self.architecture].shared_memory + 1024
        return max(1, min(65536 // (self.registers * threads), shared // (self.shared + 1024)))

    def wrong(self, recorded: dict[str, Any] | None) -> str:
        """What is wrong with it, given the costs recorded for this release of Triton; empty where nothing is."""
        if not self.fits:
            limit = dispatch.ARCHITECTURES[self.architecture].shared_memory
            return f"{self.shared} bytes of shared memory, over {limit}"
        if self.kernel not in PRODUCTS:
            return f"{self.spilled} bytes spilled" if self.spilled else ""
        if len(self.loops) != len(LOOPS):
            return f"{len(self.loops)} loops with matrix products, not {len(LOOPS)}"
        before = None if recorded is None else recorded.get(self.name)
        complaints = [self._wrong_loop(name, cost, before) for name, cost in zip(LOOPS, self.loops, strict=True)]
        if not any(complaints) and recorded is not None and before is None:
            return "no cost is recorded for it"
        return "; ".join(filter(None, complaints))

    def _wrong_loop(self, name: str, cost: LoopCost, before: dict[str, Any] | None) -> str:
        matrix = "HGMMA" if self.architecture >= 90 else "HMMA"
        if cost.matrix_instruction != matrix:
            return f"{name} loop: matrix instructions are {cost.matrix_instruction}, not {matrix}"
        if cost.local_bytes > MOST_LOCAL_BYTES:
            return f"{name} loop: {cost.local_bytes:.0f} bytes of spilled registers a tile, over {MOST_LOCAL_BYTES}"
        if (shared := cost.shared_a_tensor_cycle) > MOST_SHARED_A_TENSOR_CYCLE:
            limit = MOST_SHARED_A_TENSOR_CYCLE
            return f"{name} loop: {shared:.2f} cycles of shared memory a tensor cycle, over {limit}"
        if before is None:
            return ""
        more = [
            f"{value:.0f} {what.replace('_', ' ')}, recorded {before[name][what]:.0f}"
            for what, value in asdict(cost).items()
            if isinstance(value, float) and value > TOLERANCE * before[name][what]
        ]
        return f"{name} loop: {', '.join(more)}" if more else ""


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
    """Registers, spilled bytes and machine code of a compiled kernel, from the bundled CUDA tools."""
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
    return int(registers[1]), int(spills[2]) + int(spills[3]), sass.stdout


def _loops(
    kernel: str, configuration: Configuration | AttentionConfiguration, listing: str, architecture: int
) -> tuple[LoopCost, ...]:
    if not isinstance(configuration, AttentionConfiguration):
        return ()
    tile = configuration.queries * configuration.keys * configuration.head_size
    return tuple(product_loops(listing, architecture, configuration.num_warps, PRODUCTS[kernel] * tile))


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
    results: list[Compiled] = []
    for name in names:
        for configuration in _configurations(architecture, name) if name in SAMPLE_CALLS else ():
            compiled = compile_one(architecture, name, configuration)
            results += compiled
            if not compiled:
                missing.append(f"sm_{architecture}: no call reaches {name} with {configuration}")
    return results, missing


def _configurations(architecture: int, name: str) -> list[Configuration | AttentionConfiguration]:
    """The table's for DTYPE, each once."""
    if name in attention_dispatch.TABLE[architecture]:
        return list(dict.fromkeys(attention_dispatch.TABLE[architecture][name][DTYPE].values()))
    return list(dispatch.TABLE[architecture].get(name, {}).get(DTYPE, ()))


def compile_one(architecture: int, name: str, configuration: Configuration | AttentionConfiguration) -> list[Compiled]:
    """What the sample calls make of a kernel with this configuration, one a signature; none if they take others."""
    with compiling(architecture) as launches:
        SAMPLE_CALLS[name](configuration)
    results: dict[str, Compiled] = {}
    for kernel, keywords, compiled in launches:
        variant = _variant(keywords.keys() - configuration.constants.keys(), keywords)
        if kernel.__name__ != name or not configuration.constants.items() <= keywords.items() or variant in results:
            continue
        registers, spilled, listing = measure(compiled, architecture)
        loops = _loops(name, configuration, listing, architecture)
        results[variant] = Compiled(
            architecture, name, configuration, variant, registers, spilled, compiled.metadata.shared, loops
        )
    return list(results.values())


def _variant(names: Set[str], keywords: dict[str, Any]) -> str:
    hidden = {"enable_fp_fusion", "BLOCKS", "TILES"}
    return " ".join(
        key if value is True else f"{key}={value}"
        for key, value in keywords.items()
        if key in names - hidden and value is not False
    )


def read_record() -> dict[str, Any] | None:
    """Costs of loops by `Compiled.name` and loop, for this release of Triton; None where nobody recorded any.

    Raises:
        ValueError: the record is missing or damaged; it is named.
    """
    return _all_records().get(triton.__version__)


def _all_records() -> dict[str, dict[str, Any]]:
    try:
        records: dict[str, dict[str, Any]] = json.loads(RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{RECORD}: {error}; fetch it again") from None
    return records


def write_record(results: list[Compiled]) -> None:
    """Records the costs for this release of Triton, in place of those of before; written beside and renamed."""
    records = _all_records()
    records[triton.__version__] = {
        one.name: {loop: asdict(cost) for loop, cost in zip(LOOPS, one.loops, strict=True)}
        for one in results
        if one.loops
    }
    beside = RECORD.with_suffix(".beside")
    beside.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    beside.replace(RECORD)


def _costs(loops: tuple[LoopCost, ...]) -> str:
    return " | ".join(
        f"{loop.instructions:.0f} {loop.local_bytes:.0f} {loop.shared_cycles:.0f}/{loop.tensor_cycles:.0f}"
        for loop in loops
    )


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; 0 where every kernel holds, else 1."""
    parser = argparse.ArgumentParser(prog="vikhr_kernels.aot", description="The static gate of the Triton kernels.")
    parser.add_argument("--architecture", type=int, choices=sorted(dispatch.TABLE), help="only this one")
    parser.add_argument("--kernel", choices=sorted(SAMPLE_CALLS), help="only this one")
    parser.add_argument("--record", action="store_true", help="write loop_costs.json instead of judging by it")
    options = parser.parse_args(arguments)
    if dispatch.INTERPRETED:
        parser.error("TRITON_INTERPRET is set: the interpreter and the compiler cannot share a process")
    if "TRITON_OVERRIDE_ARCH" in os.environ:
        parser.error("TRITON_OVERRIDE_ARCH is set: everything would be compiled for it alone")
    if options.record and (options.architecture or options.kernel):
        parser.error("--record is for all kernels and architectures at once")
    try:
        recorded = None if options.record else read_record()
    except ValueError as error:
        parser.error(str(error))
    chosen = [options.architecture] if options.architecture else sorted(dispatch.TABLE)
    results, missing = [], []
    for architecture in chosen:
        more, gaps = compile_all(architecture, options.kernel)
        results += more
        missing += gaps
    verdicts = [one.wrong(recorded) for one in results]
    table = Table("", "kernel", "tile", "warps", "variant", "regs", "spills", "shared", "loops", title=str(DTYPE))
    for one, wrong in zip(results, verdicts, strict=True):
        shape = (one.configuration.tile, str(one.configuration.num_warps), one.variant)
        found = (str(one.registers), str(one.spilled), str(one.shared), _costs(one.loops))
        table.add_row(f"sm_{one.architecture}", one.kernel, *shape, *found, style="red" if wrong else "")
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    print("loops, masked | unmasked: instructions, bytes of spills, cycles of shared memory / of tensor cores")
    failures = [f"{one.name}: {wrong}" for one, wrong in zip(results, verdicts, strict=True) if wrong] + missing
    for failure in failures:
        print(failure)
    if recorded is None and not options.record:
        print(f"no costs are recorded for Triton {triton.__version__}: its loops are held to the fixed limits alone")
    if options.record and not failures:
        write_record(results)
        print(f"recorded in {RECORD}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
