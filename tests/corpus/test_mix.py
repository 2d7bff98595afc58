"""Token shards by source: weights, held-out documents, and what training needs of them."""

import hashlib
import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from corpora import directory_bytes, make_documents, write_documents
from hostile import file_names
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast.config import read_toml
from vikhr_fast.corpus import mix as module
from vikhr_fast.corpus.mix import Mix, mix, train_toml
from vikhr_fast.corpus.settings import MixStage
from vikhr_fast.corpus.stage import read_work
from vikhr_fast.data.documents import Documents
from vikhr_fast.data.token_shards import TokenShards
from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer import BpeEncoder, JsonEncoder

TEXTS = {name: [f"{name} пишет про число {number} подробно" for number in range(400)] for name in ("a", "b", "c")}


@pytest.fixture
def documents(tmp_path: Path) -> Documents:
    return make_documents(tmp_path / "in", TEXTS, part_bytes=9000)


def texts_in(directory: Path, tokenizer: Path) -> list[str]:
    shards = TokenShards.open(directory)
    encoder = BpeEncoder.from_file(tokenizer / "tokenizer.model")
    return [encoder.decode(shards.document(number)[1:-1].tolist()) for number in range(shards.num_documents)]


def test_weights_and_held_out_documents(documents: Documents, tokenizer: Path, tmp_path: Path) -> None:
    settings = MixStage(tokenizer=tokenizer, validation=0.1, shard_tokens=3000)
    out = tmp_path / "out"
    mix(Mix(documents.directory, out, settings, {"b": 0.25, "c": 2.5}, {"a": 0.5}, threads=1))
    for name, weight in (("a", 1), ("b", 0.25), ("c", 2.5)):
        train = Counter(texts_in(out / "train" / name, tokenizer))
        held_out = texts_in(out / "validation" / name, tokenizer)
        assert len(set(held_out)) == len(held_out)
        assert not set(held_out) & train.keys()
        assert 15 < len(held_out) < 70
        for text in held_out:
            assert int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < 0.1 * 2**64
        rest = 400 - len(held_out)
        assert sum(train.values()) == pytest.approx(weight * rest, rel=0.2)
        assert set(train.values()) <= {int(weight), int(weight) + (weight != int(weight))} - {0}
        if weight >= 1:
            assert train.keys() | set(held_out) == set(TEXTS[name])
    values = read_toml(out / "train.toml")
    assert values["data"]["train"] == {name: str(out / "train" / name) for name in TEXTS}
    assert values["data"]["validation"] == {name: str(out / "validation" / name) for name in TEXTS}
    assert values["kl"]["source_weights"] == {"a": 0.5, "b": 1.0, "c": 1.0}


def test_the_shards_depend_on_nothing_but_the_documents_and_settings(
    documents: Documents, tokenizer: Path, tmp_path: Path
) -> None:
    settings = MixStage(tokenizer=tokenizer, validation=0.0)
    for threads in (1, 3):
        (tmp_path / "out").rename(tmp_path / "first") if threads == 3 else None
        mix(Mix(documents.directory, tmp_path / "out", settings, threads=threads))
    assert directory_bytes(tmp_path / "out") == directory_bytes(tmp_path / "first")
    assert not (tmp_path / "out" / "validation" / "a").exists()


def test_a_tokenizer_without_a_sentencepiece_model(documents: Documents, other_tokenizer: Path, tmp_path: Path) -> None:
    """Which of its tokens begin and end a document is another file's say, and part of what the shards depend on."""
    settings = MixStage(tokenizer=other_tokenizer, validation=0.0)
    mix(Mix(documents.directory, tmp_path / "out", settings))
    shards = TokenShards.open(tmp_path / "out" / "train" / "a")
    assert JsonEncoder.from_file(other_tokenizer / "tokenizer.json").decode(shards.document(0)) == TEXTS["a"][0]
    shutil.copytree(other_tokenizer, tmp_path / "swapped")
    swapped = {"bos_token": "<|end|>", "eos_token": "<|begin|>"}
    (tmp_path / "swapped" / "tokenizer_config.json").write_text(json.dumps(swapped), encoding="utf-8")
    mix(Mix(documents.directory, tmp_path / "out", settings))  # done before
    settings = MixStage(tokenizer=tmp_path / "swapped", validation=0.0)
    mix(Mix(documents.directory, tmp_path / "other", settings))
    works = [read_work(tmp_path / name)["tokenizer"] for name in ("out", "other")]
    assert works[0] != works[1]


