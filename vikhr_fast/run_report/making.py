"""What a run was made with: its settings, commit, versions, machine and command line."""

import json
from pathlib import Path
from typing import Any

from vikhr_fast.errors import InputError
from vikhr_fast.report import Section, Table
from vikhr_fast.run_directory import CONFIG, ENVIRONMENT


def making(run: Path) -> Section:
    """The section at the end of a run's page; InputError where the run directory lacks one of its files."""
    captions = {CONFIG: "Settings.", ENVIRONMENT: "Commit, versions, machine and command line."}
    return Section(
        "What it was made with",
        parts=tuple(value_table(caption, flat(read_values(run / file))) for file, caption in captions.items()),
    )


def value_table(caption: str, values: dict[str, Any]) -> Table:
    """Named values, a row each."""
    return Table(caption, ("name", "value"), tuple((name, _shown(value)) for name, value in values.items()))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def read_values(path: Path) -> dict[str, Any]:
    """The JSON object in a file; InputError where there is none."""
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: damaged: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: damaged: not a JSON object")
    return values


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
