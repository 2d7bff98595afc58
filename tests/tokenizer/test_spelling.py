"""What tokens stand for, and what those of two vocabularies have in common."""

import json
from pathlib import Path

import pytest
from byte_level import HARD_PARTS, STEPS, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from two_vocabularies import bucket_strings

from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer.buckets import common_buckets
from vikhr_fast.tokenizer.spelling import Spelling
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer

TEXTS = st.lists(st.one_of(st.sampled_from(HARD_PARTS), st.text(max_size=5)), max_size=12).map("".join)


@pytest.fixture(scope="module")
def sentencepiece(workspace: Path) -> Spelling:
    return Spelling.of(workspace / "tokenizer")


@pytest.fixture(scope="module", params=[kind for kind in STEPS if "normalizer" not in STEPS[kind]])
def byte_level(request: pytest.FixtureRequest, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Spelling:
    text = (workspace / "train.txt").read_text(encoding="utf-8")
    return Spelling.of(make_tokenizer(tmp_path_factory.mktemp("byte"), [text], kind=request.param).parent)


@given(text=TEXTS)
@settings(deadline=None)
def test_a_byte_level_tokenizer_spells_what_it_encodes(byte_level: Spelling, text: str) -> None:
    assert not byte_level.begins_with_space
    assert byte_level.spell(byte_level.encoder.encode(text)) == text.encode()


@given(text=TEXTS)
@settings(deadline=None)
def test_sentencepiece_spells_it_with_a_space_before(sentencepiece: Spelling, text: str) -> None:
    assert sentencepiece.begins_with_space
    expected = f" {text}" if text else ""
    assert sentencepiece.spell(sentencepiece.encoder.encode(text)) == expected.replace("▁", " ").encode()


def test_a_tokenizer_json_of_sentencepiece_spells_as_the_model(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((workspace / "tokenizer" / "tokenizer.json").read_bytes())
    restated, model = Spelling.of(tmp_path), Spelling.of(workspace / "tokenizer" / "tokenizer.model")
    assert restated.contents == model.contents
    assert restated.begins_with_space
    assert restated.lengths.tolist() == list(map(len, model.contents))


def test_tokens_that_are_no_text_spell_none(sentencepiece: Spelling, byte_level: Spelling) -> None:
    for spelling in (sentencepiece, byte_level):
        ends = (spelling.encoder.bos_id, spelling.encoder.eos_id)
        assert [spelling.contents[index] for index in ends] == [b"", b""]
    assert sentencepiece.contents[sentencepiece.encoder.unk_id] == b""


CONTENTS = st.lists(st.text("abя ", max_size=4).map(str.encode), min_size=1, max_size=20)


@given(own=CONTENTS, ref=CONTENTS, ends=st.tuples(st.booleans(), st.booleans()))
@settings(max_examples=500, deadline=None)
def test_buckets_are_of_the_longest_common_beginning(
    own: list[bytes], ref: list[bytes], ends: tuple[bool, bool]
) -> None:
    own, ref = [b"", *own], [b"", *ref]  # the first ends a document, where there is such a token
    eos = [0 if has_end else -1 for has_end in ends]
    strings = [bucket_strings(own, ref), bucket_strings(ref, own)]
    sides = common_buckets(own, ref, *eos)
    count = max(side.max() for side in sides) + 1
    by_bucket: dict[int, set[bytes | None]] = {}
    for side, of_side in zip(sides, strings, strict=True):
        assert set(side.tolist()) == set(range(count)), "each has tokens of both"
        for bucket, string in zip(side.tolist(), of_side, strict=True):
            by_bucket.setdefault(bucket, set()).add(string)
    assert all(len(found) == 1 for found in by_bucket.values())
    assert len([found for found in by_bucket.values() if found != {None}]) == len((set(own) & set(ref)) - {b""})
    apart = all(ends) and all(strings[i].count(None) > 1 for i in (0, 1))
    assert len([found for found in by_bucket.values() if found == {None}]) == (2 if apart else 1)
    if apart:
        assert [int((side == side[0]).sum()) for side in sides] == [1, 1], "what ends a document stays apart"


def test_nothing_to_compare_with_is_refused() -> None:
    with pytest.raises(InputError, match="tokens that aren't text"):
        common_buckets([b"a", b""], [b"a"], 1, -1)
    own, ref = common_buckets([b"a"], [b"a", b"ab"], -1, -1)
    assert (own.tolist(), ref.tolist()) == ([0], [0, 0])


def test_rows_that_a_model_lacks_spell_nothing(byte_level: Spelling) -> None:
    rows = len(byte_level.contents) - 3
    contents = byte_level.of_documents(rows, 5, -1).contents
    assert contents[rows:] == [b""] * 3
    assert contents[5] == b""
    assert contents[6:rows] == byte_level.contents[6:rows]


def test_a_vocabulary_without_latin_begins_with_a_space_too(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("мама мыла раму\n\n" * 300, encoding="utf-8")
    train_tokenizer(TrainTokenizer(input=(tmp_path / "text.txt",), output=tmp_path / "tokenizer", vocab_size=285))
    spelling = Spelling.of(tmp_path / "tokenizer")
    contents = [b"" if content.isascii() and content.isalpha() else content for content in spelling.contents]
    assert Spelling(spelling.encoder, contents).begins_with_space


@pytest.mark.parametrize(("scheme", "expected"), [("always", (True, False)), ("never", (False, False))])
def test_spaces_that_are_added_only_where_there_is_none(
    workspace: Path, tmp_path: Path, scheme: str, expected: tuple[bool, bool]
) -> None:
    values = json.loads((workspace / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    values["normalizer"] = None
    values["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    spelling = Spelling.of(tmp_path)
    assert (spelling.begins_with_space, spelling.begins_with_another_space) == expected


def test_an_added_token_of_the_vocabulary_spells_as_that(workspace: Path, tmp_path: Path) -> None:
    values = json.loads((workspace / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    piece, index = next((text, index) for text, index in values["model"]["vocab"].items() if text.startswith("▁н"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    values["added_tokens"].append({"id": index, "content": piece, **flags})
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    assert Spelling.of(tmp_path).contents[index] == piece.replace("▁", " ").encode()
