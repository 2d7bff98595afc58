"""Where `corpus build` puts what each stage makes, and its own notes beside that."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pydantic

from vikhr_fast.config import read_record
from vikhr_fast.data.documents import MANIFEST

COLLECTED = "1-collect"
DEDUPLICATED = "2-dedup"
SCRUBBED = "3-scrub"
DECONTAMINATED = "4-decontaminate"
ANNOTATED = "5-annotations"
CLASSIFIER = "6-classifier"
FILTERED = "7-filter"
SHARDS = "8-shards"

DOCUMENT_STAGES = (COLLECTED, DEDUPLICATED, SCRUBBED, DECONTAMINATED, FILTERED)
"""Those that write documents."""

TIMES = "times.json"
"""Seconds of each stage's last, uninterrupted try."""
TOKENS = "tokens.json"
"""Tokens by source in the first and the last of the documents; see `token_counts`."""
REPORT = "report.html"


_ADVICE = "remove it"
_Notes = TypeVar("_Notes")


@dataclass(frozen=True)
class TokenCounts:
    """The tokens of a stage's documents."""

    of: list[str]
    """The checksums of documents and tokenizer."""
    tokens: dict[str, int]
    """By source."""


@dataclass(frozen=True)
class _Shards:
    tokens: int


@dataclass(frozen=True)
class _Mixed:
    shards: dict[str, _Shards] = field(default_factory=dict)


@dataclass(frozen=True)
class _Trained:
    quality: dict[str, float] = field(default_factory=dict)


_TIMES, _TOKENS = pydantic.TypeAdapter(dict[str, float]), pydantic.TypeAdapter(dict[str, TokenCounts])
_MIXED, _TRAINED = pydantic.TypeAdapter(_Mixed), pydantic.TypeAdapter(_Trained)


def read_times(corpus: Path) -> dict[str, float]:
    """Seconds by stage. As of all notes: empty where there is no such file yet, InputError where it is damaged."""
    return _read(corpus / TIMES, _TIMES)


def read_token_counts(file: Path) -> dict[str, TokenCounts]:
    """Of the first and the last stage, by name."""
    return _read(file, _TOKENS)


def read_shard_tokens(corpus: Path) -> dict[str, int]:
    """Tokens in the shards, by split/source."""
    return {name: own.tokens for name, own in _read(corpus / SHARDS / MANIFEST, _MIXED).shards.items()}


def read_quality(corpus: Path) -> dict[str, float]:
    """The measures of the classifier on held-out documents."""
    return _read(corpus / CLASSIFIER / MANIFEST, _TRAINED).quality


def _read(path: Path, kind: "pydantic.TypeAdapter[_Notes]") -> _Notes:
    return read_record(path, kind, _ADVICE) if path.exists() else kind.validate_python({})
