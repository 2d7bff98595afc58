"""Token shards: documents as token ids in memory-mapped files, with an index and checksums.

A shard directory holds

- `tokens-00000.bin`, ...: the documents one after another, each as BOS, its ids, EOS; little-endian uint16 if the
  vocabulary fits, uint32 otherwise; no document is split between files;
- `trained-00000.bin`, ... where not every token is to be predicted: a byte for each, 1 if it is;
- `documents.bin`: [documents + 1] little-endian int64, where each document starts among all tokens, and their end;
- `manifest.json`: sizes, the tokenizer, and the SHA-256 of each file and of the manifest itself.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import sha256_of
from vikhr_fast.io.manifest import read_manifest

MANIFEST_NAME = "manifest.json"
INDEX_NAME = "documents.bin"
FORMAT = "vikhr-fast token shards"
VERSION = 2
INDEX_DTYPE = np.dtype("<i8")

_ADVICE = "rebuild the shards with `vikhr-fast corpus shard`"

_COUNTS = ("num_documents", "num_tokens", "num_trained", "num_bytes")
_COPIED = ("vocab_size", "bos_id", "eos_id", "tokenizer_sha256", *_COUNTS, "sha256")

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TokenShards:
    """A shard directory, opened for reading; the tokens stay on disk until they are touched."""

    directory: Path
    vocab_size: int
    bos_id: int
    eos_id: int
    tokenizer_sha256: str
    """SHA-256 of the tokenizer.model or tokenizer.json that made the ids."""
    num_documents: int
    num_tokens: int
    """Tokens of all documents, BOS and EOS included."""
    num_trained: int
    """Tokens that are predicted: all but each document's first, or fewer."""
    num_bytes: int
    """Bytes of the text that is predicted, in UTF-8."""
    sha256: str
    """SHA-256 of the manifest, thus of everything here."""
    lengths: npt.NDArray[np.int64]
    """[num_documents] tokens of each document, BOS and EOS included; at least 2."""
    _offsets: npt.NDArray[np.int64]
    _files: tuple[Tokens, ...]
    _masks: tuple[npt.NDArray[np.uint8], ...]
    """As `_files`; none where every token is predicted."""
    _first_documents: tuple[int, ...]
    _identities: dict[Path, tuple[int, int, int]]
    """Of each file when it was opened: inode, size, time of its last change."""

    @classmethod
    def open(cls, directory: Path, verify: bool = True) -> "TokenShards":
        """Opens a directory that `vikhr-fast corpus shard` made.

        Args:
            directory: the directory.
            verify: also read every file once and compare its SHA-256; sizes and the manifest are checked always.

        Raises:
            InputError: anything in it is missing, cut short, changed, or of another version.
        """
        manifest = read_manifest(directory / MANIFEST_NAME, FORMAT, VERSION, _ADVICE)
        masks = [entry["trained"] for entry in manifest["files"] if "trained" in entry]
        entries = (manifest["index"], *manifest["files"], *masks)
        for entry in entries:
            _check_file(directory / entry["name"], entry, verify)
        offsets = _mapped(directory / INDEX_NAME, INDEX_DTYPE)
        lengths = np.diff(offsets)
        if offsets[0] != 0 or offsets[-1] != manifest["num_tokens"] or (lengths < 2).any():
            raise InputError(f"{directory / INDEX_NAME}: damaged: not increasing as it must; {_ADVICE}")
        return cls(
            directory=directory,
            **{name: manifest[name] for name in _COPIED},
            lengths=lengths,
            _offsets=offsets,
            _files=tuple(_mapped(directory / e["name"], np.dtype(manifest["dtype"])) for e in manifest["files"]),
            _masks=tuple(_mapped(directory / entry["name"], np.dtype(np.uint8)) for entry in masks),
            _first_documents=tuple(accumulate((e["documents"] for e in manifest["files"]), initial=0)),
            _identities={path: _identity(path) for path in (directory / entry["name"] for entry in entries)},
        )

    def require_unchanged(self) -> None:
        """Raises InputError where a file has changed or vanished since it was opened: its map would be another's."""
        for path, identity in self._identities.items():
            try:
                now = _identity(path)
            except OSError as error:
                raise InputError(f"{path}: gone while it is read ({error.strerror}); bring it back") from None
            if now != identity:
                raise InputError(f"{path}: changed while it is read; bring the old file back, {_ADVICE}")

    def document(self, index: int) -> Tokens:
        """The tokens of one document, BOS and EOS included: a read-only view [lengths[index]], not a copy."""
        number, rows = self._place(index)
        return self._files[number][rows]

    def trained(self, index: int) -> Mask | None:
        """Which tokens of a document are predicted [lengths[index]], a view; None where all but the first are."""
        if not self._masks:
            return None
        number, rows = self._place(index)
        return self._masks[number][rows].view(np.bool_)

    @property
    def has_mask(self) -> bool:
        """Whether some tokens are only read, such as the questions in conversations."""
        return bool(self._masks)

    def _place(self, index: int) -> tuple[int, slice]:
        """The file of a document, and its tokens there."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        number = bisect_right(self._first_documents, index) - 1
        file_start = self._offsets[self._first_documents[number]]
        return number, slice(self._offsets[index] - file_start, self._offsets[index + 1] - file_start)


def _check_file(path: Path, entry: dict[str, Any], verify: bool) -> None:
    if not path.is_file():
        raise InputError(f"{path}: missing, but {MANIFEST_NAME} names it; {_ADVICE}")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise InputError(f"{path}: damaged: {size} bytes, must be {entry['bytes']}; {_ADVICE}")
    if verify and sha256_of(path) != entry["sha256"]:
        raise InputError(f"{path}: damaged: its checksum does not fit {MANIFEST_NAME}; {_ADVICE}")


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _mapped(path: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A memory map as a plain array: slices of np.memmap itself are slow to make."""
    return np.asarray(np.memmap(path, dtype, mode="r"))
