"""What runs were made with: settings, commit, versions, machine and command line."""

from pathlib import Path
from typing import Any

from vikhr_fast.io.guarded import read_json
from vikhr_fast.io.html import Section, Table
from vikhr_fast.io.run_directory import CONFIG, ENVIRONMENT, flat


def provenance(runs: dict[str, Path]) -> Section:
    """The section at the end of runs' page, of several what they differ in; InputError where one lacks its files."""
    found = {name: flat(read_json(run / CONFIG)) | flat(read_json(run / ENVIRONMENT)) for name, run in runs.items()}
    shown = {key: [_shown(own.get(key, "")) for own in found.values()] for own in found.values() for key in own}
    rows = tuple((key, *values) for key, values in shown.items() if len(runs) == 1 or len(set(values)) > 1)
    caption = f"Settings, commit, versions, machine and command line{', where they differ' if len(runs) > 1 else ''}."
    return Section("What it was made with", parts=(Table(caption, ("name", *runs), rows),))


def value_table(caption: str, values: dict[str, Any]) -> Table:
    """Named values, a row each."""
    return Table(caption, ("name", "value"), tuple((name, _shown(value)) for name, value in values.items()))


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
