"""What an earlier version made, or began, before a setting was there: its settings are filled up with the defaults."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpora import directory_bytes, make_documents, write_config, write_jsonl

from vikhr_fast.corpus.collect import Collect, collect
from vikhr_fast.corpus.decontaminate import Decontaminate, decontaminate
from vikhr_fast.corpus.scrub import Scrub, scrub
from vikhr_fast.corpus.settings import (
    DecontaminateStage,
    EvaluationSet,
    FilterStage,
    ScrubStage,
    SourceSettings,
    TrainFilterStage,
)
from vikhr_fast.corpus.stage import work_of
from vikhr_fast.errors import InputError
from vikhr_fast.io.manifest import manifest_sha256
from vikhr_fast.io.resumable import is_same_work

WORDS = " ".join(f"слово{number}" for number in range(20))


@pytest.fixture
def stages(tmp_path: Path) -> dict[str, Callable[[], None]]:
    """By the name of its output, what makes it."""
    documents = make_documents(tmp_path / "in", {"a": [f"текст номер {n} и ещё слово" for n in range(90)]}, 1 << 10)
    quiz = EvaluationSet(input=(str(write_jsonl(tmp_path / "quiz.jsonl", [{"text": WORDS}])),))
    sets = DecontaminateStage(sets={"quiz": quiz})
    config = write_config(tmp_path / "corpus.toml", {"a": SourceSettings(input=(str(tmp_path / "in" / "a.jsonl"),))})
    return {
        "collect": lambda: collect(Collect(config, tmp_path / "collect")),
        "scrub": lambda: scrub(Scrub(documents.directory, tmp_path / "scrub", ScrubStage(region="US"))),
        "decontaminate": lambda: decontaminate(Decontaminate(documents.directory, tmp_path / "decontaminate", sets)),
    }


def change(values: dict[str, Any], key: str, value: object = None) -> dict[str, Any]:
    """Sets what a dotted key names, or removes it."""
    *path, last = key.split(".")
    place = values
    for name in path:
        place = place[name]
    del place[last]
    if value is not None:
        place[last] = value
    return values


@pytest.mark.parametrize(
    ("stage", "key", "value", "is_done"),
    [
        ("collect", "sources.a.settings.descending", None, True),
        ("collect", "sources.a.settings.text", ["body"], False),
        ("scrub", "settings.kinds", None, True),
        ("scrub", "settings.region", None, False),  # not the default
        ("scrub", "settings.kinds", ["ip"], False),
        ("scrub", "settings.unknown", 1, False),
        ("decontaminate", "settings.sets.quiz.text", None, True),
        ("decontaminate", "settings.sets.quiz.text", ["q"], False),
        ("decontaminate", "settings.words", "many", False),
        ("decontaminate", "input", "0", False),
    ],
)
def test_a_finished_stage(
    stages: dict[str, Callable[[], None]], tmp_path: Path, stage: str, key: str, value: object, is_done: bool
) -> None:
    stages[stage]()
    path = tmp_path / stage / "manifest.json"
    manifest = json.loads(path.read_text())
    if key == "settings.unknown":
        manifest["work"]["settings"]["unknown"] = None
    manifest["work"] = change(manifest["work"], key, value)
    manifest["sha256"] = manifest_sha256(manifest)
    path.write_text(json.dumps(manifest))
    before = directory_bytes(tmp_path / stage)
    if is_done:
        stages[stage]()
    else:
        with pytest.raises(InputError, match=f"{stage}: made of other input or settings"):
            stages[stage]()
    assert directory_bytes(tmp_path / stage) == before


@pytest.mark.parametrize(("key", "is_same"), [("settings.kinds", True), ("settings.region", False)])
def test_an_interrupted_stage(stages: dict[str, Callable[[], None]], tmp_path: Path, key: str, is_same: bool) -> None:
    stages["scrub"]()
    whole = directory_bytes(tmp_path / "scrub")
    partial = tmp_path / "scrub.partial"
    (partial / "scratch").mkdir(parents=True)
    (tmp_path / "scrub").rename(partial / "result")
    work = json.loads((partial / "result" / "manifest.json").read_text())["work"]
    (partial / "work.json").write_text(json.dumps(change(work, key)))
    for number in range(len(list((partial / "result").glob("part-*")))):
        (partial / "scratch" / f"part-{number:05d}.jsonl").touch()
    (partial / "result" / "part-00001.parquet").unlink()
    if is_same:
        stages["scrub"]()
        assert directory_bytes(tmp_path / "scrub") == whole
    else:
        with pytest.raises(InputError, match=r"scrub\.partial: left behind by work with other settings"):
            stages["scrub"]()
        shutil.rmtree(partial)


@pytest.mark.parametrize(("key", "value", "is_same"), [("seed", None, True), ("seed", 7, False), ("encoder", 7, False)])
def test_the_classifier_of_a_filter(key: str, value: object, is_same: bool) -> None:
    def work() -> dict[str, Any]:
        return work_of("filter", FilterStage(), classifier=work_of("train-filter", TrainFilterStage(), input="0"))

    settings = {"settings": FilterStage(), "classifier": {"settings": TrainFilterStage()}}
    record = change(work(), f"classifier.settings.{key}", value)
    assert is_same_work(record, work(), settings) == is_same
    assert is_same_work(work(), record, settings) == is_same  # a classifier of the earlier version
