"""`corpus filter`: the documents that the classifier finds good."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pyarrow as pa
from tyro.conf import Positional, arg

from vikhr_fast.console import logger
from vikhr_fast.corpus.classifier import Classifier
from vikhr_fast.corpus.documents import Counts, Documents, add_counts
from vikhr_fast.corpus.settings import FilterStage
from vikhr_fast.corpus.stage import Transformed, map_parts, read_work, work_of

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
    """Writes `options.output`, complete or not at all; interrupted, the same command goes on."""
    filter_documents(Documents.open(options.input), options.classifier, options.output, options.settings)


def filter_documents(documents: Documents, directory: Path, output: Path, settings: FilterStage) -> None:
    """As `filter_corpus`.

    Raises:
        InputError: no classifier there, no GPU for `cuda`, or a threshold that no document reaches.
    """
    classifier = Classifier.load(directory, settings.device)
    threshold = classifier.threshold if settings.threshold is None else settings.threshold
    start, scored = time.monotonic(), 0

    def transform(table: pa.Table) -> Transformed:
        nonlocal scored
        probabilities = classifier.probabilities(table["text"].to_pylist(), settings.batch_tokens)
        is_kept = probabilities >= threshold
        scored += len(is_kept)
        counts = Counts()
        metas = []
        for source, meta, kept, value in zip(
            table["source"].to_pylist(), table["meta"].to_pylist(), is_kept, probabilities.tolist(), strict=True
        ):
            add_counts(counts, {source: {"filtered_out": int(not kept)}})
            metas.append(
                json.dumps({**json.loads(meta), "quality": round(value, _DIGITS)}, ensure_ascii=False, sort_keys=True)
            )
        table = table.set_column(3, "meta", pa.array(metas, pa.string()))
        return Transformed(table.filter(pa.array(is_kept)), counts, [])

    map_parts(documents, output, filter_work(documents, directory, settings), transform)
    seconds = time.monotonic() - start
    logger.info(f"filter: {scored:,} documents in {seconds:.1f} s, {scored / max(seconds, 1e-9):,.0f} a second")


def filter_work(documents: Documents, directory: Path, settings: FilterStage) -> dict[str, object]:
    """What the filtered documents depend on."""
    return work_of("filter", settings, input=documents.sha256, classifier=read_work(directory))
