"""Near-duplicates of any amount of text in a bounded amount of memory, with what one large index would find.

An index takes paragraphs in their order until its memory is used up. The paragraphs after those are then compared with
it, and those without a match are left for the next pass, which begins with an empty index. A paragraph is removed if
it matches an earlier one that was kept, whichever pass that one was in: the result of a single index, at the price of
reading the text once more for each time the memory is used up. Decisions and index are on disk, to be gone on with.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pydantic
from pydantic import Field

from vikhr_fast.config import read_record
from vikhr_fast.corpus.dedup import DedupIndex, DedupSettings
from vikhr_fast.corpus.paragraphs import numbers_of, paragraphs_of
from vikhr_fast.corpus.settings import DedupStage
from vikhr_fast.data.documents import read_part
from vikhr_fast.data.native_texts import IntArray
from vikhr_fast.errors import InputError
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import atomic_file, json_text, write_text
from vikhr_fast.io.plain import one_line
from vikhr_fast.io.progress import progress_bar

UNDECIDED = -1
_BATCH_CHARACTERS = 1 << 22
_GROWTH = 1.6  # what a table of the index may grow by at once, and a little
_CHECKPOINT_SECONDS = 300


def index_settings(settings: DedupStage) -> DedupSettings:
    """The settings of the index."""
    return DedupSettings(settings.num_perm, settings.bands, settings.shingle, threshold=settings.threshold)


def owners_file(scratch: Path, part: int) -> Path:
    """Where a part's decisions are: int64 [paragraphs], the number of the one kept in its place, or UNDECIDED."""
    return scratch / f"owners-{part:05d}.npy"


def read_owners(scratch: Path, part: int) -> IntArray:
    """A part's decisions; InputError where the file is damaged."""
    return load_array(owners_file(scratch, part))


def write_owners(scratch: Path, part: int, owners: IntArray) -> None:
    """Writes a part's decisions."""
    save_array(owners_file(scratch, part), owners)


def load_array(path: Path) -> IntArray:
    """The integers of an .npy file that `save_array` wrote; InputError where it is damaged."""
    try:
        values: IntArray = np.load(path)
        if values.dtype != np.int64 or values.ndim != 1:
            raise ValueError(f"{values.dtype} {list(values.shape)}")
    except Exception as error:  # a damaged header raises whatever Python's own parser does
        raise InputError(f"{path}: damaged: {one_line(str(error))}; {_advice(path.parent)}") from None
    return values


def _advice(scratch: Path) -> str:
    return f"remove {scratch.parent} and begin anew"


def save_array(path: Path, values: IntArray) -> None:
    """Writes an .npy file, complete or not at all."""
    with atomic_file(path) as file:
        np.save(file, values)


_Number = Annotated[int, Field(ge=0)]


@dataclass
class _State:
    """How far the search is, as it is kept in a file."""

    phase: Literal["add", "decide", "match", "done"] = "add"
    part: _Number = 0
    """The first part that isn't done in this phase."""
    index: Annotated[str, Field(pattern=r"^index-[0-9]+$")] | None = None
    """The file of the index so far, and of its texts' numbers."""
    saved: _Number = 0
    passes: _Number = 1


_STATE = pydantic.TypeAdapter(_State)


