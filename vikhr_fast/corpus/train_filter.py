"""`corpus train-filter`: a small encoder learns from the annotations which documents are good (paper, section 3.2)."""

import statistics
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from pydantic import Field
from tyro.conf import Positional, arg

from vikhr_fast.config import validated
from vikhr_fast.corpus.annotate import ANNOTATIONS
from vikhr_fast.corpus.settings import TrainFilterStage
from vikhr_fast.corpus.stage import is_finished, work_of
from vikhr_fast.data.documents import MANIFEST
from vikhr_fast.data.read import read_objects
from vikhr_fast.encoder.classifier import (
    SETTINGS,
    Labels,
    Quality,
    Scorer,
    Scores,
    calibrate,
    calibrated,
    expected_calibration_error,
)
from vikhr_fast.encoder.training import CHECKPOINT, EncoderTraining
from vikhr_fast.errors import InputError
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import sha256_of, write_json, write_text
from vikhr_fast.io.resumable import resumable_directory, scratch_of

_LEAST_DOCUMENTS = 20


@dataclass(frozen=True)
class TrainFilter:
    """Trains a classifier of good and bad documents on annotations, with a model card."""

    input: Annotated[Path, Positional]
    """Directory that `corpus annotate` wrote."""
    output: Path
    """Directory to make: a transformers model, its calibration and threshold, README.md."""
    settings: Annotated[TrainFilterStage, arg(name="")] = field(default_factory=TrainFilterStage)
    """Encoder, training and threshold."""


@dataclass(frozen=True)
class _Record:
    """What is read of a line of annotations."""

    __pydantic_config__ = pydantic.ConfigDict(allow_inf_nan=False)

    text: str
    scores: Annotated[dict[str, float], Field(min_length=1)]


_RECORD = pydantic.TypeAdapter(_Record)


class _Annotated(NamedTuple):
    texts: list[str]
    labels: Labels  # [documents] whether each is good


def train_filter(options: TrainFilter) -> None:
    """Writes `options.output`, complete or not at all; interrupted, the same command goes on after the last epoch.

    The same annotations, settings and threads give the same bytes.

    Raises:
        InputError: unreadable annotations, too few of them or all of one kind, an encoder that cannot be loaded, or a
            precision that no threshold has.
    """
    settings, path = options.settings, options.input / ANNOTATIONS
    if not path.exists():
        raise InputError(f"{path}: no such file; make it with `vikhr-fast corpus annotate`")
    work = work_of("train-filter", settings, input=sha256_of(path))
    if is_finished(options.output, work, settings):
        return
    if settings.retention is not None and settings.precision is not None:
        raise InputError("retention and precision: give one of them; each sets the threshold")
    parts = _split(_read(path, settings.good_score), settings.held_out, path)
    with resumable_directory(options.output, work, settings) as directory:
        torch.manual_seed(settings.seed)  # the new head is random
        scorer = Scorer.load(settings.encoder, settings.revision, has_new_head=True)
        values = _train(scorer, parts, settings, scratch_of(directory) / CHECKPOINT)
        scorer.save(directory)
        write_json(directory / SETTINGS, values)
        write_text(directory / "README.md", _card(settings, values))
        write_json(directory / MANIFEST, {"stage": "train-filter", "work": work, "quality": values["test"]})
    quality = values["test"]
    logger.info(
        f"train-filter: {options.output}: F1 {quality['f1']:.3f}, precision {quality['precision']:.3f}, recall "
        f"{quality['recall']:.3f} on {quality['documents']:,} held-out documents, threshold {values['threshold']:.3f}"
    )


def _train(scorer: Scorer, parts: list[_Annotated], settings: TrainFilterStage, checkpoint: Path) -> dict[str, Any]:
    """Trains the encoder on training, validation and test documents; what SETTINGS says of it."""
    ids, validation_ids, test_ids = (scorer.encode(settings.maximum_tokens, part.texts) for part in parts)
    labels, validation_labels, test_labels = (part.labels for part in parts)
    exact = replace(scorer, dtype=torch.float32)  # on any device

    def loss_of(rows: list[int]) -> torch.Tensor:
        wanted = torch.tensor(labels[rows], dtype=torch.float32, device=scorer.device)
        return F.binary_cross_entropy_with_logits(exact.logits([ids[row] for row in rows]), wanted)

    def validation_loss() -> float:
        logits, wanted = torch.from_numpy(scorer.score(validation_ids)), torch.from_numpy(validation_labels)
        return float(F.binary_cross_entropy_with_logits(logits, wanted.double()))

    training = EncoderTraining(
        stage="train-filter",
        epochs=settings.epochs,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        patience=settings.patience,
    )
    epochs = training.run(scorer.model, len(ids), loss_of, checkpoint, validation_loss)
    slope, offset = calibrate(scorer.score(validation_ids), validation_labels)
    on_validation, on_test = (calibrated(scorer.score(own), slope, offset) for own in (validation_ids, test_ids))
    threshold = _threshold(on_validation, validation_labels, settings)
    return {
        "slope": slope,
        "offset": offset,
        "threshold": threshold,
        "maximum_tokens": settings.maximum_tokens,
        "encoder": settings.encoder,
        "revision": settings.revision,
        "epochs": epochs,
        "validation": asdict(Quality.of(on_validation >= threshold, validation_labels)),
        "test": asdict(Quality.of(on_test >= threshold, test_labels)),
        "calibration_error": expected_calibration_error(on_test, test_labels),
        "documents": {"train": len(ids), "validation": len(validation_ids), "test": len(test_ids)},
        "good_share": float(np.concatenate([part.labels for part in parts]).mean()),
    }


