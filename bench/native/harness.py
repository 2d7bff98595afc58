"""What every comparison of native code shares: the machine, one subprocess a contestant, and the files of results.

A contestant is a Python script that prints one JSON object; it runs alone, in a fresh process, on as many cores as it
may use, so that neither a peer's caches nor its memory nor its thread pool help or hinder the next.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "bench"
DATA = ROOT.parent / "shared" / "data"
_MISSING = 3  # exit code of a contestant whose package isn't installed


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(Strict):
    """Where and with what a run was made."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    versions: dict[str, str]
    commit: str
    created: str


class Missing(Strict):
    """A contestant that could not run, and why."""

    contestant: str
    reason: str


class Comparison(Strict):
    """What a run has found out; each comparison adds its measurements."""

    machine: Machine
    missing: list[Missing]

    def save(self, name: str, table: str, out: Path | None) -> Path:
        """Prints the table and what is missing, writes NAME.json and NAME.md; returns their directory."""
        out = out or results_directory(self.machine)
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (out / f"{name}.md").write_text(table, encoding="utf-8")
        print(table)
        for one in self.missing:
            print(f"{one.contestant} is missing: {one.reason}", file=sys.stderr)
        return out


class ContestantError(RuntimeError):
    """A contestant failed; `is_missing` where its package isn't installed."""

    def __init__(self, message: str, *, is_missing: bool) -> None:
        super().__init__(message)
        self.is_missing = is_missing


def describe_machine(packages: Sequence[str]) -> Machine:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"model name\s*: (.*)", info)
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
    described = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(described, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return Machine(
        cpu=found[1] if found else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=platform.platform(),
        versions=versions,
        commit=commit or "unknown",
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def results_directory(machine: Machine) -> Path:
    """bench/results/<cpu>: one folder a kind of machine."""
    return ROOT / "bench" / "results" / re.sub(r"[^a-z0-9]+", "-", machine.cpu.lower()).strip("-")


def arguments(description: str | None) -> argparse.Namespace:
    """The command line of every comparison."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="directory of the results; default: bench/results/<cpu>")
    parser.add_argument("--only", help="comma-separated names of contestants")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes a contestant; the median counts")
    parser.add_argument("--allow-missing", action="store_true", help="peers that aren't installed are left out")
    return parser.parse_args()


def run_contestant(script: Path, settings: dict[str, Any], *, cores: int, path: Path | None = None) -> dict[str, Any]:
    """Runs `script` with the settings as JSON on `cores` cores; `path` is searched for packages first.

    Raises:
        ContestantError: it failed, or what it measures isn't installed.
    """
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    if len(chosen) < cores:
        raise ContestantError(f"needs {cores} cores", is_missing=False)
    environment = os.environ | {"RAYON_NUM_THREADS": str(cores), "OMP_NUM_THREADS": str(cores)}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    finished = subprocess.run(
        [sys.executable, str(script), json.dumps(settings)],
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, chosen),
    )
    if finished.returncode != 0:
        lines = finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"]
        raise ContestantError(lines[-1], is_missing=finished.returncode == _MISSING)
    return dict(json.loads(finished.stdout.splitlines()[-1]))


def report_missing(error: ImportError) -> None:
    """Ends a contestant whose package isn't installed."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(_MISSING)


def touch_memory(size: int = 1 << 29) -> None:
    """Uses memory and gives it back: a virtual machine that has to ask its host for pages would be measured first."""
    np.zeros(size, np.uint8).fill(1)


class PeakMemory:
    """Measures how far resident memory rises inside the `with` block, in bytes."""

    def __enter__(self) -> "PeakMemory":
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        self._before = _status("VmRSS")
        self.rise = 0
        return self

    def __exit__(self, *_: object) -> None:
        self.rise = max(0, _status("VmHWM") - self._before)


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found
    return 1024 * int(found[1])
