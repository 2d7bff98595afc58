"""Measures the tiles of flash attention on the GPU at hand and keeps the fastest for it.

    python -m vikhr_kernels.tune [--head-size 128] [--dtype bfloat16] [--tokens 16384] [--lengths 1024 8192]

For short and for long documents each kernel is measured with the checked-in configuration and the five others that
promise most by the machine code of their loops. Each must give what the checked-in configuration gives, to rounding.
The result goes to the user's cache, from where every later run of the kernels on such a GPU takes it; deleting the file
named at the end goes back to the table.
"""

import argparse
import contextlib
import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vikhr_kernels import PackedDocuments, aot, attention_dispatch, dispatch, flash_attention
from vikhr_kernels.attention_dispatch import (
    HEAD_SIZES,
    KERNELS,
    LENGTHS,
    AttentionConfiguration,
    Length,
    length_of,
    seen_pairs,
)

Measure = Callable[[str, AttentionConfiguration], float]  # milliseconds; RuntimeError where it cannot run
Compile = Callable[[str, AttentionConfiguration], aot.Compiled]
MOST = 6  # candidates of a kernel and length, the checked-in one included
ROWS_A_WARP = 16  # at least, of a product of matrices
MOST_LOCAL_BYTES = 128  # of a thread and a tile; once 116 were the fastest
MOST_SUMS = 192  # float32 a thread, of its 255 registers
# Sums that a kernel keeps: [rows, D] from step to step, and [rows, columns] within one.
SUMS = dict(zip(KERNELS, ((1, 1), (1, 2), (2, 2)), strict=True))


def neighbours(kernel: str, like: AttentionConfiguration) -> list[AttentionConfiguration]:
    """Every configuration that might be worth a try, loaded as `like` is; in halves, too, where that saves anything."""
    halves = (1, 2) if like.head_size == 128 and not like.descriptors else (1,)
    kept, passing = SUMS[kernel]
    made = []
    for rows, columns, num_warps, num_stages, parts in itertools.product(
        (64, 128), (32, 64, 128), (4, 8), (2, 3), halves
    ):
        sums = rows * (kept * like.head_size + passing * columns) // (32 * num_warps)
        if rows >= ROWS_A_WARP * num_warps and sums <= MOST_SUMS:
            # a row is a key where it is the keys whose gradients are made, else a query
            tile = (columns, rows) if kernel == "flash_attention_key_gradient_kernel" else (rows, columns)
            made.append(AttentionConfiguration(like.head_size, *tile, num_warps, num_stages, like.descriptors, parts))
    return made


def promised(compiled: aot.Compiled, length: Length) -> float:
    """Cycles of a multiprocessor for a pair of a query and a key.

    Groups of four warps, of one program or of several, overlap with each other and wait within: what they take is the
    sum of all pipes' cycles over the number of groups, and no less than the busiest pipe's.
    """
    configuration = compiled.configuration
    assert isinstance(configuration, AttentionConfiguration)
    masked, unmasked = (loop.pipes(configuration.num_warps) for loop in compiled.loops)
    # of a long document hardly any tile has a mask, of one of 400 tokens most have
    pipes = [(m + u) / 2 for m, u in zip(masked, unmasked, strict=True)] if length == "short" else unmasked
    groups = compiled.resident_programs * configuration.num_warps / 4
    return max(*pipes, sum(pipes) / groups) / (configuration.queries * configuration.keys)


def worth_measuring(compiled: aot.Compiled) -> bool:
    """Whether it fits the chip, has the loops it should have, and spills little in them."""
    return (
        compiled.fits
        and len(compiled.loops) == len(aot.LOOPS)
        and all(loop.local_bytes <= MOST_LOCAL_BYTES for loop in compiled.loops)
    )


def candidates(
    first: AttentionConfiguration, compiled: list[aot.Compiled], length: Length
) -> list[AttentionConfiguration]:
    """The checked-in configuration, then those others that promise most."""
    by_promise = sorted(compiled, key=lambda one: promised(one, length))
    others = [one.configuration for one in by_promise if one.configuration != first]
    return [first, *cast(list[AttentionConfiguration], others)[: MOST - 1]]


def fastest(
    kernel: str, choices: list[AttentionConfiguration], measure: Measure
) -> tuple[AttentionConfiguration, list[str]]:
    """The fastest of the choices, and lines on it and on those that failed; the first must run."""
    times, lines = {choices[0]: measure(kernel, choices[0])}, []
    for choice in choices[1:]:
        try:
            times[choice] = measure(kernel, choice)
        except RuntimeError as error:  # of PyTorch, and Triton's of compilation and resources
            lines.append(f"{kernel}: {_words(choice)} is passed over: {error}")
    best, was = min(times, key=lambda choice: times[choice]), times[choices[0]]
    of = f"the fastest of {len(times)}"
    lines.append(f"{kernel}: {_words(best)}, {of}: {times[best]:.3f} ms, as checked in {was:.3f} ms")
    return best, lines


def _words(configuration: AttentionConfiguration) -> str:
    return f"{configuration.tile}, {configuration.num_warps} warps"


