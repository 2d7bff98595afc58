"""`corpus decontaminate`: documents that share long word n-grams with evaluation sets."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from tyro.conf import Positional, arg

from vikhr_fast.corpus.minhash import Hashes, MinHasher, ShingleSets
from vikhr_fast.corpus.settings import DecontaminateStage, EvaluationSet
from vikhr_fast.corpus.stage import Transformed, is_finished, map_parts, work_of
from vikhr_fast.data.documents import Counts, Documents, add_counts, with_meta
from vikhr_fast.data.native_texts import IntArray
from vikhr_fast.data.read import Columns
from vikhr_fast.data.sources import checksums, read_source
from vikhr_fast.errors import InputError, require
from vikhr_fast.io.console import logger

CONTAMINATED = "contaminated.jsonl"
_BATCH = 4096
_SHOWN_CHARACTERS = 300


def _settings(
    sets: dict[str, Path], text: tuple[str, ...] = ("text",), words: int = 13, mark: bool = False
) -> DecontaminateStage:
    """The stage's settings as flags.

    Args:
        sets: Evaluation sets by name: files, patterns, or data sets hf:OWNER/NAME@COMMIT[/CONFIG[/SPLIT]].
        text: Their fields that hold text; each is looked for by itself.
        words: Length of an n-gram in words.
        mark: Keep the documents and add the sets' names to their `meta`.
    """
    chosen = {name: EvaluationSet(input=(str(path),), text=text) for name, path in sets.items()}
    return DecontaminateStage(sets=chosen, words=words, action="mark" if mark else "drop")


@dataclass(frozen=True)
class Decontaminate:
    """Drops or marks documents that share an n-gram of words with a text of an evaluation set.

    Words are compared without case, punctuation and the difference of ё and е. Which documents, and how much they
    share, is in OUTPUT/contaminated.jsonl.
    """

    input: Annotated[Path, Positional]
    """Documents that an earlier stage wrote."""
    output: Path
    """Directory to make."""
    settings: Annotated[DecontaminateStage, arg(name="", constructor=_settings)]
    """Evaluation sets and what becomes of documents that are found."""


Grams = Hashes
"""The n-grams of an evaluation set, ascending."""


def decontaminate(options: Decontaminate) -> None:
    """Writes `options.output`, complete or not at all; interrupted, the same command goes on.

    Raises:
        InputError: unreadable documents or evaluation sets, or sets without a text that is long enough.
    """
    documents, settings = Documents.open(options.input), options.settings
    if not settings.sets:
        raise InputError("--sets: name at least one evaluation set")
    require(settings, words=(1 <= settings.words <= 1000, "1 to 1000"))
    work = work_of("decontaminate", settings, input=documents.sha256, files=evaluation_files(settings))
    if is_finished(options.output, work, settings):
        return
    hasher = MinHasher(shingle=f"word:{settings.words}")
    grams = {name: grams_of(name, evaluation, hasher) for name, evaluation in settings.sets.items()}

    def transform(table: pa.Table) -> Transformed:
        return _transform(table, grams, hasher, settings.action == "drop")

    map_parts(documents, options.output, work, settings, transform, CONTAMINATED)


def evaluation_files(settings: DecontaminateStage) -> dict[str, str]:
    """The files of all sets with their checksums; InputError where one is missing."""
    return checksums(pattern for evaluation in settings.sets.values() for pattern in evaluation.input)


def evaluation_texts(evaluation: EvaluationSet) -> Iterator[str]:
    """The texts of an evaluation set, each field by itself."""
    for pattern in evaluation.input:
        # For the reader all fields together are the record's text; each counts by itself here.
        for record in read_source(Path(pattern), Columns(evaluation.text, evaluation.text)):
            yield from (value for value in record.fields.values() if value and value.strip())


def grams_of(name: str, evaluation: EvaluationSet, hasher: MinHasher) -> Grams:
    """The n-grams of an evaluation set; InputError where none of its texts is long enough."""
    grams: Grams = np.empty(0, np.uint64)
    count = short = 0
    texts = evaluation_texts(evaluation)
    while batch := list(islice(texts, _BATCH)):
        sets = hasher.shingles(batch)
        grams = np.union1d(grams, sets.values[np.repeat(~sets.is_short, np.diff(sets.offsets))])
        count += len(batch)
        short += int(sets.is_short.sum())
    if not len(grams):
        raise InputError(f"decontaminate: set {name}: no text in it is as long as an n-gram; take fewer words")
    logger.info(f"decontaminate: set {name}: {count:,} texts, {short:,} of them too short to be found")
    return grams


def _transform(table: pa.Table, grams: dict[str, Grams], hasher: MinHasher, drops: bool) -> Transformed:
    counts = Counts()
    notes: list[dict[str, Any]] = []
    found: dict[int, list[str]] = {}
    sources = table["source"].to_pylist()
    if table.num_rows:
        shingles = hasher.shingles(table["text"].combine_chunks())
        for name, own in grams.items():
            shared = shared_grams(own, shingles)
            for row in np.flatnonzero(shared).tolist():
                found.setdefault(row, []).append(name)
                text = table["text"][row].as_py()
                notes.append(
                    {
                        "id": table["id"][row].as_py(),
                        "set": name,
                        "shared": int(shared[row]),
                        "of": int(shingles.offsets[row + 1] - shingles.offsets[row]),
                        "text": text[:_SHOWN_CHARACTERS],
                    }
                )
                add_counts(counts, {sources[row]: {f"in_{name}": 1}})
    for source in dict.fromkeys(sources):
        add_counts(counts, {source: {"contaminated": sum(sources[row] == source for row in found)}})
    if drops:
        table = table.filter(pa.array([row not in found for row in range(table.num_rows)], pa.bool_()))
    elif found:
        table = with_meta(table, {row: {"contaminated": names} for row, names in found.items()})
    return Transformed(table, counts, notes)


def shared_grams(grams: Grams, shingles: ShingleSets) -> IntArray:
    """[texts] how many n-grams of each, at least one text, are in the evaluation set."""
    places = np.minimum(np.searchsorted(grams, shingles.values), len(grams) - 1)
    is_found = grams[places] == shingles.values  # [n-grams of all texts], added up by text
    shared: IntArray = np.add.reduceat(is_found.astype(np.int64), shingles.offsets[:-1])
    shared[shingles.is_short] = 0
    return shared
