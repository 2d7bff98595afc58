"""Files that are either complete or absent: written beside their final name, synced, renamed."""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vikhr_fast.errors import FULL_DISK, InputError

_CHUNK_BYTES = 1 << 20
_SHOWN = 40  # characters of a text in an error
_OF_OUTPUTS = (*FULL_DISK, errno.EROFS)
_OF_WRITES = (*_OF_OUTPUTS, errno.EIO, errno.ESTALE)  # the latter two where nothing is read that they may be of


@contextmanager
def naming(path: Path, errors: Collection[int] = _OF_WRITES) -> Iterator[None]:
    """Puts the path of a file that is written into what the system says without one, if it is one of these errors."""
    try:
        yield
    except OSError as error:
        if error.errno in errors and error.filename is None:
            error.filename = str(path)
        raise


def sync_directory(path: Path) -> None:
    """Makes renames in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Makes a file that another library wrote survive a power cut."""
    with path.open("rb") as file, naming(path):
        os.fsync(file.fileno())


def open_here(path: Path, mode: str, buffering: int = -1, *, is_written: bool = True) -> IO[Any]:
    """Opens a file of a fixed name to be written where it is, in a directory that may be from somebody else.

    Args:
        path: made if missing.
        mode: see `open`.
        buffering: see `open`.
        is_written: False for a file that is only locked.

    Raises:
        InputError: `path` is a symbolic link, or has other hard links and would be written: what else they name, which
            may be anywhere, is not touched.
    """

    def opener(name: str, flags: int) -> int:
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK  # the latter for a pipe that nobody reads
        descriptor = os.open(name, flags & ~os.O_TRUNC, 0o666)
        if is_written and os.fstat(descriptor).st_nlink > 1:
            os.close(descriptor)
            reason = "has other hard links, of a backup say, which writing would change, too"
            raise InputError(f"{path}: {reason}; put a copy in its place")
        if flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)
        return descriptor

    try:
        return open(path, mode, buffering, opener=opener)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise InputError(f"{path}: a symbolic link, through which nothing is written; remove it") from None
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path` and renames it into place when the block ends well.

    Args:
        path: the final name; an existing file is replaced, missing parent directories are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with naming(path, _OF_OUTPUTS), temporary.open("xb") as file:
            yield file
            with naming(path):
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a whole UTF-8 text file atomically; InputError where a name in it, of a file say, isn't UTF-8."""
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        place = text[max(0, error.start - _SHOWN) : error.end]
        raise InputError(f"{path}: would hold what is not UTF-8, {place!r}; give that file another name") from None
    with atomic_file(path) as file:
        file.write(content)


def json_text(values: object, *, ensure_ascii: bool = False, **options: Any) -> str:
    """Values as JSON; null in place of NaN and infinities, which JSON has not, and most of its readers refuse.

    Args:
        values: what `json.dumps` takes.
        ensure_ascii: see `json.dumps`.
        options: further ones of `json.dumps`.
    """
    try:
        return json.dumps(values, ensure_ascii=ensure_ascii, allow_nan=False, **options)
    except ValueError:
        return json.dumps(finite(values), ensure_ascii=ensure_ascii, allow_nan=False, **options)


def copied_json(values: object, **options: Any) -> tuple[str, bool]:
    """As `json_text`, of a user's values, which may be of any kind, and hold halves of surrogate pairs.

    Args:
        values: what has no form in JSON becomes its text.
        options: further ones of `json.dumps`.

    Returns:
        The JSON, which encodes to UTF-8, and whether a number in it became null or a character a question mark.
    """
    is_replaced = False
    try:
        text = json.dumps(values, ensure_ascii=False, allow_nan=False, default=str, **options)
    except ValueError:
        text, is_replaced = json_text(values, default=str, **options), True
    valid = text.encode("utf-8", "replace").decode("utf-8")
    return valid, is_replaced or valid != text


def finite(value: Any) -> Any:
    """A value with None for the numbers that JSON has not: NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(own) for name, own in value.items()}
    return [finite(own) for own in value] if isinstance(value, (list, tuple)) else value


def write_json(path: Path, values: object) -> None:
    """Writes JSON values as a whole file, atomically, to be read by people too."""
    write_text(path, json_text(values, indent=2) + "\n")


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Makes a temporary directory beside `path` and renames it into place when the block ends well.

    Raises:
        InputError: `path` exists already (nothing is ever overwritten).
    """
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        temporary.chmod(0o755)
        with naming(path, _OF_OUTPUTS):
            yield temporary
        for file in temporary.rglob("*"):
            sync_directory(file) if file.is_dir() else sync_file(file)
        sync_directory(temporary)
        refuse_existing(path)
        temporary.rename(path)
        sync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(directory: Path, name: str | None = None) -> None:
    """Removes what a killed `atomic_file` or `atomic_directory` left half-written; nothing else may be writing there.

    Args:
        directory: where it wrote.
        name: of what it wrote; all by default.
    """
    pattern = re.compile(r"\..+\.partial" if name is None else rf"\.{re.escape(name)}\.[^.]+\.partial")
    for leftover in directory.glob(".*.partial"):
        if pattern.fullmatch(leftover.name):
            remove(leftover)


def remove(path: Path) -> None:
    """Removes a file, a directory with all that is in it, or a symbolic link; nothing where there is nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_existing(path: Path) -> None:
    """Raises InputError when `path` exists: outputs are never overwritten."""
    if os.path.lexists(path):
        raise InputError(f"{path}: exists already; remove it or choose another output")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits, read in 1 MiB blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_json_lines(path: Path, values: Iterable[dict[str, Any]]) -> int:
    """Writes JSON lines, complete or not at all; returns how many there were."""
    count = 0
    with atomic_file(path) as file:
        for value in values:
            count += 1
            file.write((json_text(value) + "\n").encode("utf-8"))
    return count
