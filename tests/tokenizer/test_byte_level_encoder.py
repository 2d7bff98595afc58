"""Byte-level BPE in C++ against the `tokenizers` library, and what is left to that library."""

import json
import random
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from byte_level import STEPS, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers

from vikhr_fast.tokenizer import BpeEncoder, JsonEncoder
from vikhr_fast.tokenizer.byte_level import token_text

SPECIAL = ["<|begin|>", "<|end|>"]
DECOMPOSED = ["й", "ё", "é", "Å", "ế", "각", "𝅗𝅥", "क़"]
PARTS = [
    *[
        "a",
        " the",
        "The",
        " Утром",
        "туман",
        "я",
        "é",
        "中文",
        "한국어",
        "😀",
        "👩‍👧",
        "𐐨",
        "ǅ",
        "ʰ",
        "\u0301",
        "\u0903",
    ],
    *["1", "1990", "½", "٣", " ", "    ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\0", "\x7f", "\x80"],
    *["'s", "'LL", "'ſ", "don't", "!", "----", " /", "//\n", "…", "«", "\ufffd", "\U0010ffff", "assignment"],
    *[unicodedata.normalize("NFD", text) for text in DECOMPOSED],
    *["\u1161", "\u11a8", "\u0344", "\u2126", "\ufb1d", *SPECIAL, "<|end", "<sep>", "<sep><sep>", "foo", "foobar"],
]
strings = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=6)), max_size=20).map("".join)
kinds = pytest.mark.parametrize("kind", STEPS)
Edit = Callable[[Any], object]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, corpus: tuple[Path, ...]) -> dict[str, Path]:
    """A tokenizer.json of each kind."""
    texts = [line for file in corpus for line in file.read_text(encoding="utf-8").splitlines()][::10]
    directory = tmp_path_factory.mktemp("kinds")
    return {kind: make_tokenizer(directory / kind, texts, vocab_size=900, kind=kind) for kind in STEPS}


@pytest.fixture(scope="module")
def encoders(files: dict[str, Path]) -> dict[str, JsonEncoder]:
    return {kind: JsonEncoder.from_file(file) for kind, file in files.items()}


