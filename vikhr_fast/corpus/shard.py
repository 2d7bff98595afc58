"""Token shards: documents as token ids in memory-mapped files, with an index and checksums.

A shard directory holds

- `tokens-00000.bin`, ...: the documents one after another, each as BOS, its ids, EOS; little-endian uint16 if the
  vocabulary fits, uint32 otherwise; no document is split between files;
- `documents.bin`: [documents + 1] little-endian int64, where each document starts among all tokens, and their end;
- `manifest.json`: sizes, the tokenizer, and the SHA-256 of each file and of the manifest itself.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vikhr_fast.corpus.read import Document, read_documents
from vikhr_fast.errors import InputError
from vikhr_fast.files import atomic_directory, refuse_existing, sha256_of, write_text
from vikhr_fast.tokenizer.load import Encoder, load_encoder

MANIFEST_NAME = "manifest.json"
INDEX_NAME = "documents.bin"
FORMAT = "vikhr-fast token shards"
VERSION = 1

_BATCH_CHARACTERS = 1 << 22
_INDEX_DTYPE = np.dtype("<i8")
_ADVICE = "rebuild the shards with `vikhr-fast corpus shard`"

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Shard:
    """Encodes documents into token shards for training.

    The same input and tokenizer give the same bytes, with any number of threads.
    """

    input: tuple[Path, ...]
    """Text: .txt (paragraphs), .jsonl, .parquet; .txt and .jsonl also as .gz or .zst."""
    tokenizer: Path
    """Tokenizer: a directory with tokenizer.model or tokenizer.json, or such a file."""
    output: Path
    """Directory to make."""
    text_field: str = "text"
    """JSONL field or Parquet column that holds the text."""
    shard_tokens: int = 1 << 28
    """Tokens after which a new file is begun; a document longer than that is a file of its own."""
    threads: int = 0
    """Threads that encode; 0 is one a core. The library that reads tokenizer.json takes its own."""


def write_shards(options: Shard) -> None:
    """Writes `options.output`, complete or not at all.

    Raises:
        InputError: unreadable or empty input, a tokenizer that cannot be used, or an output that exists.
    """
    if options.shard_tokens < 1:
        raise InputError(f"--shard-tokens {options.shard_tokens}: must be positive")
    if options.threads < 0:
        raise InputError(f"--threads {options.threads}: must not be negative")
    refuse_existing(options.output)
    encoder = encoder_for_shards(options.tokenizer)
    documents = read_documents(options.input, options.text_field)
    with atomic_directory(options.output) as directory, _progress() as progress:
        task = progress.add_task("", documents=0, tokens=0)

        def show(documents: int, tokens: int) -> None:
            progress.update(task, documents=documents, tokens=tokens)

        encode_documents(directory, documents, encoder, options.shard_tokens, options.threads, show)


def encoder_for_shards(tokenizer: Path) -> Encoder:
    """The encoder of a tokenizer; InputError where it cannot begin and end a document."""
    encoder = load_encoder(tokenizer)
    if encoder.bos_id < 0 or encoder.eos_id < 0:
        raise InputError(f"{tokenizer}: no BOS or no EOS piece, which begin and end a document; use one that has both")
    return encoder


def encode_documents(
    directory: Path,
    documents: Iterable[Document],
    encoder: Encoder,
    shard_tokens: int,
    threads: int,
    show: Callable[[int, int], None],
) -> dict[str, Any]:
    """Writes token shards into an empty directory.

    Args:
        directory: where.
        documents: at least one.
        encoder: see `encoder_for_shards`.
        shard_tokens: tokens after which a new file is begun.
        threads: 0 is one a core.
        show: is told, now and then, how many documents and tokens there are.

    Returns:
        The manifest.
    """
    sources: dict[str, dict[str, int]] = {}
    with _Writer(directory, encoder.vocab_size, shard_tokens) as writer:
        for batch in _batches(documents):
            encoded, lengths = _encode(encoder, batch, writer.dtype, threads)
            writer.add(encoded, lengths)
            for document, length in zip(batch, lengths.tolist(), strict=True):
                source = sources.setdefault(str(document.source), {"documents": 0, "tokens": 0, "bytes": 0})
                source["documents"] += 1
                source["tokens"] += length
                source["bytes"] += len(document.text.encode())
            show(writer.num_documents, writer.num_tokens)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "vocab_size": encoder.vocab_size,
        "bos_id": encoder.bos_id,
        "eos_id": encoder.eos_id,
        "tokenizer_sha256": encoder.sha256,
        "dtype": writer.dtype.str,
        "num_documents": writer.num_documents,
        "num_tokens": writer.num_tokens,
        "num_bytes": sum(source["bytes"] for source in sources.values()),
        "index": writer.index,
        "files": writer.files,
        "sources": sources,
    }
    manifest["sha256"] = _manifest_sha256(manifest)
    write_text(directory / MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")
    return manifest


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.fields[documents]:,} documents, {task.fields[tokens]:,} tokens"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Consecutive documents with about `_BATCH_CHARACTERS` characters together."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(
    encoder: Encoder, batch: list[Document], dtype: np.dtype[Any], threads: int
) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """Encodes documents, one after another, each between BOS and EOS.

    Returns:
        ids of all documents [tokens] in `dtype`, and the length of each, BOS and EOS included, [documents].
    """
    ids, offsets = encoder.encode_batch([document.text for document in batch], threads=threads)
    lengths = np.diff(offsets) + 2
    ends = np.cumsum(lengths)
    tokens = np.empty(ends[-1], dtype)
    inner = np.ones(len(tokens), bool)
    inner[ends - lengths] = inner[ends - 1] = False
    tokens[inner] = ids
    tokens[ends - lengths] = encoder.bos_id
    tokens[ends - 1] = encoder.eos_id
    return tokens, lengths


class _HashedFile:
    """A file that is hashed while it is written."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.num_bytes = 0
        self._file: IO[bytes] = path.open("wb")
        self._digest = hashlib.sha256()

    def write(self, data: npt.NDArray[Any]) -> None:
        content = np.ascontiguousarray(data).data.cast("B")
        self._file.write(content)
        self._digest.update(content)
        self.num_bytes += len(content)

    def close(self) -> dict[str, Any]:
        """Closes it; returns its entry for the manifest."""
        self._file.close()
        return {"name": self.name, "bytes": self.num_bytes, "sha256": self._digest.hexdigest()}


