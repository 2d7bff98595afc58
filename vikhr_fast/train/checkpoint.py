"""Checkpoints by `torch.distributed.checkpoint`: complete or absent, verified before anything is read.

A checkpoint directory holds model and optimiser, in the shards of the ranks that wrote it, `state.json`, and
`manifest.json` with the SHA-256 of every file. Nothing else is needed to go on bit for bit, on any number of ranks: the
order of the data follows from the seed and the step, and training draws no random numbers. The format's metadata is a
pickle: load only checkpoints that you trust.
"""

import errno
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import pydantic
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from vikhr_fast.config import ScheduleConfig, read_record
from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.distributed.sharding import local
from vikhr_fast.errors import InputError
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import json_text, remove, sha256_of, sync_directory, write_text
from vikhr_fast.io.guarded import read_json
from vikhr_fast.train.metrics import mean_bits_per_byte
from vikhr_fast.train.optimizer import Optimizer
from vikhr_fast.train.state import TrainState

CHECKPOINTS = "checkpoints"  # of a run directory
_MANIFEST, _STATE = "manifest.json", "state.json"
_SPARE_BYTES = 1 << 20  # for what isn't tensors
_ADVICE = "copy it from elsewhere, or begin in another --output"


class Checkpoints:
    """The checkpoints of a run, written while training goes on. All methods are called by all ranks together.

    Args:
        directory: holds `step-N` directories.
        schedule: which of them to keep.
        ranks: of the run.
    """

    def __init__(self, directory: Path, schedule: ScheduleConfig, ranks: Ranks) -> None:
        self._directory, self._schedule, self._ranks = directory, schedule, ranks
        self._group = dist.new_group(backend="gloo")  # the thread's own: training uses the others meanwhile
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._newest = 0  # step of the last checkpoint that was written or read

    @property
    def is_writing(self) -> bool:
        """Whether this rank still writes a checkpoint."""
        return self._pending is not None and not self._pending.done()

    @property
    def has_failed(self) -> bool:
        """Whether `finish` will raise here."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def save(self, optimizer: Optimizer, state: TrainState) -> None:
        """Copies everything, then writes `step-N` in the background; the one before is finished first.

        Does nothing where that is the newest checkpoint already, and before the first step.

        Raises:
            OSError: no space left, or no permission; the earlier checkpoints stay.
        """
        self._ranks.watch.enter(f"the checkpoint of step {state.step}")
        self.finish()
        if state.step == self._newest:
            return
        self._newest = state.step
        final = self._directory / f"step-{state.step:08d}"
        unfinished = self._directory / f".{final.name}.partial"
        values = _values(optimizer)
        named = (values["model"], *values["optimizer"]["state"].values())
        own_bytes = sum(local(tensor).nbytes for tensors in named for tensor in tensors.values())
        needed = torch.tensor(own_bytes + _SPARE_BYTES, device=self._ranks.device)
        num_bytes = int(self._ranks.all_reduce_sum(needed)) // self._ranks.replicas  # one of them writes

        def begin() -> None:
            self._directory.mkdir(parents=True, exist_ok=True)
            _require_space(self._directory, num_bytes)
            unfinished.mkdir()

        self._ranks.on_main(begin)
        saved = async_save(values, checkpoint_id=unfinished, process_group=self._group)
        assert isinstance(saved, Future)
        self._pending = self._writer.submit(self._complete, saved, unfinished, final, state)

    def finish(self) -> None:
        """Waits until the last checkpoint is complete; raises what `save` raises, on every rank."""
        pending, self._pending = self._pending, None
        self._ranks.run_everywhere(lambda: pending.result() if pending else None)

    def close(self) -> None:
        """Waits for the writing thread, without asking how it ended."""
        self._writer.shutdown()

    def drop_finished(self) -> None:
        """Deletes what isn't to be kept once the model is written: with `keep_checkpoints` 0, the newest as well."""
        if self._schedule.keep_checkpoints == 0:
            self._ranks.on_main(lambda: self._delete_superseded(newest=0))

    def load_last(self, optimizer: Optimizer) -> TrainState:
        """Fills model and optimiser from the newest checkpoint that is whole, written by any number of ranks.

        Those that are damaged or can't be read are set aside. Without any checkpoint the run begins.

        Raises:
            InputError: there are checkpoints, and none of them is whole; or a whole one doesn't hold this run; or
                nobody can tell, as their directory can't be read.
        """

        def clear() -> None:
            for leftover in _entries(self._directory, r"\.step-\d{8}\.(partial|deleted)"):  # of a killed run
                remove(leftover)

        self._ranks.on_main(clear)
        while checkpoints := complete_checkpoints(self._directory):
            newest = checkpoints[-1]
            try:
                self._ranks.run_everywhere(partial(verify, newest, self._ranks.rank, self._ranks.count))
            except InputError as error:  # on every rank
                if len(checkpoints) == 1:
                    raise
                if self._ranks.is_main:
                    logger.warning(f"{error}; it is kept as *.damaged, and {checkpoints[-2].name} goes on")
                self._ranks.on_main(partial(set_aside, newest))
            else:
                state = _read_into(optimizer, newest)
                self._newest = state.step
                return state
        return TrainState()

    def _complete(self, saved: "Future[Any]", unfinished: Path, final: Path, state: TrainState) -> None:
        """In the background: each rank hashes its own files, then rank 0 makes the whole a checkpoint."""
        digests: dict[str, str] = {}
        failure: InputError | OSError | None = None
        try:
            saved.result()
            own = f"__{self._ranks.rank}_*.distcp"
            digests = {file.name: sha256_of(file) for file in sorted(unfinished.glob(own))}
        except (CheckpointException, OSError) as error:
            failure = _storage_error(error, self._directory)
        found: list[Any] = [None] * self._ranks.count
        dist.all_gather_object(found, (digests, failure), group=self._group)
        failures = [failure for _, failure in found if failure is not None]
        if self._ranks.is_main:
            try:
                if not failures:
                    _publish(unfinished, final, {k: v for digests, _ in found for k, v in digests.items()}, state)
                    self._delete_superseded(newest=max(1, self._schedule.keep_checkpoints))
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        if failures:
            raise failures[0]

    def _delete_superseded(self, newest: int) -> None:
        scores = mean_bits_per_byte(self._directory.parent) if self._schedule.keep_best else {}
        _delete(_superseded(complete_checkpoints(self._directory), newest, self._schedule, scores))


