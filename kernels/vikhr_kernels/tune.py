"""Measures the tiles of flash attention on the GPU at hand and keeps the fastest for it.

    python -m vikhr_kernels.tune [--head-size 128] [--dtype bfloat16] [--tokens 16384] [--length 4096]

Every candidate must give what the checked-in configuration gives, to rounding; those that don't compile or need more
shared memory than there is are passed over. The result goes to the user's cache, from where every later run of the
kernels on such a GPU takes it; deleting the file named at the end goes back to the table.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vikhr_kernels import attention_dispatch, dispatch, flash_attention
from vikhr_kernels.attention_dispatch import HEAD_SIZES, KERNELS, AttentionConfiguration

Measure = Callable[[str, AttentionConfiguration], float]  # milliseconds; RuntimeError where it cannot run


def candidates(kernel: str, dtype: torch.dtype, architecture: int, head_size: int) -> list[AttentionConfiguration]:
    """The table's configuration, then every other that is worth a try."""
    first = attention_dispatch.from_table(kernel, dtype, architecture, head_size)
    others = (
        AttentionConfiguration(head_size, queries, keys, num_warps, num_stages, first.descriptors, first.parts)
        for queries, keys, num_warps, num_stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))
    )
    return [first, *(other for other in others if other != first)]


def fastest(kernel: str, choices: list[AttentionConfiguration], measure: Measure) -> tuple[AttentionConfiguration, str]:
    """The fastest of the choices, and a line on it; the first must run."""
    times = {choices[0]: measure(kernel, choices[0])}
    for choice in track(choices[1:], description=kernel, transient=True):
        try:
            times[choice] = measure(kernel, choice)
        except RuntimeError:  # of PyTorch, and Triton's of compilation and resources
            continue
    best = min(times, key=lambda choice: times[choice])
    was = times[choices[0]]
    return best, f"{kernel}: {best.tile}, {best.num_warps} warps: {times[best]:.3f} ms, as checked in {was:.3f} ms"


def measure_on_gpu(dtype: torch.dtype, head_size: int, tokens: int, length: int) -> Measure:
    """Times causal attention over documents of one length, 32 query and 8 key/value heads."""
    from triton import testing
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    shapes = [(tokens // length, length, heads, head_size) for heads in (32, 8, 8)]
    q, k, v = (torch.randn(shape, device="cuda", dtype=dtype).requires_grad_() for shape in shapes)
    upstream = torch.randn_like(q)

    def run(backward: bool) -> tuple[Tensor, ...]:
        if backward:
            return torch.autograd.grad(output, (q, k, v), upstream, retain_graph=True)
        with torch.no_grad():
            return (flash_attention(q, k, v),)

    output = flash_attention(q, k, v)
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
    parser.add_argument("--length", type=int, default=4096, help="of a document, which divides the tokens")
    options = parser.parse_args(arguments)
    if options.length < 1 or options.tokens < 1 or options.tokens % options.length:
        parser.error(f"--length {options.length} doesn't divide --tokens {options.tokens}")
    if not torch.cuda.is_available():
        parser.error("no CUDA device here: there is nothing to measure on")
    dtype: torch.dtype = getattr(torch, options.dtype)
    device = torch.device("cuda", torch.cuda.current_device())
    gpu = torch.cuda.get_device_name(device)
    measure = measure_on_gpu(dtype, options.head_size, options.tokens, options.length)
    return tune(gpu, dispatch.architecture_of(device), dtype, options.head_size, measure, Console())


def tune(gpu: str, architecture: int, dtype: torch.dtype, head_size: int, measure: Measure, console: Any) -> int:
    """Chooses a configuration for every kernel and keeps it with those that were tuned before."""
    tuned = attention_dispatch.read_tuned(gpu)
    for kernel in KERNELS:
        chosen, line = fastest(kernel, candidates(kernel, dtype, architecture, head_size), measure)
        tuned[kernel, str(dtype), head_size] = chosen
        console.print(line)
        file = attention_dispatch.write_tuned(gpu, tuned)  # after every kernel: an interrupted run keeps what it has
    console.print(f"kept in {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
