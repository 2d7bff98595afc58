"""`vikhr-fast doctor`: a line for each thing to know, with what to do about it."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from vikhr_fast.doctor.data import data_findings
from vikhr_fast.doctor.findings import show_findings
from vikhr_fast.doctor.machine import machine_findings
from vikhr_fast.doctor.model import is_model, model_findings
from vikhr_fast.errors import ExitCode


@dataclass(frozen=True)
class Doctor:
    """Reads a model's directory or a data file, and says what a command would make of it; without one, checks this
    machine. Exits with 3 if anything needs mending."""

    inputs: Positional[tuple[Path, ...]] = ()
    """Directories of models or tokenizers, and data: text, JSON lines, Parquet."""
    path: Path = Path()
    """Where runs will be written: its disk is checked, with the rest of the machine."""


def doctor(options: Doctor) -> ExitCode:
    """Prints what was found, a line each; a check that fails unexpectedly is a finding, too."""
    if not options.inputs:
        return show_findings(machine_findings(options.path))
    findings = {path: model_findings(path) if is_model(path) else data_findings(path) for path in options.inputs}
    return max(show_findings(found, f"{path}:") for path, found in findings.items())