def check(encoder: JsonEncoder, texts: list[str], threads: int = 1) -> None:
    """The C++ code is used, and its ids are the library's."""
    assert encoder._byte_level is not None
    ids, offsets = encoder.encode_batch(texts, threads)
    ours = [ids[start:end].tolist() for start, end in pairwise(offsets)]
    expected = [row.ids for row in encoder.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    for text, own, row in zip(texts, ours, expected, strict=True):
        assert own == row, text


def hard_words() -> list[str]:
    """Words around the sizes of the caches' keys and ids, and far beyond, which merge well or hardly."""
    draw = random.Random(0)
    sizes = [*range(1, 70), 127, 128, 129, 1000, 5000]
    common = [("the" * size)[:size] for size in sizes] + [("река" * size)[: size // 2] for size in sizes]
    rare = ["".join(draw.choices("qxzjkvw", k=size)) for size in sizes]
    signs = ["".join(draw.choices("!-~/*", k=size)) for size in sizes]
    bytes_ = ["".join(draw.choices("中文字ญ", k=size // 3 + 1)) for size in sizes]
    return [*common, *rare, *signs, *bytes_, *(" " * size for size in sizes), *("\n" * size for size in sizes)]


def generated(encoder: JsonEncoder, count: int) -> list[str]:
    """Strings of the vocabulary's own tokens and of PARTS, some of them periodic."""
    draw = random.Random(1)
    tokens = [encoder.decode([index]) for index in range(2, encoder.vocab_size)]
    texts = []
    for _ in range(count):
        parts = draw.choices(draw.choice([tokens, PARTS, [*tokens, *PARTS]]), k=draw.randint(0, 12))
        texts.append("".join(parts) * draw.choice([1, 1, 1, 1, draw.randint(2, 30)]))
    return texts


@kinds
@settings(max_examples=200, deadline=None)
@given(text=strings)
def test_ids_are_the_librarys(encoders: dict[str, JsonEncoder], kind: str, text: str) -> None:
    check(encoders[kind], [text])
    assert encoders[kind].encode(text.encode()).tolist() == encoders[kind].encode(text).tolist()


@kinds
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_hard_words_on_any_number_of_threads(encoders: dict[str, JsonEncoder], kind: str, threads: int) -> None:
    words = hard_words()
    texts = [*words, *(f" {word} {word[:40]}" for word in words), "", *generated(encoders[kind], 300)]
    for _ in range(2):  # then the caches know them
        check(encoders[kind], texts, threads)


@kinds
def test_one_word_that_nothing_splits(encoders: dict[str, JsonEncoder], kind: str) -> None:
    encoder = encoders[kind]
    for word in ["", " the", "the the", *hard_words()[::20]]:
        content = word.encode()
        expected = [token.id for token in encoder.tokenizer.model.tokenize(token_text(content))]
        assert encoder.merge(content) == expected


@pytest.mark.slow
def test_words_that_crowd_the_caches(encoders: dict[str, JsonEncoder]) -> None:
    draw = random.Random(2)
    texts = []
    for letters, count in ((6, 300_000), (20, 150_000), (40, 80_000), (400, 4000)):  # of each cache, and of the memory
        words = [" " + "".join(draw.choices("abdeinorstu", k=letters)) for _ in range(count)]
        texts += ["".join(words[start : start + 1000]) for start in range(0, count, 1000)]
    for threads in (1, 2):
        check(encoders["llama-bpe"], texts, threads)


def changed(file: Path, directory: Path, *edits: Edit) -> JsonEncoder:
    """The encoder of a copy of a tokenizer.json, changed."""
    content = json.loads(file.read_text(encoding="utf-8"))
    for edit in edits:
        edit(content)
    (directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return JsonEncoder.from_file(directory / "tokenizer.json")


def of_model(**values: Any) -> Edit:
    return lambda content: content["model"].update(values)


def merges_as_strings(content: Any) -> None:
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]


def spread_ids(content: Any) -> None:
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {token: index if index < 2 else 7 * index + 3 for token, index in vocabulary.items()}


def repeat_merges(content: Any) -> None:
    merges = content["model"]["merges"]
    merges[300:300] = merges[:40:3]


def swap_merges(content: Any) -> None:
    merges = content["model"]["merges"]
    random.Random(3).shuffle(merges)


def drop_bytes(content: Any) -> None:
    vocabulary = content["model"]["vocab"]
    for byte in (*b"qz!\0\x7f", 0xD1, 0xFF):
        del vocabulary[token_text(bytes([byte]))]
    merges = [merge for merge in content["model"]["merges"] if all(part in vocabulary for part in merge)]
    content["model"]["merges"] = merges


def whole_words(content: Any) -> None:
    """Tokens that no merges make."""
    vocabulary = content["model"]["vocab"]
    for text in (" qqqq", "zzzz", " туманный", "½½", "!!!!!", " " + "qz" * 40):
        vocabulary[token_text(text.encode())] = len(vocabulary)
    content["model"]["ignore_merges"] = True


def out_of_the_alphabet(content: Any) -> None:
    content["model"]["vocab"]["the end\u3000"] = 5000


KEPT: dict[str, tuple[Edit, ...]] = {
    "merges as strings": (merges_as_strings,),
    "ids with gaps": (spread_ids,),
    "merges twice": (repeat_merges,),
    "merges in any order": (swap_merges,),
    "bytes without a token": (drop_bytes,),
    "whole words first": (whole_words,),
    "a token of other characters": (out_of_the_alphabet,),
    "no merges": (of_model(merges=[]),),
    "an unknown token that is never needed": (of_model(unk_token="<|end|>"),),
    "empty prefix and suffix": (of_model(continuing_subword_prefix="", end_of_word_suffix=""),),
    "no model's name for a post-processor": (lambda content: content.pop("post_processor"),),
}


@pytest.mark.parametrize("what", KEPT)
@pytest.mark.parametrize("kind", ["gpt-2", "llama-bpe"])
def test_other_vocabularies(files: dict[str, Path], tmp_path: Path, kind: str, what: str) -> None:
    encoder = changed(files[kind], tmp_path, *KEPT[what])
    texts = [*hard_words(), *PARTS, *generated(encoder, 300), " qqqq zzzz туманный½½ !!!!! " + "qz" * 40]
    check(encoder, texts)
    check(encoder, texts)


def added(*tokens: str, **flags: bool) -> Edit:
    """Adds tokens that are found in text."""
    values = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False} | flags

    def edit(content: Any) -> None:
        first = 2000 + len(content["added_tokens"])
        content["added_tokens"] += [
            {"id": first + index, "content": token} | values for index, token in enumerate(tokens)
        ]

    return edit


SEPARATORS = ("<sep>", "<sep><sep>", "foo", "foobar", " bar", "\n\n\n", "é", "12", "<|e", "end|>!", "ё", "각")
ASCII_SEPARATORS = tuple(text for text in SEPARATORS if text.isascii() and text != "<|e")
ADDED: dict[str, tuple[Edit, ...]] = {
    "found as they stand": (added(*SEPARATORS),),
    "found after normalisation": (added(*SEPARATORS, normalized=True),),
    "special ones, which stay text": (added("<s>", "foo", "<|end|><|end|>", special=True),),
    "some of each": (added("<sep>", "foo", "<x"), added("<sep>foo", "<x>", "oo", special=True)),
}


def around(tokens: tuple[str, ...]) -> list[str]:
    draw = random.Random(4)
    pool = [*tokens, *tokens, *PARTS, *SPECIAL, "<s>", "<x>", "oo", "<", "e\u0301", "е\u0308"]
    return ["".join(draw.choices(pool, k=draw.randint(1, 8))) for _ in range(1500)]


@pytest.mark.parametrize("what", ADDED)
@pytest.mark.parametrize("kind", ["gpt-2", "llama-bpe"])
def test_added_tokens(files: dict[str, Path], tmp_path: Path, kind: str, what: str) -> None:
    check(changed(files[kind], tmp_path, *ADDED[what]), around(SEPARATORS))


def test_added_tokens_in_text_that_is_normalised(files: dict[str, Path], tmp_path: Path) -> None:
    texts = around(ASCII_SEPARATORS)
    some = added(*ASCII_SEPARATORS)
    for edits in ((some,), (some, added("<s>", "oobar<", special=True)), ADDED["special ones, which stay text"]):
        encoder = changed(files["qwen2"], tmp_path, *edits)
        check(encoder, texts)
        check(encoder, [unicodedata.normalize("NFD", text) for text in texts])
        check(encoder, [f"{first}\u0338{second}\u0301" for first in texts[:40] for second in ASCII_SEPARATORS])


def test_normalisation(encoders: dict[str, JsonEncoder], corpus: tuple[Path, ...]) -> None:
    paragraphs = [text for file in corpus for text in file.read_text(encoding="utf-8").split("\n\n")]
    decomposed = [unicodedata.normalize("NFD", text) for text in (*paragraphs[:200], *DECOMPOSED)]
    assert decomposed != [unicodedata.normalize("NFC", text) for text in decomposed]
    check(encoders["qwen2"], decomposed)
    check(encoders["qwen2"], [first + second for first in PARTS for second in PARTS])
    encoded = [text.encode() for text in decomposed]
    expected = encoders["qwen2"].encode_batch(decomposed)[0].tolist()
    for texts in (encoded, pa.array(decomposed), pa.array(decomposed, pa.string_view())):
        assert encoders["qwen2"].encode_batch(texts)[0].tolist() == expected


def test_every_character_is_normalised_as_the_librarys(encoders: dict[str, JsonEncoder]) -> None:
    characters = [chr(code) for code in (*range(0x3100), *range(0xAC00, 0xB000), *range(0xF900, 0x10000))]
    check(encoders["qwen2"], [f"a{character}\u0301" for character in characters])


OTHER: dict[str, tuple[Edit, ...]] = {
    "dropout": (of_model(dropout=1e-9),),
    "a suffix": (of_model(end_of_word_suffix="e"),),
    "bytes without a token, and an unknown one": (drop_bytes, of_model(unk_token="<|end|>")),
    "a token that takes spaces": (added("<sep>", lstrip=True),),
    "a token that takes spaces behind it": (added("<sep>", rstrip=True),),
    "a token that must be a word": (added("<sep>", single_word=True),),
    "tokens found before and after normalisation": (added("<sep>"), added("foo", normalized=True)),
}


@pytest.mark.parametrize("what", OTHER)
def test_what_only_the_library_does(files: dict[str, Path], tmp_path: Path, what: str) -> None:
    check_library(changed(files["gpt-2"], tmp_path, *OTHER[what]))


NORMALISED: dict[str, Edit] = {
    "a normalised token": added("<sep>", normalized=True),
    "a token that normalising makes": added("é"),
    "one of ASCII": added("<K>"),
    "one that a special token holds, whose end may change": added("<|e"),
}


@pytest.mark.parametrize("what", NORMALISED)
def test_tokens_that_normalising_may_make_are_the_librarys(files: dict[str, Path], tmp_path: Path, what: str) -> None:
    check_library(changed(files["qwen2"], tmp_path, NORMALISED[what]))


OTHER_STEPS: dict[str, tuple[str, Any]] = {
    "another normalizer": ("normalizer", normalizers.Lowercase()),
    "NFC and another": ("normalizer", normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])),
    "a space before the text": ("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "no splitting": ("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "digits together": (
        "pre_tokenizer",
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    ),
    "another expression": (
        "pre_tokenizer",
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(r"\p{L}+|\p{N}"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    ),
}


@pytest.mark.parametrize("what", OTHER_STEPS)
def test_other_steps_are_the_librarys(files: dict[str, Path], tmp_path: Path, what: str) -> None:
    library = tokenizers.Tokenizer.from_file(str(files["gpt-2"]))
    setattr(library, *OTHER_STEPS[what])
    library.save(str(tmp_path / "tokenizer.json"))
    check_library(JsonEncoder.from_file(tmp_path / "tokenizer.json"))


def check_library(encoder: JsonEncoder) -> None:
    """The library encodes, and nothing of it is lost."""
    assert encoder._byte_level is None
    texts = generated(encoder, 100)
    ids, offsets = encoder.encode_batch(texts)
    expected = [row.ids for row in encoder.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    assert [ids[start:end].tolist() for start, end in pairwise(offsets)] == expected


def test_every_form_of_texts(encoders: dict[str, JsonEncoder]) -> None:
    texts = ["plain", "Latin-1: é ÿ", "Два байта", "four 😀", "", "\0", *PARTS]
    encoded = [text.encode() for text in texts]
    joined, offsets = b"".join(encoded), np.cumsum([0, *map(len, encoded)])
    for encoder in encoders.values():
        check(encoder, texts)
        expected = [one.tolist() for one in encoder.encode_batch(texts)]
        forms = [encoded, pa.array(texts), pa.array(texts, pa.large_string()), pa.array(encoded)]
        forms += [
            pa.chunked_array([texts[:3], texts[3:]]),
            (joined, offsets),
            (bytearray(joined), offsets.astype(np.int32)),
        ]
        for form in forms:
            for threads in (1, 2):
                assert [one.tolist() for one in encoder.encode_batch(form, threads)] == expected
        assert [one.tolist() for one in encoder.encode_batch([])] == [[], [0]]


NO_TEXTS: list[Any] = [
    ["a", b"bc\xff"],
    ["a", b"\xed\xa0\x80"],
    ["a", b"\xe2\x82"],
    ["a", "b\ud800c"],
    ["a", "\udfff"],
    ["a", None],
    ["a", 1],
    "a",
    b"a",
    pa.array(["a", None]),
    pa.array([1, 2]),
    pa.array([b"a", b"\xff"]),
    (b"ab\xff", np.array([0, 2, 3])),
    (b"ab", np.array([0, 3])),
    (b"ab", np.array([0.0, 2.0])),
]


@pytest.mark.parametrize("texts", NO_TEXTS, ids=range(len(NO_TEXTS)))
def test_what_is_no_text_is_refused_as_by_the_other_encoder(
    encoders: dict[str, JsonEncoder], trained: Path, texts: Any
) -> None:
    with pytest.raises((ValueError, TypeError)) as expected:
        BpeEncoder.from_file(trained / "tokenizer.model").encode_batch(texts)
    for kind in ("gpt-2", "qwen2"):
        with pytest.raises(expected.type) as caught:
            encoders[kind].encode_batch(texts)
        assert str(caught.value) == str(expected.value)


def test_an_error_leaves_the_encoder_as_it_was(encoders: dict[str, JsonEncoder]) -> None:
    for encoder in encoders.values():
        with pytest.raises(ValueError, match="document 2"):
            encoder.encode_batch(["some words", "more of them", b"\xff", "last"], 1)
        check(encoder, ["other words", ""])


def test_texts_of_the_package(encoders: dict[str, JsonEncoder], corpus: tuple[Path, ...]) -> None:
    texts = [text for file in corpus for text in file.read_text(encoding="utf-8").split("\n\n")]
    texts.append(topics["strings"])
    for encoder in encoders.values():
        check(encoder, texts, threads=2)
