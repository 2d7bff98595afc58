"""Runs tests against another build of the C++ code.

python tests/gates/sanitized.py BUILD_DIRECTORY [arguments of pytest]
"""

import importlib.util
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    [library] = Path(sys.argv[1]).glob("_native*.so")
    spec = importlib.util.spec_from_file_location("vikhr_fast._native", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["vikhr_fast._native"] = module
    sys.exit(pytest.main(["-p", "no:cacheprovider", *sys.argv[2:]]))