class Passes:
    """Decides about every paragraph of the parts.

    Args:
        parts: the part files.
        settings: of the search.
        scratch: a directory for decisions and index. With those of an earlier, interrupted search it is gone on with.
        memory: bytes that the index may take.
        threads: 0 is one a core.

    Raises:
        InputError: what is in `scratch` is damaged.
    """

    def __init__(self, parts: list[Path], settings: DedupStage, scratch: Path, memory: float, threads: int) -> None:
        self._parts, self._settings, self._scratch, self._threads = parts, settings, scratch, threads
        self._limit = memory / _GROWTH
        self._file = scratch / "passes.json"
        self._state = self._read()
        self._numbers: list[IntArray] = []
        self._index = DedupIndex(index_settings(settings))
        if self._state.index:
            self._index = DedupIndex.load(scratch / f"{self._state.index}.bin")
            self._numbers = [load_array(scratch / f"{self._state.index}.npy")]

    def run(self) -> None:
        """Decides; afterwards every part has its file of owners without any that is undecided."""
        while self._state.phase != "done":
            name = f"dedup, pass {self._state.passes}, {self._state.phase}"
            with progress_bar(name, len(self._parts)) as advance:
                advance(self._state.part)
                if self._state.phase == "add":
                    self._add(advance)
                elif self._state.phase == "decide":
                    self._decide()
                else:
                    self._match(advance)

    def _add(self, advance: Callable[[int], None]) -> None:
        checkpoint = time.monotonic()
        is_full = False
        while self._state.part < len(self._parts) and not is_full:
            part = self._state.part
            for numbers, texts in self._undecided(part):
                self._index.add(texts, self._threads)
                self._numbers.append(numbers)
                if is_full := self._index.index_bytes + 32 * sum(map(len, self._numbers)) > self._limit:
                    break
            else:
                self._state.part += 1
                advance(1)
                if time.monotonic() - checkpoint > _CHECKPOINT_SECONDS:
                    self._save(with_index=True)
                    checkpoint = time.monotonic()
        # Saved before anything is decided: the index couldn't be filled again once its texts are.
        self._state.phase = "decide"
        self._save(with_index=True)

    def _decide(self) -> None:
        """Writes down what becomes of the texts of this pass's index."""
        numbers = self._numbers_added()
        owners = numbers[self._index.result().clusters]
        first = int(numbers[0] >> 32) if len(numbers) else 0
        for part in range(first, min(self._state.part + 1, len(self._parts))):
            low, high = np.searchsorted(numbers, [part << 32, (part + 1) << 32])
            self._update(part, numbers[low:high], owners[low:high])
        if self._state.part == len(self._parts):
            self._next("done")
        else:
            self._state.phase = "match"
            self._save(with_index=False)

    def _match(self, advance: Callable[[int], None]) -> None:
        numbers_of_index = self._numbers_added()
        while self._state.part < len(self._parts):
            part = self._state.part
            for numbers, texts in self._undecided(part):
                found = self._index.match(texts, self._threads)
                is_match = found >= 0
                self._update(part, numbers[is_match], numbers_of_index[found[is_match]])
            self._state.part += 1
            self._save(with_index=False)
            advance(1)
        logger.info(f"dedup: pass {self._state.passes} ended; what matched nothing in memory is left for the next")
        self._next("add")

    def _undecided(self, part: int) -> Iterator[tuple[IntArray, list[str]]]:
        """Numbers and texts of the paragraphs that no pass has decided about, in batches."""
        path = owners_file(self._scratch, part)
        if path.exists() and not (load_array(path) == UNDECIDED).any():
            return
        texts = paragraphs_of(read_part(self._parts[part]), self._settings)
        owners = load_array(path) if path.exists() else np.full(len(texts), UNDECIDED)
        left = np.flatnonzero(owners == UNDECIDED)
        numbers = numbers_of(part, len(texts))[left]
        if not path.exists():
            write_owners(self._scratch, part, owners)
        sizes = np.cumsum([len(texts[index]) for index in left.tolist()])
        start = 0
        while start < len(left):
            before = sizes[start - 1] if start else 0
            end = max(start + 1, int(np.searchsorted(sizes, before + _BATCH_CHARACTERS, side="right")))
            yield numbers[start:end], [texts[index] for index in left[start:end].tolist()]
            start = end

    def _update(self, part: int, numbers: IntArray, owners: IntArray) -> None:
        all_owners = read_owners(self._scratch, part)
        all_owners[numbers & 0xFFFFFFFF] = owners
        write_owners(self._scratch, part, all_owners)

    def _numbers_added(self) -> IntArray:
        """Of the texts in the index, in its order."""
        self._numbers = [np.concatenate([np.empty(0, np.int64), *self._numbers])]
        return self._numbers[0]

    def _next(self, phase: Literal["add", "done"]) -> None:
        self._state.phase, self._state.part, self._state.index = phase, 0, None
        self._state.passes += phase == "add"
        self._numbers = []
        self._index = DedupIndex(index_settings(self._settings))
        self._save(with_index=False)

    def _save(self, with_index: bool) -> None:
        """Writes the state down, with the index under a new name; then removes older ones."""
        if with_index:
            self._state.saved += 1
            self._state.index = f"index-{self._state.saved}"
            self._index.save(self._scratch / f"{self._state.index}.bin")
            save_array(self._scratch / f"{self._state.index}.npy", self._numbers_added())
        write_text(self._file, json_text(asdict(self._state), ensure_ascii=True))
        for old in self._scratch.glob("index-*"):
            if old.stem != self._state.index:
                old.unlink()

    def _read(self) -> _State:
        if not self._file.exists():
            return _State()
        return read_record(self._file, _STATE, _advice(self._scratch))
