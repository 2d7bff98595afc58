"""Whether this machine has what vikhr_fast needs."""

import platform
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

from vikhr_fast.doctor.findings import Finding, checked
from vikhr_fast.errors import InputError

_FREE_BYTES = 20 * 10**9


def machine_findings(path: Path) -> Iterator[Finding]:
    """Of Python, compiler, extension, PyTorch, Triton, GPUs, and the disk of a path."""
    yield checked("Python", _python)
    yield checked("compiler", _compiler)
    yield checked("extension", _extension)
    yield checked("PyTorch", _torch)
    yield checked("Triton", _triton)
    yield checked("GPU", _gpu)
    yield checked("disk", partial(_disk, path))


def _python() -> str:
    version = platform.python_version()
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        raise InputError(f"{version}: 3.10 to 3.13 is supported; make a new environment with one of them")
    return f"{version}, {sys.executable}"


def _compiler() -> str:
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return path
    raise InputError("no C++ compiler; install g++ or clang++ (Debian: apt install g++)")


def _extension() -> str:
    try:
        from vikhr_fast import _native
    except ImportError as error:
        raise InputError(f"vikhr_fast._native doesn't load ({error}); run pip install -e . again") from None
    return f"{Path(_native.__file__).name}, CPU has {', '.join(_native.cpu_features()) or 'no SIMD we use'}"


def _torch() -> str:
    return f"{torch.__version__}, {torch.get_num_threads()} CPU threads"


def _triton() -> str:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        wanted = "pip install 'triton>=3.6' (other systems run on a CPU only)"
        raise InputError(f"not installed; on Linux: {wanted}") from None


def _gpu() -> str:
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    for gpu in gpus:
        if (gpu.major, gpu.minor) < (8, 0):
            raise InputError(f"{gpu.name}: compute capability 8.0 (A100) or newer is needed")
    described = ", ".join(f"{gpu.name} {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus)
    return described or "none: training runs on the CPU, fit for the demo and tests"


def _disk(path: Path) -> str:
    free = shutil.disk_usage(path).free
    text = f"{free / 1e9:.0f} GB free at {path.resolve()}"
    if free < _FREE_BYTES:
        raise InputError(f"{text}: a 7B checkpoint needs 90 GB, the demo 1 GB; free some space")
    return text
