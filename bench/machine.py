"""Where a benchmark ran: packages, commit, the GPU's driver, clocks, power and temperature."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch
from schema import DeviceState

PACKAGES = ("torch", "triton", "transformers", "liger-kernel", "cut-cross-entropy", "orda-kernel")
QUERY = "driver_version,clocks.sm,clocks.mem,power.draw,power.limit,temperature.gpu"


def versions() -> dict[str, str]:
    """Of the driver, of Python and of the packages; `missing` where there is none."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda), "driver": _smi()[0] or "missing"}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def device_state(after: str) -> DeviceState:
    """Clocks, power and temperature as they are now."""

    def number(text: str) -> float | None:
        try:
            return float(text)
        except ValueError:  # nothing, or [N/A]
            return None

    _, sm, memory, draw, limit, temperature = _smi()
    return DeviceState(
        after=after, sm_mhz=number(sm), memory_mhz=number(memory), watts=number(draw), watts_limit=number(limit),
        celsius=number(temperature),
    )  # fmt: skip


def _smi() -> list[str]:
    """nvidia-smi's answer about this process's GPU; empty strings without one."""
    nothing = [""] * len(QUERY.split(","))
    if not torch.cuda.is_available():
        return nothing
    gpu = f"--id=GPU-{torch.cuda.get_device_properties(0).uuid}"
    command = ["nvidia-smi", gpu, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return nothing
    values = [value.strip() for value in finished.stdout.strip().split(",")]
    return values if finished.returncode == 0 and len(values) == len(nothing) else nothing


def device_name() -> str:
    """Of the GPU, and what kernels are compiled for where that is another; or of the processor."""
    if torch.cuda.is_available():
        override = os.environ.get("TRITON_OVERRIDE_ARCH")
        return torch.cuda.get_device_name() + (f", kernels for {override}" if override else "")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "cpu")


def commit() -> str:
    """Of this tree, `-dirty` where it was changed; `unknown` where it isn't a git repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        finished = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:  # no git
        return "unknown"
    return finished.stdout.strip() or "unknown"