def load_checkpoint(path: Path, optimizer: Optimizer, ranks: Ranks) -> TrainState:
    """Fills model and optimiser from a checkpoint of this run, written by any number of ranks.

    Raises:
        InputError: a file is missing, damaged or cut short, or doesn't hold this run.
    """
    ranks.run_everywhere(lambda: verify(path, ranks.rank, ranks.count))
    return _read_into(optimizer, path)


def _read_into(optimizer: Optimizer, path: Path) -> TrainState:
    """Fills model and optimiser from a checkpoint that is verified."""
    try:
        load(_values(optimizer), checkpoint_id=path)  # in place
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise InputError(f"{path}: whole, but not of this run: {reason!r}; begin in another --output") from None
    optimizer.refresh()
    return read_state(path)


def read_state(path: Path) -> TrainState:
    """Where the run stood at a checkpoint.

    Raises:
        InputError: that can't be read, or is of another step than the checkpoint's name says.
    """
    file = path / _STATE
    state = read_record(file, pydantic.TypeAdapter(TrainState), _ADVICE)
    if state.step != step_of(path):
        raise InputError(f"{file}: of step {state.step}; {_ADVICE}")
    return state


def verify(path: Path, part: int = 0, parts: int = 1) -> None:
    """Compares the files of a checkpoint with its manifest: all, or the given one of equal parts of them.

    Raises:
        InputError: naming the first file that is missing, can't be read or differs; or a state that is none.
    """
    _require_file(path / _MANIFEST)
    manifest = read_json(path / _MANIFEST, _ADVICE)
    is_known = re.compile(r"__\d+_\d+\.distcp|\.metadata|state\.json").fullmatch
    if {_STATE, ".metadata"} - manifest.keys() or len(manifest) < 3 or not all(map(is_known, manifest)):
        raise InputError(f"{path / _MANIFEST}: damaged: lists other files than a checkpoint's; {_ADVICE}")
    for file in (path / name for name in sorted(manifest)[part::parts]):
        _require_file(file)
        try:
            differs = sha256_of(file) != manifest[file.name]
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}; {_ADVICE}") from None
        if differs:
            raise InputError(f"{file}: its checksum differs from the manifest's; {_ADVICE}")
    read_state(path)