def test_a_run_that_was_killed_while_it_wrote_a_source_leaves_nothing_behind(
    documents: Documents, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def write_some(directory: Path, *_: object) -> None:
        (directory / "tokens-00000.bin").write_bytes(b"some")
        if directory.name.startswith(".b."):
            raise KilledError
        encode(directory, *_)  # type: ignore[arg-type]

    options = Mix(documents.directory, tmp_path / "out", MixStage(tokenizer=tokenizer, validation=0.1))
    mix(options)
    whole = directory_bytes(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    encode = module.encode_documents
    monkeypatch.setattr(module, "encode_documents", write_some)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # who is killed clears nothing away
    with pytest.raises(KilledError):
        mix(options)
    monkeypatch.undo()
    assert list((tmp_path / "out.partial").rglob(".b.*.partial/tokens-00000.bin"))
    mix(options)
    assert directory_bytes(tmp_path / "out") == whole


def test_impossible_mixtures_are_refused(documents: Documents, tokenizer: Path, tmp_path: Path) -> None:
    good = MixStage(tokenizer=tokenizer)
    for options, complaint in (
        (
            Mix(documents.directory, tmp_path / "out", good, {"d": 1.0}),
            "--weights d: no such source; there are a, b",
        ),
        (Mix(documents.directory, tmp_path / "out", good, {"a": 0.0}), "--weights a 0.0: must be above 0"),
        (
            Mix(documents.directory, tmp_path / "out", good, {}, {"a": -1.0}),
            "--kl-weights a -1.0: must be 0",
        ),
        (Mix(documents.directory, tmp_path / "out", good, {"a": 1e9}), "1000 at most"),
        (Mix(documents.directory, tmp_path / "out", good, {}, {"a": math.nan}), "--kl-weights a nan: must be 0"),
        (Mix(documents.directory, tmp_path / "out", good, threads=-1), "--threads -1: must be 0 to 4096"),
        (Mix(documents.directory, tmp_path / "out", MixStage(tokenizer=tokenizer, validation=1.0)), "mix: validation"),
        (Mix(documents.directory, tmp_path / "out", MixStage(tokenizer=tmp_path)), "tokenizer"),
        (Mix(tmp_path, tmp_path / "out", good), "no such file; give what a corpus stage wrote"),
    ):
        with pytest.raises(InputError, match=complaint):
            mix(options)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "a/../b", "", "a" * 300, "b\0"])
def test_a_source_that_is_no_directory_below_the_output_is_refused(tokenizer: Path, tmp_path: Path, name: str) -> None:
    made = write_documents(tmp_path / "in", [name])
    with pytest.raises(InputError, match=r"^source .*: cannot be the name of a directory; give it another name$"):
        mix(Mix(made, tmp_path / "b" / "out", MixStage(tokenizer=tokenizer)))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_source_inside_of_another_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    made = write_documents(tmp_path / "in", ["a/b/c", "a"])
    with pytest.raises(InputError, match=r"^source 'a/b/c': would be inside of source 'a'; give it another name$"):
        mix(Mix(made, tmp_path / "out", MixStage(tokenizer=tokenizer)))


@settings(deadline=None)
@given(sources=st.lists(file_names, min_size=1, max_size=3, unique=True), output=file_names)
def test_training_reads_every_name_of_a_source_as_it_is(
    sources: list[str], output: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shards = [f"{split}/{name}" for split in ("train", "validation") for name in sources]
    file = tmp_path_factory.mktemp("toml") / "train.toml"
    file.write_text(train_toml(Path(output), shards, dict.fromkeys(sources, 0.5)), encoding="utf-8")
    values = read_toml(file)
    for split in ("train", "validation"):
        assert values["data"][split] == {name: str(Path(output) / split / name) for name in sources}
    assert values["kl"]["source_weights"] == dict.fromkeys(sources, 0.5)


def test_a_source_without_documents_stays_in_the_record(documents: Documents, tokenizer: Path, tmp_path: Path) -> None:
    names = ("gone", *documents.counts)
    weights = {"gone": 0.5, **dict.fromkeys(documents.counts, 1.0)}
    made = Mix(documents.directory, tmp_path / "out", MixStage(tokenizer=tokenizer), weights, sources=names)
    mix(made)
    assert read_work(made.output)["weights"] == {name: [weights[name], 1] for name in names}
    assert "gone" not in (made.output / "train.toml").read_text()
    with pytest.raises(InputError, match="made of other input or settings"):
        mix(replace(made, weights={**weights, "gone": 2.0}))
