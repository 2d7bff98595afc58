"""Imports run one way: a package may use what stands before it, never what stands after it."""

import ast
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vikhr_fast

ROOT = Path(vikhr_fast.__file__).parent
LAYERS = (
    "errors", "io", "config",
    "model", "data", "distributed",
    "tokenizer", "chat",
    "llm", "encoder", "corpus", "instruct", "inference", "evaluate", "adapt", "plan", "train", "publish",
    "commands",
    "experiments", "report", "doctor",
    "cli", "__main__",
)  # fmt: skip
"""The packages and the modules at the root, from the bottom up; the C++ module and the kernels stand below all."""


def imported(source: str) -> Iterator[str]:
    """The modules that a file imports, at its top or in a function, by their full names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def package_of(module: str) -> str | None:
    """The part of vikhr_fast that a module is in; None for vikhr_fast itself and what is compiled."""
    top, _, rest = module.partition(".")
    package = rest.partition(".")[0]
    return package if top == "vikhr_fast" and package not in ("", "_native") else None


def module_name(path: Path) -> str:
    """The full name of a file's module; a package's of its __init__.py."""
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def file_of(module: str, files: Iterable[str]) -> str | None:
    """The file that an import reads: the module itself, or the one that what is imported is defined in."""
    return next((name for name in (module, module.rpartition(".")[0]) if name in files), None)


def upward(package: str, source: str) -> list[str]:
    """What a file of a package imports from above it."""
    above = LAYERS[LAYERS.index(package) + 1 :]
    return [module for module in imported(source) if package_of(module) in above]


def test_every_package_has_its_layer() -> None:
    packages = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert packages - {"__init__"} == set(LAYERS)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_upward(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0].removesuffix(".py") if path.stem != "__main__" else "__main__"
    if package != "__init__":
        assert upward(package, path.read_text(encoding="utf-8")) == []


def test_no_file_imports_itself_by_way_of_others() -> None:
    files = {module_name(path): path for path in ROOT.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        found = {file_of(module, files) for module in imported(path.read_text(encoding="utf-8"))}
        graph[name] = {file for file in found if file is not None}
    assert graph["vikhr_fast.experiments.inputs"] >= {"vikhr_fast.tokenizer", "vikhr_fast.io.files"}
    TopologicalSorter(graph).prepare()  # raises a CycleError that names them


def test_only_the_table_of_commands_imports_by_name() -> None:
    by_name = [path.name for path in ROOT.rglob("*.py") if "importlib.import_module" in set(imported(path.read_text()))]
    assert by_name == ["commands.py"]


def test_the_kernels_know_nothing_of_the_package() -> None:
    import vikhr_kernels

    for path in Path(vikhr_kernels.__file__).parent.rglob("*.py"):
        assert [name for name in imported(path.read_text(encoding="utf-8")) if name.startswith("vikhr_fast")] == []


def test_an_upward_import_is_seen() -> None:
    assert upward("io", "def f():\n    from vikhr_fast.corpus.read import named\n") == ["vikhr_fast.corpus.read.named"]
    assert upward("corpus", "import vikhr_fast.io.files\nfrom vikhr_fast import cli") == ["vikhr_fast.cli"]