def _require_file(path: Path) -> None:
    if not path.is_file():  # a pipe would be waited for
        raise InputError(f"{path}: no such file; {_ADVICE}")


def complete_checkpoints(directory: Path) -> list[Path]:
    """Checkpoints from the oldest to the newest; a user's copies under other names aren't among them.

    Raises:
        InputError: the directory is there, but can't be read: a run must not begin anew for that.
    """
    return _entries(directory, r"step-\d{8}")


def _entries(directory: Path, pattern: str) -> list[Path]:
    """What has such a name in a directory, in order; nothing where there is none."""
    try:
        return sorted(path for path in directory.iterdir() if re.fullmatch(pattern, path.name))
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not directory.is_symlink():
            return []
        raise InputError(f"{directory}: {error.strerror}; make it readable, or begin in another --output") from None


def set_aside(checkpoint: Path) -> None:
    """Takes a damaged checkpoint out of the run's sight, whole."""
    names = (checkpoint.with_name(f"{checkpoint.name}.damaged{number}") for number in chain([""], count(2)))
    checkpoint.rename(next(name for name in names if not os.path.lexists(name)))


def step_of(checkpoint: Path) -> int:
    """How many steps had been done."""
    return int(checkpoint.name.removeprefix("step-"))


def _publish(unfinished: Path, final: Path, digests: dict[str, str], state: TrainState) -> None:
    """Makes a complete checkpoint of what all ranks have written."""
    write_text(unfinished / _STATE, json_text(asdict(state), ensure_ascii=True))
    others = (unfinished / _STATE, unfinished / ".metadata")
    manifest = {**digests, **{file.name: sha256_of(file) for file in others}}
    write_text(unfinished / _MANIFEST, json_text(manifest, ensure_ascii=True, indent=2, sort_keys=True))
    unfinished.rename(final)
    sync_directory(final.parent)


def _superseded(
    checkpoints: list[Path], newest: int, schedule: ScheduleConfig, scores: Mapping[int, float]
) -> list[Path]:
    """Those that need not be kept: not among the newest, not of the steps to keep, not the best by step."""
    kept = set(checkpoints[max(0, len(checkpoints) - newest) :])
    if schedule.keep_every:
        kept |= {path for path in checkpoints if step_of(path) % schedule.keep_every == 0}
    if schedule.keep_best:
        scored = [path for path in checkpoints if step_of(path) in scores]
        kept |= set(sorted(scored, key=lambda path: scores[step_of(path)])[:1])
    return [path for path in checkpoints if path not in kept]


def _delete(checkpoints: list[Path]) -> None:
    """Takes the names away first: a checkpoint is never seen half-deleted."""
    for path in checkpoints:
        doomed = path.with_name(f".{path.name}.deleted")
        path.rename(doomed)
        remove(doomed)


def _values(optimizer: Optimizer) -> dict[str, Any]:
    """What a checkpoint holds, under the names of the model's parameters: the tensors themselves, not copies."""
    stored = {name: tensor.detach() for name, tensor in optimizer.stored.items()}
    states = {name: optimizer.state[tensor] for name, tensor in optimizer.stored.items()}
    return {"model": stored, "optimizer": {"state": states}}


def _require_space(directory: Path, num_bytes: int) -> None:
    if shutil.disk_usage(directory).free < num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


def _storage_error(error: CheckpointException | OSError, directory: Path) -> InputError | OSError:
    """The first rank's reason out of the checkpoint library's wrapping: a full disk as the OSError that it is."""
    if isinstance(error, OSError):
        return error
    reasons = [failure for failure, _ in error.failures.values()]
    if found := [reason for reason in reasons if isinstance(reason, OSError)]:
        return found[0]
    if shutil.disk_usage(directory).free < _SPARE_BYTES:  # torch.save hides this reason
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
    return InputError(f"{directory}: the checkpoint could not be written: {reasons[0]!r}")
