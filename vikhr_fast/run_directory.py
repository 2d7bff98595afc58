"""What every run directory keeps: its resolved config, commit, package versions, machine and seed."""

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from vikhr_fast.errors import InputError
from vikhr_fast.files import write_text

CONFIG, ENVIRONMENT = "config.json", "environment.json"
_PACKAGES = ("vikhr-fast", "numpy", "safetensors", "sentencepiece", "torch", "transformers", "triton")


def record_run(directory: Path, config: dict[str, Any], *, may_change: tuple[str, ...] = ()) -> None:
    """Writes config.json and environment.json on the first start; compares the config on later ones.

    Args:
        directory: made if missing.
        config: nested JSON values; those at the top-level keys in `may_change` may differ from the first start's.
        may_change: top-level keys.

    Raises:
        InputError: the directory holds a run with another config, or files that are not a run's.
    """
    path = directory / CONFIG
    if path.exists():
        earlier = _read(path)
        if changed := sorted(_differences(earlier, config, may_change)):
            raise InputError(f"{path}: this run began with other values of {', '.join(changed)}; use another --output")
        return
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"{directory}: not empty and not a run directory; use another --output")
    write_text(directory / ENVIRONMENT, json.dumps(environment(config.get("seed")), indent=2) + "\n")
    write_text(path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


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


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: damaged: {error}; use another --output") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: damaged: not a JSON object; use another --output")
    return values


def _differences(earlier: dict[str, Any], config: dict[str, Any], may_change: tuple[str, ...]) -> set[str]:
    keys = (earlier.keys() | config.keys()) - set(may_change)
    changed = set()
    for key in keys:
        before, now = earlier.get(key), config.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            changed |= {f"{key}.{inner}" for inner in _differences(before, now, ())}
        elif before != now:
            changed.add(key)
    return changed