def measure_on_gpu(dtype: torch.dtype, head_size: int, tokens: int, length: int) -> Measure:
    """Times causal attention over documents of one length, 32 query and 8 key/value heads."""
    from triton import testing
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    shapes = [(tokens, heads, head_size) for heads in (32, 8, 8)]
    q, k, v = (torch.randn(shape, device="cuda", dtype=dtype).requires_grad_() for shape in shapes)
    bounds = torch.arange(0, tokens + 1, length, dtype=torch.int32, device="cuda")
    documents = PackedDocuments.of(bounds, tokens, length=length_of(seen_pairs(length) / length))
    upstream = torch.randn_like(q)

    def run(backward: bool) -> tuple[Tensor, ...]:
        if backward:
            return torch.autograd.grad(output, (q, k, v), upstream, retain_graph=True)
        with torch.no_grad():
            return (flash_attention(q, k, v, documents=documents),)

    output = flash_attention(q, k, v, documents=documents)
    expected = {backward: run(backward) for backward in (False, True)}

    def measure(kernel: str, choice: AttentionConfiguration) -> float:
        backward = "gradient" in kernel
        with attention_dispatch.forcing(kernel, choice):
            try:
                results = run(backward)
            except (CompilationError, OutOfResources, PTXASError) as error:
                raise RuntimeError(str(error)) from error
            for result, wanted in zip(results, expected[backward], strict=True):
                if not torch.allclose(result, wanted, rtol=0.05, atol=float(wanted.abs().max()) * 0.02):
                    raise RuntimeError(f"{kernel}: {choice.tile} gives another result")
            return float(testing.do_bench(lambda: run(backward), return_mode="median"))

    return measure


def main(arguments: list[str] | None = None) -> int:
    """Tunes and prints what was chosen; exit code 2 where there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="vikhr_kernels.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--head-size", type=int, choices=HEAD_SIZES, default=128)
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--tokens", type=int, default=16384, help="of a batch")
    parser.add_argument(
        "--lengths", type=int, nargs=2, default=(1024, 8192), metavar=("SHORT", "LONG"),
        help="of documents, which divide the tokens",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    for length, tokens in zip(LENGTHS, options.lengths, strict=True):
        if tokens < 1 or options.tokens < 1 or options.tokens % tokens:
            parser.error(f"--lengths: {tokens} doesn't divide --tokens {options.tokens}")
        if length_of(seen_pairs(tokens) / tokens) != length:
            parser.error(f"--lengths: documents of {tokens} tokens aren't {length}")
    if dispatch.INTERPRETED:
        parser.error("TRITON_INTERPRET is set: the interpreter and the compiler cannot share a process")
    if not torch.cuda.is_available():
        parser.error("no CUDA device here: there is nothing to measure on")
    dtype: torch.dtype = getattr(torch, options.dtype)
    device = torch.device("cuda", torch.cuda.current_device())
    gpu = torch.cuda.get_device_name(device)
    architecture = dispatch.architecture_of(device)
    measures = {
        length: measure_on_gpu(dtype, options.head_size, options.tokens, tokens)
        for length, tokens in zip(LENGTHS, options.lengths, strict=True)
    }
    return tune(gpu, architecture, dtype, options.head_size, compile_for(architecture), measures, Console(markup=False))


def compile_for(architecture: int) -> Compile:
    """Compiles one kernel with one configuration, without running it."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import PTXASError

    def compile_one(kernel: str, configuration: AttentionConfiguration) -> aot.Compiled:
        try:
            with attention_dispatch.forcing(kernel, configuration):
                (compiled,) = aot.compile_one(architecture, kernel, configuration)
        except (CompilationError, PTXASError, subprocess.CalledProcessError) as error:
            raise RuntimeError(str(error)) from error
        return compiled

    return compile_one


def tune(
    gpu: str,
    architecture: int,
    dtype: torch.dtype,
    head_size: int,
    compile_one: Compile,
    measures: dict[Length, Measure],
    console: Any,
) -> int:
    """Chooses a configuration for every kernel and length and keeps it with those that were tuned before."""
    tuned = attention_dispatch.read_tuned(gpu, architecture)
    for kernel in KERNELS:
        entries = attention_dispatch.TABLE[architecture][kernel][dtype]
        tried, compiled = neighbours(kernel, entries[head_size, "long"]), []
        for one in track(tried, description=f"compiling {kernel}", transient=True):
            with contextlib.suppress(RuntimeError):  # counted below
                compiled.append(compile_one(kernel, one))
        worthy = [one for one in compiled if worth_measuring(one)]
        console.print(f"{kernel}: {len(worthy)} of {len(tried)} configurations compile, fit and spill little")
        for length, measure in measures.items():
            chosen, lines = fastest(kernel, candidates(entries[head_size, length], worthy, length), measure)
            tuned[kernel, str(dtype), head_size, length] = chosen
            for line in lines:
                console.print(f"{length} documents: {line}")
            file = attention_dispatch.write_tuned(
                gpu, architecture, tuned
            )  # at once: an interrupted run keeps what it has
    console.print(f"kept in {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
