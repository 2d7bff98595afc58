"""Scripts that no test imports: what they import of this project is there."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("bench", "bench/native", "examples", "tests/emulator", "tests/gates", "tests/helpers")
SCRIPTS = {file.stem: file for folder in FOLDERS for file in sorted((ROOT / folder).glob("*.py"))}


def defined(file: Path) -> set[str]:
    """The names that a file has at its top."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(one.asname or one.name for one in node.names)
        else:
            names.update(one.id for one in ast.walk(node) if isinstance(one, ast.Name))
    return names


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_script_imports_is_there(script: str) -> None:
    for node in ast.walk(ast.parse(SCRIPTS[script].read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        asked = {one.name for one in node.names}
        if node.module in SCRIPTS:
            assert asked <= defined(SCRIPTS[node.module]), node.module
        elif node.module.partition(".")[0] in ("vikhr_fast", "vikhr_kernels"):
            module = importlib.import_module(node.module)
            for name in asked:
                assert hasattr(module, name) or importlib.import_module(f"{node.module}.{name}"), node.module
