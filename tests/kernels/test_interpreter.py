"""Runs interpreter/, where the kernels themselves are tested, in a process a file (see the conftest there)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "interpreter").glob("test_*.py"))
QUICK = ("test_loss_rows",)


@pytest.mark.parametrize(
    "file", [pytest.param(file, marks=[] if file.stem in QUICK else pytest.mark.slow, id=file.stem) for file in FILES]
)
def test_in_the_interpreter(file: Path, pytestconfig: pytest.Config) -> None:
    assert len(FILES) == 11
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    finished = subprocess.run(
        command, env=environment | {"TRITON_INTERPRET": "1"}, cwd=pytestconfig.rootpath, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout[-8000:] + finished.stderr[-2000:]
