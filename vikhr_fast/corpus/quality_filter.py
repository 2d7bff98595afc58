"""`corpus filter`: the documents that the classifier finds good."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pyarrow as pa
from tyro.conf import Positional, arg

from vikhr_fast.corpus.settings import FilterStage, TrainFilterStage
from vikhr_fast.corpus.stage import Transformed, is_finished, map_parts, read_work, work_of
from vikhr_fast.data.documents import Counts, Documents, add_counts, with_meta
from vikhr_fast.encoder.classifier import Classifier
from vikhr_fast.io.console import logger

_DIGITS = 4  # of the probability in `meta`


@dataclass(frozen=True)
class Filter:
    """Keeps the documents that a classifier finds good, with their probability as `quality` in `meta`."""

    input: Annotated[Path, Positional]
    """Documents that an earlier stage wrote."""
    classifier: Path
    """Directory that `corpus train-filter` wrote."""
    output: Path
    """Directory to make."""
    settings: Annotated[FilterStage, arg(name="")] = field(default_factory=FilterStage)
    """Threshold and machine."""


def filter_corpus(options: Filter) -> None:
    """Writes `options.output`, complete or not at all; interrupted, the same command goes on.

    Raises:
        InputError: no classifier there, no GPU for `cuda`, or a threshold that no document reaches.
    """
    documents, settings = Documents.open(options.input), options.settings
    work = work_of("filter", settings, input=documents.sha256, classifier=read_work(options.classifier))
    all_settings = {"settings": settings, "classifier": {"settings": TrainFilterStage()}}
    if is_finished(options.output, work, all_settings):
        return
    classifier = Classifier.load(options.classifier, settings.device)
    threshold = classifier.threshold if settings.threshold is None else settings.threshold
    start, scored = time.monotonic(), 0

    def transform(table: pa.Table) -> Transformed:
        nonlocal scored
        probabilities = classifier.probabilities(table["text"].to_pylist(), settings.batch_tokens)
        is_kept = probabilities >= threshold
        scored += len(is_kept)
        counts = Counts()
        for source, kept in zip(table["source"].to_pylist(), is_kept.tolist(), strict=True):
            add_counts(counts, {source: {"filtered_out": int(not kept)}})
        qualities = enumerate(probabilities.tolist())
        table = with_meta(table, {row: {"quality": round(value, _DIGITS)} for row, value in qualities})
        return Transformed(table.filter(pa.array(is_kept)), counts, [])

    map_parts(documents, options.output, work, all_settings, transform)
    seconds = time.monotonic() - start
    logger.info(f"filter: {scored:,} documents in {seconds:.1f} s, {scored / max(seconds, 1e-9):,.0f} a second")
