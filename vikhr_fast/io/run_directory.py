"""What every run directory keeps: its resolved config, commit, package versions, machine and seed."""

import fcntl
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from vikhr_fast.errors import InputError
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import json_text, open_here, remove_leftovers, write_json, write_text
from vikhr_fast.io.guarded import read_json

CONFIG, ENVIRONMENT, LOCK = "config.json", "environment.json", ".lock"
_PACKAGES = ("vikhr-fast", "numpy", "safetensors", "sentencepiece", "torch", "transformers", "triton")


def record_run(
    directory: Path, config: dict[str, Any], *, may_change: tuple[str, ...] = (), defaults: dict[str, Any] | None = None
) -> None:
    """Writes config.json and environment.json on the first start; compares the config on later ones.

    Args:
        directory: made if missing.
        config: nested JSON values.
        may_change: dotted keys whose values, and all below them, may differ from the first start's.
        defaults: what keys mean that a record of an earlier version lacks.

    Raises:
        InputError: the directory holds a run with another config, or files that are not a run's.
    """
    path = directory / CONFIG
    if not os.path.lexists(path):
        files = directory.iterdir() if directory.exists() else ()
        if any(file.name != ENVIRONMENT and not file.name.startswith(".") for file in files):
            raise InputError(f"{directory}: not empty and not a run directory; use another --output")
        # A command line may hold what isn't UTF-8.
        values = json_text(environment(config.get("seed")), ensure_ascii=True, indent=2)
        write_text(directory / ENVIRONMENT, values + "\n")
        write_json(path, config)
        return
    before = flat(defaults or {}) | flat(read_json(path, "use another --output"))
    now = flat(config)
    gone = {name for name in before.keys() - now.keys() if before[name] is False}  # options that were off
    changed = sorted(name for name in (before.keys() | now.keys()) - gone if before.get(name) != now.get(name))
    refused = [name for name in changed if not f"{name}.".startswith(tuple(f"{key}." for key in may_change))]
    if refused:
        raise InputError(f"{path}: this run began with other values of {', '.join(refused)}; use another --output")
    for name in changed:
        difference = f"{json_text(now.get(name))} instead of {json_text(before.get(name))}"
        logger.info(f"goes on with another {name} than the run began with: {difference}")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps a second process out of a run directory, and clears what a killed one left half-written.

    Raises:
        InputError: another process works in it, or it is a file; `.lock` in it is a symbolic link.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{directory}: a file, not a run directory; use another --output") from None
    with open_here(directory / LOCK, "ab", is_written=False) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{directory}: another process works in it; wait for its end or stop it") from None
        remove_leftovers(directory)
        yield


def environment(seed: int | None) -> dict[str, Any]:
    """Commit, package versions, Python, machine, command line and seed, as JSON values."""
    return {
        "commit": _commit(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "arguments": sys.argv[1:],
        "seed": seed,
    }


def _commit() -> str | None:
    """The commit of the source tree this package runs from, "-dirty" where it has changes; None when installed."""
    source = Path(__file__).parent.parent.parent
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