class _Writer:
    """Writes the token files and the index. Its attributes are complete after the `with` block."""

    def __init__(self, directory: Path, vocab_size: int, shard_tokens: int) -> None:
        self.dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self.num_documents = self.num_tokens = 0
        self.files: list[dict[str, Any]] = []
        self.index: dict[str, Any] = {}
        self._directory = directory
        self._shard_tokens = shard_tokens
        self._file: _HashedFile | None = None
        self._file_documents = self._file_tokens = 0
        self._index_file = _HashedFile(directory / INDEX_NAME)
        self._index_file.write(np.zeros(1, _INDEX_DTYPE))

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._close_file()
        self.index = self._index_file.close()

    def add(self, tokens: Tokens, lengths: npt.NDArray[np.int64]) -> None:
        """Appends documents: `tokens` of all of them, and the length of each."""
        self._index_file.write((self.num_tokens + np.cumsum(lengths)).astype(_INDEX_DTYPE))
        while len(lengths):
            ends = np.cumsum(lengths)
            fitting = int(np.searchsorted(ends, self._shard_tokens - self._file_tokens, side="right"))
            if fitting == 0 and self._file is not None:
                self._close_file()
                continue
            fitting = max(fitting, 1)  # a document too long for any file has one alone
            self._append(tokens[: ends[fitting - 1]], fitting)
            tokens, lengths = tokens[ends[fitting - 1] :], lengths[fitting:]

    def _append(self, tokens: Tokens, documents: int) -> None:
        if self._file is None:
            self._file = _HashedFile(self._directory / f"tokens-{len(self.files):05d}.bin")
        self._file.write(tokens)
        self._file_documents += documents
        self._file_tokens += len(tokens)
        self.num_documents += documents
        self.num_tokens += len(tokens)

    def _close_file(self) -> None:
        if self._file is not None:
            entry = {**self._file.close(), "documents": self._file_documents, "tokens": self._file_tokens}
            self.files.append(entry)
            self._file, self._file_documents, self._file_tokens = None, 0, 0


