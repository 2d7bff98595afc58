"""Directories that appear complete or not at all, and whose making can be interrupted and taken up again."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pydantic

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import json_text, refuse_existing, remove, sync_directory, write_text
from vikhr_fast.io.guarded import parse_json, read_json
from vikhr_fast.io.run_directory import LOCK, locked

_WORK, _RESULT, _SCRATCH = "work.json", "result", "scratch"


@contextmanager
def resumable_directory(path: Path, work: dict[str, Any], settings: Any = None) -> Iterator[Path]:
    """Gives a directory inside PATH.partial, and renames it to `path` when the block ends well.

    When the disk is full or the process interrupted or killed, the files finished by then stay, and the next call with
    equal `work` gives the same directory again. So the block must write each file by `atomic_file`, the same bytes
    every time, and may leave out what is there. What it needs only while it works goes to `scratch_of` that directory.

    Args:
        path: the final name.
        work: JSON values that the files depend on.
        settings: see `is_same_work`.

    Raises:
        InputError: `path` exists, another process is making it, or PATH.partial was left behind by other work or is a
            symbolic link.
    """
    refuse_existing(path)
    partial = path.with_name(f"{path.name}.partial")
    if partial.is_symlink():
        raise InputError(f"{partial}: a symbolic link, which is not followed; remove it")
    result, scratch = partial / _RESULT, partial / _SCRATCH
    with locked(partial):
        try:
            _claim(partial, work, settings)
            for own in (result, scratch):
                if own.is_symlink():
                    remove(own)
                for found in list(own.rglob("*")):
                    if fnmatch(found.name, ".*.partial") or found.is_symlink():  # a killed writer's; nobody's of ours
                        remove(found)
            result.mkdir(exist_ok=True)
            try:
                yield result
            except InputError:  # mended input is other work
                shutil.rmtree(result)
                raise
            sync_directory(result)
            refuse_existing(path)
            result.rename(path)
            sync_directory(path.parent)
        finally:
            is_finished = path.exists()
            is_begun = any(any(own.iterdir()) for own in (result, scratch) if own.exists())
            if is_finished or not result.exists() or not is_begun:
                with suppress(OSError):  # what somebody else put there stays
                    for own in (result, scratch, partial / _WORK, partial / LOCK):
                        remove(own)
                    partial.rmdir()


def _claim(partial: Path, work: dict[str, Any], settings: Any) -> None:
    """Writes down whose work this is, or checks that it is the same."""
    record = partial / _WORK
    if not record.exists():
        write_text(record, json_text(work, ensure_ascii=True, indent=2) + "\n")
    elif not is_same_work(read_json(record, f"remove {partial}"), work, settings):
        raise InputError(f"{partial}: left behind by work with other settings or inputs; remove it, or repeat that")


def is_same_work(record: dict[str, Any], work: dict[str, Any], settings: Any = None) -> bool:
    """Whether a record, perhaps an earlier version's, is of this work; settings that it lacks are today's defaults.

    Args:
        record: work that was written down.
        work: JSON values that a result depends on.
        settings: the dataclass that `work["settings"]` was made of; or, by their keys in `work`, all that are in it.
    """
    known = {"settings": settings} if is_dataclass(settings) else settings or {}
    try:
        return bool(_completed(record, known) == _completed(parse_json(json_text(work)), known))
    except pydantic.ValidationError:
        return False


def _completed(record: Any, settings: Any) -> Any:
    """The record with an object in place of all settings."""
    if not isinstance(settings, dict):
        return pydantic.TypeAdapter(type(settings)).validate_python(record)
    if not isinstance(record, dict):
        return record
    return {name: _completed(own, settings[name]) if name in settings else own for name, own in record.items()}


def scratch_of(result: Path) -> Path:
    """A directory that lives as long as the work on the one that `resumable_directory` gave, made if missing."""
    scratch = result.with_name(_SCRATCH)
    scratch.mkdir(exist_ok=True)
    return scratch
