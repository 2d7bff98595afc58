"""`corpus train-filter`: a small encoder learns from the annotations which documents are good (paper, section 3.2)."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from tyro.conf import Positional, arg

from vikhr_fast.console import logger
from vikhr_fast.corpus.annotate import ANNOTATIONS
from vikhr_fast.corpus.classifier import (
    SETTINGS,
    Quality,
    Scores,
    calibrate,
    calibrated,
    device_of,
    encode,
    expected_calibration_error,
    load_encoder,
    save_encoder,
)
from vikhr_fast.corpus.documents import MANIFEST
from vikhr_fast.corpus.fit import Examples, Labels, Training
from vikhr_fast.corpus.settings import TrainFilterStage
from vikhr_fast.corpus.stage import work_of
from vikhr_fast.errors import InputError
from vikhr_fast.files import refuse_existing, sha256_of, write_text
from vikhr_fast.resumable import resumable_directory, scratch_of

CHECKPOINT = "checkpoint.pt"
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


class _Annotated(NamedTuple):
    texts: list[str]
    labels: Labels  # [documents]


class _Result(NamedTuple):
    slope: float
    offset: float
    threshold: float
    epochs: int
    report: dict[str, Any]


def train_filter(options: TrainFilter) -> None:
    """Writes `options.output`, complete or not at all; interrupted, the same command goes on after the last epoch.

    The same annotations, settings and threads give the same bytes.

    Raises:
        InputError: unreadable annotations, too few of them or all of one kind, an encoder that cannot be loaded, or a
            precision that no threshold has.
    """
    settings = options.settings
    refuse_existing(options.output)
    path = options.input / ANNOTATIONS
    annotated = _read(path, settings.good_score)
    work = train_filter_work(options.input, settings)
    if settings.retention is not None and settings.precision is not None:
        raise InputError("retention and precision: give one of them; each sets the threshold")
    parts = _split(annotated, settings.held_out, path)
    with resumable_directory(options.output, work) as directory:
        model, tokenizer, result = _trained(parts, settings, scratch_of(directory) / CHECKPOINT)
        _write(directory, settings, model, tokenizer, result, work)
    quality = result.report["test"]
    logger.info(
        f"train-filter: {options.output}: F1 {quality['f1']:.3f}, precision {quality['precision']:.3f}, recall "
        f"{quality['recall']:.3f} on {quality['documents']:,} held-out documents, threshold {result.threshold:.3f}"
    )


def _trained(parts: list[_Annotated], settings: TrainFilterStage, checkpoint: Path) -> tuple[Any, Any, _Result]:
    """Model, tokenizer, and how it went, of training, validation and test documents."""
    torch.manual_seed(settings.seed)  # the new head is random
    tokenizer, model = load_encoder(settings.encoder, settings.revision, new_head=True)
    device, dtype = device_of("auto")
    training = Training(model.to(device), tokenizer, dtype, settings, checkpoint)
    train, validation, test = (
        Examples(encode(tokenizer, part.texts, settings.maximum_tokens), part.labels) for part in parts
    )
    epochs = training.run(train, validation)
    slope, offset = calibrate(training.logits_of(validation.ids), validation.labels)
    on_validation, on_test = (calibrated(training.logits_of(part.ids), slope, offset) for part in (validation, test))
    threshold = _threshold(on_validation, validation.labels, settings)
    report: dict[str, Any] = {
        "validation": asdict(Quality.of(on_validation >= threshold, validation.labels)),
        "test": asdict(Quality.of(on_test >= threshold, test.labels)),
        "calibration_error": expected_calibration_error(on_test, test.labels),
        "documents": {"train": len(train.ids), "validation": len(validation.ids), "test": len(test.ids)},
        "good_share": float(np.concatenate([part.labels for part in parts]).mean()),
    }
    return model, tokenizer, _Result(slope, offset, threshold, epochs, report)


def train_filter_work(annotations: Path, settings: TrainFilterStage) -> dict[str, Any]:
    """What the classifier depends on."""
    return work_of("train-filter", settings, input=sha256_of(annotations / ANNOTATIONS))


def _read(path: Path, good_score: float) -> _Annotated:
    texts: list[str] = []
    labels: list[bool] = []
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                labels.append(sum(record["scores"].values()) / len(record["scores"]) >= good_score)
                texts.append(record["text"])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; make it with `vikhr-fast corpus annotate`") from None
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        raise InputError(f"{path}: line {len(texts) + 1}: not an annotation; make it again") from None
    return _Annotated(texts, np.array(labels, bool))


def _split(annotated: _Annotated, held_out: float, path: Path) -> list[_Annotated]:
    """Training, validation and test documents. Annotations are in the order of their hashes, thus at random."""
    count = len(annotated.texts)
    held = max(round(count * held_out), _LEAST_DOCUMENTS // 4)
    if count < _LEAST_DOCUMENTS:
        raise InputError(f"{path}: {count} annotations; {_LEAST_DOCUMENTS} or more are needed")

    def part(start: int, end: int) -> _Annotated:
        return _Annotated(annotated.texts[start:end], annotated.labels[start:end])

    parts = [part(2 * held, count), part(0, held), part(held, 2 * held)]
    for name, own in zip(("training", "validation", "test"), parts, strict=True):
        if own.labels.all() or not own.labels.any():
            kind = "good" if own.labels.all() else "bad"
            found = f"all {len(own.labels)} {name} documents are {kind}"
            raise InputError(f"{path}: {found}; change good_score, or annotate more")
    return parts


def _threshold(probabilities: Scores, labels: Labels, settings: TrainFilterStage) -> float:
    """The least probability to keep a document at, from the validation documents."""
    if settings.retention is not None:
        ordered = np.sort(probabilities)[::-1]
        return float(ordered[min(len(ordered), max(1, round(settings.retention * len(ordered)))) - 1])
    if settings.precision is None:
        return 0.5
    for threshold in np.unique(probabilities):
        kept = probabilities >= threshold
        if labels[kept].mean() >= settings.precision:
            return float(threshold)
    best = max(labels[probabilities >= threshold].mean() for threshold in np.unique(probabilities))
    raise InputError(f"precision {settings.precision}: no threshold has it, the best has {best:.3f}; ask for less")


def _write(
    directory: Path, settings: TrainFilterStage, model: Any, tokenizer: Any, result: _Result, work: dict[str, Any]
) -> None:
    save_encoder(directory, model, tokenizer)
    values = {
        "slope": result.slope,
        "offset": result.offset,
        "threshold": result.threshold,
        "maximum_tokens": settings.maximum_tokens,
        "encoder": settings.encoder,
        "revision": settings.revision,
        "epochs": result.epochs,
        **result.report,
    }
    write_text(directory / SETTINGS, json.dumps(values, indent=2) + "\n")
    write_text(directory / "README.md", _card(settings, result))
    manifest = {"stage": "train-filter", "work": work, "quality": result.report["test"]}
    write_text(directory / MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=2) + "\n")


def _card(settings: TrainFilterStage, result: _Result) -> str:
    report = result.report
    rows = [
        f"| {name} | {q['documents']:,} | {q['kept']:,} | {q['precision']:.3f} | {q['recall']:.3f} | {q['f1']:.3f} |"
        for name, q in (("validation", report["validation"]), ("test", report["test"]))
    ]
    aim = "a probability of 0.5"
    if settings.retention is not None:
        aim = f"keeping {settings.retention:.0%} of documents"
    elif settings.precision is not None:
        aim = f"a precision of {settings.precision:.0%}"
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-classification",
            f"base_model: {settings.encoder}",
            "---",
            "",
            "# Quality filter",
            "",
            f"Tells good documents from bad ones. {settings.encoder}, fine-tuned on documents that a language model",
            "scored from 1 to 5 for informativeness, usefulness for studying, grammar, style and safety; good is a",
            f"mean of {settings.good_score:g} or more ({report['good_share']:.1%} of them were).",
            "",
            f"Probability = sigmoid({result.slope:.6g} · logit + {result.offset:.6g}), calibrated on the validation",
            f"documents (expected calibration error on the test documents {report['calibration_error']:.3f}).",
            f"Threshold {result.threshold:.6g}, set for {aim}.",
            f"The first {settings.maximum_tokens} tokens are looked at.",
            f"Best of at most {settings.epochs} epochs: {result.epochs}. Training documents:"
            f" {report['documents']['train']:,}.",
            "",
            "| part | documents | kept | precision | recall | F1 |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "Its judgement is that of the annotating model, of the languages and kinds of text that it was shown.",
            "Do not use it to judge people or to moderate what they say.",
            "",
        ]
    )
