"""The quality filter: learnt from annotations, calibrated, applied in batches of like length, the same every time."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from corpora import directory_bytes, make_documents, texts_of, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_noise import make_encoder, read_paragraphs

import vikhr_fast
from vikhr_fast.corpus import stage
from vikhr_fast.corpus.annotate import ANNOTATIONS
from vikhr_fast.corpus.quality_filter import Filter, filter_corpus
from vikhr_fast.corpus.settings import FilterStage, TrainFilterStage
from vikhr_fast.corpus.train_filter import TrainFilter, train_filter
from vikhr_fast.data.documents import Documents
from vikhr_fast.encoder import training as encoder_training
from vikhr_fast.encoder.classifier import (
    Classifier,
    Quality,
    batches_by_length,
    calibrate,
    calibrated,
    expected_calibration_error,
)
from vikhr_fast.errors import InputError
from vikhr_fast.experiments.noise import SEEN, bad_documents
from vikhr_fast.io.files import atomic_file
from vikhr_fast.model.devices import device_of

pytestmark = pytest.mark.slow

DATA = Path(vikhr_fast.__file__).parent / "experiments" / "sample" / "data" / "russian"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an `encoder` and `annotations`."""
    root = tmp_path_factory.mktemp("filter")
    good = read_paragraphs(sorted(DATA.glob("*.txt")))[:120]
    bad = bad_documents(SEEN, 120, good, seed=1)
    make_encoder(root / "encoder", [*good, *bad], seed=0)
    records = [{"text": text, "scores": {"a": 4, "b": 5}} for text in good]
    records += [{"text": text, "scores": {"a": 1, "b": 2}} for text in bad]
    random.Random(0).shuffle(records)
    (root / "annotations").mkdir()
    write_jsonl(root / "annotations" / ANNOTATIONS, records)
    return root


def trained(root: Path, output: Path, **more: float) -> Path:
    # No patience ends it early, which would depend on the last bits of a loss, so on the CPU.
    values = {"maximum_tokens": 48, "learning_rate": 1e-3, "epochs": 6, "patience": 6, "batch": 8, **more}
    settings = TrainFilterStage(encoder=str(root / "encoder"), **values)  # type: ignore[arg-type]
    train_filter(TrainFilter(root / "annotations", output, settings))
    return output


@pytest.fixture(scope="module")
def classifier(root: Path) -> Path:
    return trained(root, root / "classifier")


def test_good_and_bad_documents_are_told_apart(classifier: Path) -> None:
    report = json.loads((classifier / "filter.json").read_text())
    assert report["test"]["f1"] > 0.8
    assert report["test"]["documents"] == 24
    assert 0.4 < report["good_share"] < 0.6
    card = (classifier / "README.md").read_text()
    assert f"| {report['test']['f1']:.3f} |" in card
    assert "base_model:" in card


def test_the_same_annotations_give_the_same_bytes(root: Path, classifier: Path, tmp_path: Path) -> None:
    assert directory_bytes(trained(root, tmp_path / "again")) == directory_bytes(classifier)


