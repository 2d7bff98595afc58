"""What every run directory keeps: its resolved config, commit, package versions, machine and seed."""

import fcntl
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from vikhr_fast.console import logger
from vikhr_fast.errors import InputError
from vikhr_fast.files import write_text

CONFIG, ENVIRONMENT = "config.json", "environment.json"
_PACKAGES = ("vikhr-fast", "numpy", "safetensors", "sentencepiece", "torch", "transformers", "triton")


def record_run(
    directory: Path,
    config: dict[str, Any],
    *,
    may_change: tuple[str, ...] = (),
    defaults: dict[str, Any] | None = None,
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
    if path.exists():
        earlier = _read(path)
        changed = _differences(earlier, config, defaults or {})
        refused = {name for name in changed if not _is_permitted(name, may_change)}
        if refused:
            raise InputError(
                f"{path}: this run began with other values of {', '.join(sorted(refused))}; use another --output"
            )
        for name in sorted(changed):
            logger.info(f"goes on with another {name} than the run began with: {changed[name]}")
        return
    if any(file.name != ENVIRONMENT and not file.name.startswith(".") for file in _files(directory)):
        raise InputError(f"{directory}: not empty and not a run directory; use another --output")
    write_text(directory / ENVIRONMENT, json.dumps(environment(config.get("seed")), indent=2) + "\n")
    write_text(path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps a second process out of a run directory, and clears what a killed one left half-written.

    Raises:
        InputError: another process works in it, or it is a file.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{directory}: a file, not a run directory; use another --output") from None
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{directory}: another process works in it; wait for its end or stop it") from None
        for leftover in directory.glob(".*.partial"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
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
    source = Path(__file__).parent.parent
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


def _files(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.exists() else []


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: damaged: {error}; use another --output") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: damaged: not a JSON object; use another --output")
    return values


def _is_permitted(name: str, may_change: tuple[str, ...]) -> bool:
    return any(name == permitted or name.startswith(f"{permitted}.") for permitted in may_change)


def _differences(
    earlier: dict[str, Any], config: dict[str, Any], defaults: dict[str, Any], prefix: str = ""
) -> dict[str, str]:
    """By the dotted keys of the values that differ, how."""
    changed: dict[str, str] = {}
    for key in earlier.keys() | config.keys():
        name, before, now = f"{prefix}{key}", earlier.get(key, defaults.get(key)), config.get(key)
        is_gone = before is False and key not in config  # an option that was off and doesn't exist any more
        if before == now or is_gone:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            changed |= _differences(before, now, defaults.get(key) or {}, f"{name}.")
        else:
            changed[name] = f"{json.dumps(now)} instead of {json.dumps(before)}"
    return changed
