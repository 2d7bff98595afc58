"""Checks this machine for what vikhr_fast needs: a line each, ok or what to do."""

import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rich.console import Console

_FREE_BYTES = 20 * 10**9


@dataclass(frozen=True)
class Doctor:
    """Checks Python, compiler, extension, PyTorch, Triton, GPUs and disk. Exits with 3 if anything needs mending."""

    path: Path = Path()
    """Where runs will be written: its disk is checked."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    ok: bool
    subject: str
    text: str


def examine(options: Doctor) -> list[Finding]:
    """All findings; a check that fails unexpectedly is a finding too."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("Python", _python),
        ("compiler", _compiler),
        ("extension", _extension),
        ("PyTorch", _torch),
        ("Triton", _triton),
        ("GPU", _gpu),
        ("disk", lambda: _disk(options.path)),
    ]
    findings = []
    for subject, check in checks:
        try:
            findings.append(check())
        except Exception as error:
            findings.append(Finding(False, subject, f"{type(error).__name__}: {error}"))
    return findings


def doctor(options: Doctor) -> bool:
    """Prints the findings; returns whether all is well."""
    findings = examine(options)
    console = Console()
    for finding in findings:
        mark = "[green]ok  [/]" if finding.ok else "[red]mend[/]"
        console.print(f"{mark} [bold]{finding.subject:<10}[/]", end="")
        console.print(finding.text, markup=False, highlight=False, soft_wrap=True)
    return all(finding.ok for finding in findings)


def _python() -> Finding:
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        return Finding(True, "Python", f"{version}, {sys.executable}")
    return Finding(False, "Python", f"{version}: 3.10 to 3.13 is supported; make a new environment with one of them")


def _compiler() -> Finding:
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if compiler is None:
        return Finding(False, "compiler", "no C++ compiler; install g++ or clang++ (Debian: apt install g++)")
    return Finding(True, "compiler", compiler)


def _extension() -> Finding:
    try:
        from vikhr_fast import _native
    except ImportError as error:
        return Finding(False, "extension", f"vikhr_fast._native doesn't load ({error}); run pip install -e . again")
    return Finding(
        True,
        "extension",
        f"{Path(_native.__file__).name}, CPU has {', '.join(_native.cpu_features()) or 'no SIMD we use'}",
    )


def _torch() -> Finding:
    import torch

    threads = torch.get_num_threads()
    return Finding(True, "PyTorch", f"{torch.__version__}, {threads} CPU threads")


def _triton() -> Finding:
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return Finding(
            False, "Triton", "not installed; on Linux: pip install 'triton>=3.6' (other systems run on a CPU only)"
        )
    return Finding(True, "Triton", version)


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding(True, "GPU", "none: training runs on the CPU, fit for the demo and tests")
    described = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        if (properties.major, properties.minor) < (8, 0):
            return Finding(False, "GPU", f"{properties.name}: compute capability 8.0 (A100) or newer is needed")
        described.append(f"{properties.name} {properties.total_memory / 2**30:.0f} GiB")
    return Finding(True, "GPU", ", ".join(described))


def _disk(path: Path) -> Finding:
    free = shutil.disk_usage(path).free
    text = f"{free / 1e9:.0f} GB free at {path.resolve()}"
    if free >= _FREE_BYTES:
        return Finding(True, "disk", text)
    return Finding(False, "disk", f"{text}: a 7B checkpoint needs 90 GB, the demo 1 GB; free some space")