def _manifest_sha256(manifest: dict[str, Any]) -> str:
    """The checksum of everything in a manifest but the checksum itself."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()


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
    num_bytes: int
    """Bytes of all documents' text in UTF-8."""
    sha256: str
    """SHA-256 of the manifest, thus of everything here."""
    lengths: npt.NDArray[np.int64]
    """[num_documents] tokens of each document, BOS and EOS included; at least 2."""
    _offsets: npt.NDArray[np.int64]
    _files: tuple[Tokens, ...]
    _first_documents: tuple[int, ...]

    @classmethod
    def open(cls, directory: Path, verify: bool = True) -> "TokenShards":
        """Opens a directory that `vikhr-fast corpus shard` made.

        Args:
            directory: the directory.
            verify: also read every file once and compare its SHA-256; sizes and the manifest are checked always.

        Raises:
            InputError: anything in it is missing, cut short, changed, or of another version.
        """
        manifest = _read_manifest(directory / MANIFEST_NAME)
        for entry in (manifest["index"], *manifest["files"]):
            _check_file(directory / entry["name"], entry, verify)
        offsets = _mapped(directory / INDEX_NAME, _INDEX_DTYPE)
        lengths = np.diff(offsets)
        if offsets[0] != 0 or offsets[-1] != manifest["num_tokens"] or (lengths < 2).any():
            raise InputError(f"{directory / INDEX_NAME}: damaged: not increasing as it must; {_ADVICE}")
        return cls(
            directory=directory,
            vocab_size=manifest["vocab_size"],
            bos_id=manifest["bos_id"],
            eos_id=manifest["eos_id"],
            tokenizer_sha256=manifest["tokenizer_sha256"],
            num_documents=manifest["num_documents"],
            num_tokens=manifest["num_tokens"],
            num_bytes=manifest["num_bytes"],
            sha256=manifest["sha256"],
            lengths=lengths,
            _offsets=offsets,
            _files=tuple(_mapped(directory / e["name"], np.dtype(manifest["dtype"])) for e in manifest["files"]),
            _first_documents=tuple(accumulate((e["documents"] for e in manifest["files"]), initial=0)),
        )

    def document(self, index: int) -> Tokens:
        """The tokens of one document, BOS and EOS included: a read-only view [lengths[index]], not a copy."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        number = bisect_right(self._first_documents, index) - 1
        file_start = self._offsets[self._first_documents[number]]
        return self._files[number][self._offsets[index] - file_start : self._offsets[index + 1] - file_start]


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file; make token shards with `vikhr-fast corpus shard`") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: damaged: not JSON; {_ADVICE}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path}: not a manifest of token shards; {_ADVICE}")
    if manifest.get("version") != VERSION:
        raise InputError(f"{path}: version {manifest.get('version')}, this program reads {VERSION}; {_ADVICE}")
    if manifest.get("sha256") != _manifest_sha256(manifest):
        raise InputError(f"{path}: damaged: its checksum does not fit; {_ADVICE}")
    return manifest


def _check_file(path: Path, entry: dict[str, Any], verify: bool) -> None:
    if not path.is_file():
        raise InputError(f"{path}: missing, but {MANIFEST_NAME} names it; {_ADVICE}")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise InputError(f"{path}: damaged: {size} bytes, must be {entry['bytes']}; {_ADVICE}")
    if verify and sha256_of(path) != entry["sha256"]:
        raise InputError(f"{path}: damaged: its checksum does not fit {MANIFEST_NAME}; {_ADVICE}")


def _mapped(path: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A memory map as a plain array: slices of np.memmap itself are slow to make."""
    return np.asarray(np.memmap(path, dtype, mode="r"))