def test_a_killed_training_goes_on_after_its_last_epoch(
    root: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = 0

    @contextmanager
    def save_and_stop(path: Path) -> Iterator[IO[bytes]]:
        nonlocal epochs
        with atomic_file(path) as file:
            yield file
        epochs += 1
        if epochs == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(encoder_training, "atomic_file", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        trained(root, tmp_path / "again")
    trained(root, tmp_path / "again")
    assert directory_bytes(tmp_path / "again") == directory_bytes(classifier)
    assert epochs == 6
    assert not (tmp_path / "again.partial").exists()


def test_transformers_loads_it_and_agrees(classifier: Path) -> None:
    from transformers import pipeline

    loaded = Classifier.load(classifier, "cpu")
    texts = [*read_paragraphs(sorted(DATA.glob("*.txt")))[:9], "", "купить " * 30]
    ours = loaded.probabilities(texts, 64)
    score = pipeline("text-classification", model=str(classifier), function_to_apply="none")
    logits = np.array([result["score"] for result in score(texts, truncation=True, max_length=48)])
    assert np.abs(ours - calibrated(logits, loaded.slope, loaded.offset)).max() < 1e-5
    assert np.abs(ours - loaded.probabilities(texts, 100_000)).max() < 1e-5


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_the_threshold_keeps_the_stated_share(root: Path, tmp_path: Path, share: float) -> None:
    report = json.loads((trained(root, tmp_path / "c", retention=share, epochs=2) / "filter.json").read_text())
    assert report["validation"]["kept"] == round(share * report["validation"]["documents"])


def test_the_threshold_has_the_stated_precision(root: Path, tmp_path: Path) -> None:
    report = json.loads((trained(root, tmp_path / "c", precision=0.9, epochs=3) / "filter.json").read_text())
    assert report["validation"]["precision"] >= 0.9


def test_training_stops_when_the_validation_loss_does_not_fall(root: Path, tmp_path: Path) -> None:
    wild = trained(root, tmp_path / "c", learning_rate=3.0, patience=1, epochs=50)
    assert json.loads((wild / "filter.json").read_text())["epochs"] < 49


def test_filtering_keeps_the_good_and_goes_on_after_a_kill(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = read_paragraphs(sorted(DATA.glob("*.txt")))[120:170]
    bad = bad_documents(SEEN, 50, good, seed=2)
    documents = make_documents(tmp_path / "in", {"good": good, "bad": bad}, part_bytes=8000)
    options = FilterStage(device="cpu", batch_tokens=200)
    filter_corpus(Filter(documents.directory, classifier, tmp_path / "whole", options))
    result = Documents.open(tmp_path / "whole")
    kept = texts_of(result)
    assert len(set(kept) & set(good)) > 40
    assert len(set(kept) & set(bad)) < 15
    assert result.total["filtered_out"] == 100 - len(kept)
    metas = [json.loads(meta) for table in result.tables() for meta in table["meta"].to_pylist()]
    assert all(meta["quality"] >= round(Classifier.load(classifier, "cpu").threshold, 4) for meta in metas)

    class KilledError(BaseException):
        pass

    write = stage.write_part

    def write_some(path: Path, *arguments: object) -> None:
        if path.name == "part-00003.parquet":
            raise KilledError
        write(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "write_part", write_some)
    with pytest.raises(KilledError):
        filter_corpus(Filter(documents.directory, classifier, tmp_path / "out", options))
    monkeypatch.undo()
    filter_corpus(Filter(documents.directory, classifier, tmp_path / "out", options))
    assert directory_bytes(tmp_path / "out") == directory_bytes(tmp_path / "whole")
    options = FilterStage(threshold=1.0, device="cpu")
    with pytest.raises(InputError, match="filter leaves no document"):
        filter_corpus(Filter(documents.directory, classifier, tmp_path / "none", options))


def test_what_cannot_be_learnt_is_one_clear_error(root: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    write_jsonl(few / ANNOTATIONS, [{"text": "раз", "scores": {"a": 5}}] * 5)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / ANNOTATIONS).write_text('{"text": "раз", "scores": {"a": 5}}\n{"text": 5}\n')
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / ANNOTATIONS).write_text('{"text": "раз", "scores": {"a": 1e400}}\n')
    deep = tmp_path / "deep"
    deep.mkdir()
    (deep / ANNOTATIONS).write_text('{"text": "раз", "scores": {"a": 5}}\n' + "[" * 100_000)
    for options, complaint in (
        (TrainFilter(odd, tmp_path / "out"), "line 1: not an annotation: scores.a: inf"),
        (TrainFilter(deep, tmp_path / "out"), "line 2: not valid JSON: nested"),
        (TrainFilter(few, tmp_path / "out"), "5 annotations; 20 or more"),
        (TrainFilter(broken, tmp_path / "out"), "line 2: not an annotation"),
        (TrainFilter(tmp_path, tmp_path / "out"), "no such file"),
        (TrainFilter(root / "annotations", tmp_path / "out", TrainFilterStage(good_score=1)), "all 192 training"),
        (TrainFilter(root / "annotations", tmp_path / "out", TrainFilterStage(encoder=str(tmp_path))), "no encoder"),
        (TrainFilter(root / "annotations", tmp_path / "out", TrainFilterStage(retention=0.5, precision=0.5)), "one of"),
        (TrainFilter(root / "annotations", tmp_path / "out", TrainFilterStage(epochs=0)), "train-filter: epochs"),
    ):
        with pytest.raises(InputError, match=complaint):
            train_filter(options)
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no classifier"):
        Classifier.load(tmp_path, "cpu")
    settings = {"slope": 1.0, "offset": 0.0, "threshold": 0.5, "maximum_tokens": 8}
    for name, value in (("slope", None), ("offset", float("nan")), ("threshold", "high"), ("maximum_tokens", True)):
        (tmp_path / "filter.json").write_text(json.dumps(settings | {name: value}))
        with pytest.raises(InputError, match=rf"filter\.json: damaged: {name}: .*no classifier"):
            Classifier.load(tmp_path, "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no GPU"):
            device_of("cuda")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_batches_hold_every_text_once_within_their_size(lengths: list[int], batch_tokens: int) -> None:
    batches = batches_by_length(lengths, batch_tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= batch_tokens
    flat = [lengths[row] for batch in batches for row in batch]
    assert flat == sorted(lengths, reverse=True)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.2, 4), st.floats(-3, 3), st.integers(0, 1000))
def test_calibration_finds_the_line_that_labels_came_from(slope: float, offset: float, seed: int) -> None:
    chance = np.random.default_rng(seed)
    logits = chance.normal(size=20_000) * 2
    labels = chance.random(20_000) < calibrated(logits, slope, offset)
    if min(labels.mean(), 1 - labels.mean()) < 0.05:
        return
    found = calibrate(logits, labels)
    assert found == pytest.approx((slope, offset), rel=0.15, abs=0.15)
    assert expected_calibration_error(calibrated(logits, *found), labels) < 0.02


def test_quality_is_that_of_the_definitions() -> None:
    kept, good = np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool)
    assert Quality.of(kept, good) == Quality(5, 3, 2 / 3, 2 / 3, pytest.approx(2 / 3), 0.5, 0.5)  # type: ignore[arg-type]
