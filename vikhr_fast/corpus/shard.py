"""`corpus shard`: documents encoded into token shards."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vikhr_fast.data.read import Document, read_documents
from vikhr_fast.data.text_lines import MAX_MEGABYTES, line_bytes
from vikhr_fast.data.token_shards import (
    FORMAT,
    INDEX_DTYPE,
    INDEX_NAME,
    MANIFEST_NAME,
    VERSION,
    Mask,
    Tokens,
)
from vikhr_fast.errors import InputError, require
from vikhr_fast.io.files import atomic_directory, json_text, refuse_existing, write_text
from vikhr_fast.io.manifest import manifest_sha256
from vikhr_fast.io.progress import progress_bar
from vikhr_fast.tokenizer.load import Encoder, load_encoder
from vikhr_fast.tokenizer.lost_bytes import LostBytes

_BATCH_CHARACTERS = 1 << 22
_KINDS = ("tokens", "trained")  # of files


class Encoded(NamedTuple):
    """Documents as tokens, one after another."""

    tokens: Tokens  # [T], each document's first one is never predicted
    lengths: npt.NDArray[np.int64]  # [documents]
    sources: list[str]  # [documents]
    num_bytes: list[int]  # [documents] of the text that is predicted, in UTF-8
    trained: Mask | None = None  # [T], None where every token is predicted


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
    max_line: float = MAX_MEGABYTES
    """MB that a line, or a document of a .txt file, may take; a longer one is refused."""
    shard_tokens: int = 1 << 28
    """Tokens after which a new file is begun; a document longer than that is a file of its own."""
    threads: int = 0
    """Threads that encode; 0 is one a core. The library that reads tokenizer.json takes its own."""


def write_shards(options: Shard) -> None:
    """Writes `options.output`, complete or not at all.

    Raises:
        InputError: unreadable or empty input, a tokenizer that cannot be used, or an output that exists.
    """
    require(
        options,
        shard_tokens=(options.shard_tokens >= 1, "positive"),
        threads=(options.threads >= 0, "0 or more"),
    )
    refuse_existing(options.output)
    encoder = encoder_for_shards(options.tokenizer)
    documents = read_documents(options.input, options.text_field, line_bytes(options))
    with atomic_directory(options.output) as directory, progress_bar("shard") as advance:
        encode_documents(directory, documents, encoder, options.shard_tokens, options.threads, advance)


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
    advance: Callable[[int], None],
) -> None:
    """Writes token shards into an empty directory; warns of bytes that the tokenizer has no token for.

    Args:
        directory: where.
        documents: at least one.
        encoder: see `encoder_for_shards`.
        shard_tokens: tokens after which a new file is begun.
        threads: 0 is one a core.
        advance: is told, now and then, how many more documents are done.
    """
    dtype, lost = token_dtype(encoder), LostBytes(encoder)

    def encoded() -> Iterator[Encoded]:
        for batch in _batches(documents):
            lost.count(document.text for document in batch)
            yield _encode(encoder, batch, dtype, threads)

    write_encoded(directory, encoded(), encoder, shard_tokens, advance)
    lost.warn()


def token_dtype(encoder: Encoder) -> np.dtype[Any]:
    """What the tokens of a vocabulary are stored as."""
    return np.dtype("<u2" if encoder.vocab_size <= 1 << 16 else "<u4")


def write_encoded(
    directory: Path,
    batches: Iterable[Encoded],
    encoder: Encoder,
    shard_tokens: int,
    advance: Callable[[int], None] = lambda _documents: None,
) -> None:
    """As `encode_documents`, from documents that are encoded; either all batches have `trained` or none."""
    sources: dict[str, dict[str, int]] = {}
    with _Writer(directory, shard_tokens) as writer:
        for batch in batches:
            writer.add(batch.tokens, batch.lengths, batch.trained)
            for name, length, num_bytes in zip(batch.sources, batch.lengths.tolist(), batch.num_bytes, strict=True):
                source = sources.setdefault(name, {"documents": 0, "tokens": 0, "bytes": 0})
                source["documents"] += 1
                source["tokens"] += length
                source["bytes"] += num_bytes
            advance(len(batch.sources))
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "vocab_size": encoder.vocab_size,
        "bos_id": encoder.bos_id,
        "eos_id": encoder.eos_id,
        "tokenizer_sha256": encoder.sha256,
        "dtype": token_dtype(encoder).str,
        "num_documents": sum(source["documents"] for source in sources.values()),
        "num_tokens": writer.num_tokens,
        "num_trained": writer.num_trained,
        "num_bytes": sum(source["bytes"] for source in sources.values()),
        "index": writer.index,
        "files": writer.files,
        "sources": sources,
    }
    manifest["sha256"] = manifest_sha256(manifest)
    write_text(directory / MANIFEST_NAME, json_text(manifest, ensure_ascii=True, indent=2) + "\n")


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


def _encode(encoder: Encoder, batch: list[Document], dtype: np.dtype[Any], threads: int) -> Encoded:
    """Encodes documents, one after another, each between BOS and EOS."""
    ids, offsets = encoder.encode_batch([document.text for document in batch], threads=threads)
    lengths = np.diff(offsets) + 2
    ends = np.cumsum(lengths)
    tokens = np.empty(ends[-1], dtype)
    inner = np.ones(len(tokens), bool)
    inner[ends - lengths] = inner[ends - 1] = False
    tokens[inner] = ids
    tokens[ends - lengths] = encoder.bos_id
    tokens[ends - 1] = encoder.eos_id
    sizes = [len(document.text.encode()) for document in batch]
    return Encoded(tokens, lengths, [str(document.source) for document in batch], sizes)


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

    def __init__(self, directory: Path, shard_tokens: int) -> None:
        self.num_tokens = self.num_trained = 0
        self.files: list[dict[str, Any]] = []
        self.index: dict[str, Any] = {}
        self._directory = directory
        self._shard_tokens = shard_tokens
        self._open: list[_HashedFile] = []  # of tokens, and of what is trained where not everything is
        self._documents = self._tokens = 0  # in these
        self._index_file = _HashedFile(directory / INDEX_NAME)
        self._index_file.write(np.zeros(1, INDEX_DTYPE))

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._close_file()
        self.index = self._index_file.close()

    def add(self, tokens: Tokens, lengths: npt.NDArray[np.int64], trained: Mask | None) -> None:
        """Appends documents: `tokens` of all of them, the length of each, and which tokens are predicted."""
        self._index_file.write((self.num_tokens + np.cumsum(lengths)).astype(INDEX_DTYPE))
        self.num_tokens += len(tokens)
        self.num_trained += len(tokens) - len(lengths) if trained is None else int(trained.sum())
        columns = [tokens] if trained is None else [tokens, trained]
        while len(lengths):
            ends = np.cumsum(lengths)
            fitting = int(np.searchsorted(ends, self._shard_tokens - self._tokens, side="right"))
            if fitting == 0 and self._open:
                self._close_file()
                continue
            fitting = max(fitting, 1)  # a document too long for any file has one alone
            end = int(ends[fitting - 1])
            if not self._open:
                number = f"{len(self.files):05d}.bin"
                self._open = [_HashedFile(self._directory / f"{kind}-{number}") for kind in _KINDS[: len(columns)]]
            for file, column in zip(self._open, columns, strict=True):
                file.write(column[:end])
            self._documents += fitting
            self._tokens += end
            columns, lengths = [column[end:] for column in columns], lengths[fitting:]

    def _close_file(self) -> None:
        if self._open:
            entry, *masks = (file.close() for file in self._open)
            entry |= {"documents": self._documents, "tokens": self._tokens}
            self.files.append({**entry, "trained": masks[0]} if masks else entry)
            self._open, self._documents, self._tokens = [], 0, 0
