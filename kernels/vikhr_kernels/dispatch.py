"""Where operations run, and which block size and how many warps each Triton kernel has, by architecture and dtype.

The table is the only list of what is compiled: launchers ask `choose`, and the static gate (`aot`) enumerates it.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton decides when a kernel is decorated, so once


@dataclass(frozen=True)
class Architecture:
    """What a kernel's launch depends on, of the chip that an architecture is tuned for."""

    chip: str
    multiprocessors: int  # a constant, not a query: sums split over programs are then equal on every such GPU
    shared_memory: int  # bytes a program may have


@dataclass(frozen=True)
class Configuration:
    """How one kernel is launched.

    Attributes:
        block: elements of a row, or of a flat tensor, that a program holds at once.
        num_warps: warps of a program.
        programs: programs a multiprocessor, for kernels whose programs walk over many rows.
    """

    block: int
    num_warps: int
    programs: int = 1

    @property
    def tile(self) -> str:
        """What a program holds at once, in words."""
        return str(self.block)

    @property
    def constants(self) -> dict[str, Any]:
        """What this decides of a launch's keyword arguments."""
        return {"BLOCK": self.block, "num_warps": self.num_warps}


ARCHITECTURES = {
    80: Architecture("A100", multiprocessors=108, shared_memory=163 * 1024),
    90: Architecture("H100, H200", multiprocessors=132, shared_memory=227 * 1024),
}

Entries = tuple[Configuration, ...]  # by increasing block; the first that holds a whole row is taken
Table = dict[str, dict[torch.dtype, Entries]]


def _for_all_dtypes(entries: Entries) -> dict[torch.dtype, Entries]:
    return dict.fromkeys((torch.bfloat16, torch.float16, torch.float32), entries)


def _table(*, loss_rows: Entries, pool_rows: Configuration, walk_over_4096: Configuration) -> Table:
    # rope: a thread an angle. With more threads Triton has each of them make eight, in seven times the instructions.
    rows = (Configuration(1024, 2), Configuration(2048, 4), Configuration(4096, 8), Configuration(8192, 16))
    walks = (
        Configuration(1024, 4, programs=4),
        Configuration(2048, 8, programs=4),
        walk_over_4096,
        Configuration(8192, 32, programs=1),
    )
    return {
        "rms_norm_forward_kernel": _for_all_dtypes(rows),
        "rms_norm_backward_kernel": _for_all_dtypes(walks),
        "rms_norm_weight_gradient_kernel": _for_all_dtypes((Configuration(32, 4),)),
        "rope_kernel": _for_all_dtypes((Configuration(32, 1), Configuration(64, 2), Configuration(128, 4))),
        "swiglu_forward_kernel": _for_all_dtypes((Configuration(2048, 8),)),
        "swiglu_backward_kernel": _for_all_dtypes((Configuration(2048, 8),)),
        "scale_kernel": _for_all_dtypes((Configuration(2048, 8),)),
        "adamw_kernel": _for_all_dtypes((Configuration(512, 4),)),
        "loss_rows_kernel": _for_all_dtypes(loss_rows),
        "pool_rows_kernel": _for_all_dtypes((pool_rows,)),
    }


# Two softmaxes and a support keep nine values an element in registers: more than 4 elements a thread spill. ptxas also
# spills a few bytes to fit one more program, on sm_80 with 4096 and 32 warps, and in the walk with 16.
# Pieces of a bucket lie far apart: to gather them reads a row 8 times, unless a cache holds all rows in flight. The L2
# cache of an A100 does with 2048 and 8 warps; on an H100 one warp's scan, of fewer instructions, should cost less.
TABLE: dict[int, Table] = {
    80: _table(
        loss_rows=(Configuration(1024, 8), Configuration(2048, 16)),
        pool_rows=Configuration(2048, 8),
        walk_over_4096=Configuration(4096, 8, programs=2),
    ),
    # One program fills a multiprocessor: few rows are in flight, and the second pass finds them in the L2 cache.
    90: _table(
        loss_rows=(Configuration(1024, 8), Configuration(4096, 32)),
        pool_rows=Configuration(512, 1),
        walk_over_4096=Configuration(4096, 16, programs=2),
    ),
}

