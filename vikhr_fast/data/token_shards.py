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
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic
from pydantic import Field

from vikhr_fast.config import validated
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

_Size = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
_Name = Annotated[str, Field(pattern=r"^[a-z]+(-[0-9]+)?\.bin$")]


@dataclass(frozen=True)
class _File:
    name: _Name
    bytes: _Size
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _TokenFile(_File):
    documents: _Size
    tokens: _Size
    trained: _File | None = None


@dataclass(frozen=True)
class _Manifest:
    vocab_size: Annotated[int, Field(strict=True, ge=1, le=2**32)]
    bos_id: _Size
    eos_id: _Size
    tokenizer_sha256: str
    dtype: Literal["<u2", "<u4"]
    num_documents: Annotated[int, Field(strict=True, ge=1, lt=2**63)]
    num_tokens: _Size
    num_trained: _Size
    num_bytes: _Size
    sha256: str
    index: _File
    files: tuple[_TokenFile, ...]

    def has_fitting_sizes(self) -> bool:
        """Whether files, documents and tokens are as many as the sizes say; what is in the index is another matter."""
        masks = [file.trained for file in self.files if file.trained]
        return (
            self.index.name == INDEX_NAME
            and self.index.bytes == INDEX_DTYPE.itemsize * (self.num_documents + 1)
            and self.num_documents == sum(file.documents for file in self.files)
            and self.num_tokens == sum(file.tokens for file in self.files)
            and all(file.bytes == np.dtype(self.dtype).itemsize * file.tokens > 0 for file in self.files)
            and len(masks) in (0, len(self.files))
            and all(mask.bytes == file.tokens for mask, file in zip(masks, self.files, strict=False))
        )


_MANIFEST = pydantic.TypeAdapter(_Manifest)

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
        path = directory / MANIFEST_NAME
        values = read_manifest(path, FORMAT, VERSION, _ADVICE)
        manifest = validated(_MANIFEST, values, f"{path}: damaged", _ADVICE)
        masks = [file.trained for file in manifest.files if file.trained]
        entries = (manifest.index, *manifest.files, *masks)
        if not manifest.has_fitting_sizes():
            raise InputError(f"{path}: damaged: sizes that don't fit each other; {_ADVICE}")
        for entry in entries:
            _check_file(directory / entry.name, entry, verify)
        first_documents = tuple(accumulate((file.documents for file in manifest.files), initial=0))
        offsets = _mapped(directory / INDEX_NAME, INDEX_DTYPE)
        lengths, sizes = np.diff(offsets), np.diff(offsets[list(first_documents)])
        if offsets[0] != 0 or (lengths < 2).any() or sizes.tolist() != [file.tokens for file in manifest.files]:
            raise InputError(f"{directory / INDEX_NAME}: damaged: not increasing as it must; {_ADVICE}")
        return cls(
            directory=directory,
            **{name: getattr(manifest, name) for name in _COPIED},
            lengths=lengths,
            _offsets=offsets,
            _files=tuple(_mapped(directory / file.name, np.dtype(manifest.dtype)) for file in manifest.files),
            _masks=tuple(_mapped(directory / mask.name, np.dtype(np.uint8)) for mask in masks),
            _first_documents=first_documents,
            _identities={path: _identity(path) for path in (directory / entry.name for entry in entries)},
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


def _check_file(path: Path, entry: _File, verify: bool) -> None:
    if not path.is_file():
        raise InputError(f"{path}: missing, but {MANIFEST_NAME} names it; {_ADVICE}")
    if (size := path.stat().st_size) != entry.bytes:
        raise InputError(f"{path}: damaged: {size} bytes, must be {entry.bytes}; {_ADVICE}")
    if verify and sha256_of(path) != entry.sha256:
        raise InputError(f"{path}: damaged: its checksum does not fit {MANIFEST_NAME}; {_ADVICE}")


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _mapped(path: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A memory map as a plain array: slices of np.memmap itself are slow to make."""
    return np.asarray(np.memmap(path, dtype, mode="r"))
