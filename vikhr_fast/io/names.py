"""Names that are shown side by side, and names that directories are made of."""

from collections.abc import Collection, Sequence
from pathlib import Path

from vikhr_fast.errors import InputError

_MOST_BYTES = 200  # of a directory's name: file systems take 255, and a temporary one is longer


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


def refuse_as_directories(sources: Collection[str]) -> None:
    """Raises InputError unless each source can have a directory of its name: data of others may name them anyhow."""
    for source in sources:
        parts = source.split("/")
        is_long = any(len(part.encode("utf-8", "surrogatepass")) > _MOST_BYTES for part in parts)
        if "\0" in source or {"", ".", ".."} & set(parts) or is_long:
            raise InputError(f"source {source!r}: cannot be the name of a directory; give it another name")
        if above := {"/".join(parts[:number]) for number in range(1, len(parts))} & set(sources):
            raise InputError(f"source {source!r}: would be inside of source {min(above)!r}; give it another name")