_compiled_for = max(ARCHITECTURES)  # what tensors without a GPU stand for: the interpreter's, and the static gate's


@contextlib.contextmanager
def compiling_for(architecture: int) -> Iterator[None]:
    """Lets launches on tensors without a GPU choose as on `architecture`."""
    global _compiled_for
    previous, _compiled_for = _compiled_for, architecture
    try:
        yield
    finally:
        _compiled_for = previous


@functools.cache
def _gpu_architecture(device: torch.device) -> int:
    if override := os.environ.get("TRITON_OVERRIDE_ARCH"):  # what Triton then compiles for, as in sm80
        capability = int(override.removeprefix("sm"))
    else:
        major, minor = torch.cuda.get_device_capability(device)
        capability = 10 * major + minor
    known = [architecture for architecture in TABLE if architecture <= capability]
    if not known:
        least = min(TABLE) / 10
        raise ValueError(f"the kernels need compute capability {least} or more, {device} has {capability / 10}")
    return max(known)


def architecture_of(device: torch.device) -> int:
    """The table's architecture for a device: its own or the nearest older one."""
    return _gpu_architecture(device) if device.type == "cuda" else _compiled_for


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of the chip that the device's architecture is tuned for."""
    return ARCHITECTURES[architecture_of(device)].multiprocessors


def choose(kernel: str, dtype: torch.dtype, device: torch.device, width: int, *, loops: bool = False) -> Configuration:
    """The configuration that `kernel` runs with.

    Args:
        kernel: its name.
        dtype: of its main input.
        device: where it runs.
        width: elements of a row.
        loops: the kernel walks over a row in blocks, so any width will do.

    Raises:
        ValueError: no configuration holds a row of this width.
    """
    entries = TABLE[architecture_of(device)][kernel][dtype]
    for configuration in entries:
        if configuration.block >= width:
            return configuration
    if not loops:
        raise ValueError(f"{kernel}: rows of {width} elements are wider than the largest block, {entries[-1].block}")
    return entries[-1]


def custom_op(name: str, mutates_args: Iterable[str] = ()) -> Callable[[Callable[..., object]], CustomOpDef]:
    """`torch.library.custom_op` that autocast doesn't reach into.

    Autocast would change the dtypes of products inside, and of results: fake kernels and gradients know nothing of it.
    """

    def register(function: Callable[..., object]) -> CustomOpDef:
        @functools.wraps(function)
        def run(*arguments: Any, **keywords: Any) -> object:
            with torch._C._DisableAutocast():  # on every device, in a fraction of the time that torch.autocast takes
                return function(*arguments, **keywords)

        return torch.library.custom_op(name, run, mutates_args=mutates_args)

    return register


_allowed = True


def allow_triton(allowed: bool) -> None:
    """Whether kernels may run at all in this process; where not, every operation is eager on a GPU too."""
    global _allowed
    _allowed = allowed


def is_for_triton(tensor: Tensor) -> bool:
    """Whether an operation on such a tensor, which may be fake, is a kernel's; the eager reference does the rest."""
    on_gpu = tensor.is_cuda or INTERPRETED
    return _allowed and on_gpu and tensor.dtype in (torch.bfloat16, torch.float16, torch.float32)


def runs_on_triton(tensor: Tensor) -> bool:
    """Whether an operation on this tensor is a kernel's; the eager reference does the rest (CPU, float64).

    Raises:
        ValueError: the tensor is on another GPU than the current one, where Triton would launch the kernel.
    """
    runs = is_for_triton(tensor)
    if runs and tensor.is_cuda and tensor.device.index != (current := torch.cuda.current_device()):
        raise ValueError(f"a kernel's tensors are on {tensor.device}, the current device is cuda:{current}: set_device")
    return runs
