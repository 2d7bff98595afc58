"""Names for files and directories that are shown side by side."""

from collections.abc import Sequence
from pathlib import Path

from vikhr_fast.errors import InputError


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The shortest names that differ: of the file without its suffix, or the directory, with as much of the path as it
    takes. InputError where one stands there twice.
    """
    meant = [path if path.is_dir() else path.with_suffix("") for path in map(Path.resolve, paths)]
    for path in meant:
        if meant.count(path) > 1:
            raise InputError(f"{path}: stands there twice; name each once")
    for parts in range(1, max(len(path.parts) for path in meant) + 1):
        names = ["/".join(path.parts[-parts:]) for path in meant]
        if len(set(names)) == len(names):
            break
    return names