def _read(path: Path, good_score: float) -> _Annotated:
    texts: list[str] = []
    labels: list[bool] = []
    for number, record in read_objects(path):
        one = validated(_RECORD, record, f"{path}: line {number}: not an annotation", "make it again")
        labels.append(statistics.fmean(one.scores.values()) >= good_score)
        texts.append(one.text)
    return _Annotated(texts, np.array(labels, bool))


def _split(annotated: _Annotated, held_out: float, path: Path) -> list[_Annotated]:
    """Training, validation and test documents. Annotations are in the order of their hashes, thus at random."""
    count = len(annotated.texts)
    held = max(round(count * held_out), _LEAST_DOCUMENTS // 4)
    if count < _LEAST_DOCUMENTS:
        raise InputError(f"{path}: {count} annotations; {_LEAST_DOCUMENTS} or more are needed")

    places = {"training": slice(2 * held, count), "validation": slice(held), "test": slice(held, 2 * held)}
    parts = [_Annotated(annotated.texts[place], annotated.labels[place]) for place in places.values()]
    for name, (_, labels) in zip(places, parts, strict=True):
        if labels.all() or not labels.any():
            found = f"all {len(labels)} {name} documents are {'good' if labels.all() else 'bad'}"
            raise InputError(f"{path}: {found}; change good_score, or annotate more")
    return parts


def _threshold(probabilities: Scores, labels: Labels, settings: TrainFilterStage) -> float:
    """The least probability to keep a document at, from the validation documents."""
    if settings.retention is not None:
        ordered = np.sort(probabilities)[::-1]
        return float(ordered[min(len(ordered), max(1, round(settings.retention * len(ordered)))) - 1])
    if settings.precision is None:
        return 0.5
    precisions = {threshold: labels[probabilities >= threshold].mean() for threshold in np.unique(probabilities)}
    for threshold, precision in precisions.items():
        if precision >= settings.precision:
            return float(threshold)
    best = max(precisions.values())
    raise InputError(f"precision {settings.precision}: no threshold has it, the best has {best:.3f}; ask for less")


def _card(settings: TrainFilterStage, values: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {q['documents']:,} | {q['kept']:,} | {q['precision']:.3f} | {q['recall']:.3f} | {q['f1']:.3f} |"
        for name, q in (("validation", values["validation"]), ("test", values["test"]))
    ]
    aim = "a probability of 0.5"
    if settings.retention is not None:
        aim = f"keeping {settings.retention:.0%} of documents"
    elif settings.precision is not None:
        aim = f"a precision of {settings.precision:.0%}"
    table = "\n".join(rows)
    return f"""---
library_name: transformers
pipeline_tag: text-classification
base_model: {settings.encoder}
---

# Quality filter

Tells good documents from bad ones. {settings.encoder}, fine-tuned on documents that a language model
scored from 1 to 5 for informativeness, usefulness for studying, grammar, style and safety; good is a
mean of {settings.good_score:g} or more ({values["good_share"]:.1%} of them were).

Probability = sigmoid({values["slope"]:.6g} · logit + {values["offset"]:.6g}), calibrated on the validation
documents (expected calibration error on the test documents {values["calibration_error"]:.3f}).
Threshold {values["threshold"]:.6g}, set for {aim}.
The first {settings.maximum_tokens} tokens are looked at.
Best of at most {settings.epochs} epochs: {values["epochs"]}. Training documents: {values["documents"]["train"]:,}.

| part | documents | kept | precision | recall | F1 |
|---|---|---|---|---|---|
{table}

Its judgement is that of the annotating model, of the languages and kinds of text that it was shown.
Do not use it to judge people or to moderate what they say.
"""
