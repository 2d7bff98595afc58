"""Every fifth mutation of the mutation gate; `python tests/mutate.py` makes them all."""

import subprocess
import sys

import pytest


def test_tests_kill_mutations(pytestconfig: pytest.Config) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, str(pytestconfig.rootpath / "tests" / "mutate.py"), "--every", "5"]
    finished = subprocess.run(command, capture_output=True, text=True)
    print(finished.stdout)
    assert finished.returncode == 0, finished.stdout + finished.stderr
