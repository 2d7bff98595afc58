"""Checkpoints by `torch.distributed.checkpoint`: complete or absent, verified before anything is read.

A checkpoint directory holds the sharded model and optimiser, `state.json`, and `manifest.json` with the SHA-256 of
every file. Nothing else is needed to go on bit for bit: the order of the data follows from the seed and the step,
and training draws no random numbers. The format's metadata is a pickle: load only checkpoints that you trust.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from vikhr_fast.errors import InputError
from vikhr_fast.files import sha256_of, sync_directory, write_text
from vikhr_fast.model import Mistral
from vikhr_fast.ranks import Ranks

_MANIFEST, _STATE = "manifest.json", "state.json"


@dataclass(frozen=True)
class TrainState:
    """Where a run stands between two optimiser steps."""

    step: int = 0
    """Steps done; the loader goes on with this one."""
    tokens: int = 0
    """Tokens trained on."""
    losses: tuple[float, ...] = field(default=(0.0,) * 5)
    """`objective.Losses` of the last step over all ranks."""


def save_checkpoint(
    directory: Path, model: Mistral, optimizer: torch.optim.Optimizer, state: TrainState, ranks: Ranks, keep: int
) -> None:
    """Writes `directory/step-N`, then deletes all but the newest `keep`.

    Raises:
        OSError: no space left, or no permission; the earlier checkpoints stay.
    """
    final = directory / f"step-{state.step:08d}"
    partial = directory / f".{final.name}.partial"

    def begin() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    def complete() -> None:
        write_text(partial / _STATE, json.dumps(asdict(state)))
        manifest = {path.name: sha256_of(path) for path in sorted(partial.iterdir())}
        write_text(partial / _MANIFEST, json.dumps(manifest, indent=2))
        partial.rename(final)
        sync_directory(directory)

    ranks.on_main(begin)
    values = _sharded_values(model, optimizer)
    try:
        with _storage_errors(partial, values):
            save(values, checkpoint_id=partial)
        ranks.on_main(complete)
    except BaseException:
        if ranks.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    ranks.on_main(lambda: _delete(complete_checkpoints(directory)[:-keep]))


def load_checkpoint(path: Path, model: Mistral, optimizer: torch.optim.Optimizer, ranks: Ranks) -> TrainState:
    """Fills model and optimiser from a checkpoint of this run, written by any number of ranks.

    Raises:
        InputError: a file is missing, damaged or cut short.
    """
    ranks.on_main(lambda: verify(path))
    values = _sharded_values(model, optimizer)
    load(values, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=values["model"], optim_state_dict=values["optimizer"])
    state = json.loads((path / _STATE).read_text())
    return TrainState(state["step"], state["tokens"], tuple(state["losses"]))


def verify(path: Path) -> None:
    """Compares every file of a checkpoint with its manifest.

    Raises:
        InputError: naming the first file that is missing or differs.
    """
    advice = "copy it from elsewhere, or begin in another --output"
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        incomplete = {_STATE, ".metadata"} - manifest.keys()
        damaged = next((name for name, digest in manifest.items() if sha256_of(path / name) != digest), None)
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: missing; {advice}") from None
    except (ValueError, AttributeError):
        raise InputError(f"{path / _MANIFEST}: damaged; {advice}") from None
    if incomplete:
        raise InputError(f"{path / _MANIFEST}: damaged; {advice}")
    if damaged is not None:
        raise InputError(f"{path / damaged}: its checksum differs from the manifest's; {advice}")


def complete_checkpoints(directory: Path) -> list[Path]:
    """Checkpoints from the oldest to the newest; a user's copies under other names aren't among them."""
    return sorted(path for path in directory.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def set_aside(checkpoint: Path) -> None:
    """Takes a damaged checkpoint out of the run's sight, whole."""
    number = 1
    while (aside := checkpoint.with_name(f"{checkpoint.name}.damaged{number if number > 1 else ''}")).exists():
        number += 1
    checkpoint.rename(aside)


def step_of(checkpoint: Path) -> int:
    """How many steps had been done."""
    return int(checkpoint.name.removeprefix("step-"))


def remove_leftovers(directory: Path) -> None:
    """Deletes what a killed run left half-written or half-deleted."""
    for path in directory.glob(".step-*"):
        shutil.rmtree(path)


def _sharded_values(model: Mistral, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    model_values, optimizer_values = get_state_dict(model, optimizer)
    return {"model": model_values, "optimizer": optimizer_values}


def _delete(checkpoints: list[Path]) -> None:
    """Takes the names away first: a checkpoint is never seen half-deleted."""
    for path in checkpoints:
        doomed = path.with_name(f".{path.name}.deleted")
        path.rename(doomed)
        shutil.rmtree(doomed)


@contextmanager
def _storage_errors(directory: Path, values: dict[str, Any]) -> Iterator[None]:
    """Brings a full disk out of the checkpoint library's wrapping as the OSError that it is."""
    try:
        yield
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, OSError):
                raise failure from None
        if shutil.disk_usage(directory.parent).free < _local_bytes(values):  # torch.save hides this reason
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory.parent)) from None
        raise


def _local_bytes(values: Any) -> int:
    """Bytes of this rank's shards of all tensors in nested dictionaries."""
    if isinstance(values, dict):
        return sum(map(_local_bytes, values.values()))
    if isinstance(values, DTensor):
        return values.to_local().nbytes
    return values.nbytes if isinstance(values, torch.Tensor) else 0
