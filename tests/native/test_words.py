"""How the C++ code reads words, against the Python specification in planted.py."""

import random
import sys
import unicodedata
from itertools import pairwise

import numpy as np
import planted
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast import _native
from vikhr_fast.corpus import MinHasher

WORDS = MinHasher(shingle="word:1")
CHARACTERS = MinHasher(shingle="char:1")
FRAGMENTS = [
    *"abzAZ019 абвяАБЯёЁѐЀџЏѠѡйЙиИуеі_-\t\n\0«»—…\u00ad\u0300\u0301\u0306\u0308\u200b\u200d\ufeff\u00a0\ufffd",
    *[
        "Éé",
        "ßẞ",
        "İı",
        "ﬁ",
        "日本",
        "ни́кто",
        "Ἀχ",
        "👍🏽",
        "ქართ",
        "हिन्दी",
        "²",
        "Ⅷ",
        "слово",
        "WORD",
        "ёж",
        "Ёж",
        "и\u0306",
    ],
    "Соединительный" * 3,
]
text_strategy = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=60).map("".join)
deterministic = settings(max_examples=300, deadline=None)


def hashes(texts: list[str], isa: str | None = None) -> list[list[int]]:
    native = _native.MinHasher("word", 1, 120, 20, 1, isa)
    values, offsets, _ = native.shingles(_native.Texts.from_sequence(texts), False, 1)
    return [values[a:b].tolist() for a, b in pairwise(offsets)]


@deterministic
@given(text=text_strategy)
def test_words_are_the_specifications(text: str) -> None:
    found = sorted(set(planted.words(text)))
    if not found:
        return
    # Each word alone is read as itself: a set of words is equal to the set of their hashes.
    alone = [value for one in hashes(found) for value in one]
    assert len(set(alone)) == len(found)
    for isa in _native.isa_names():
        assert hashes([text], isa)[0] == sorted(alone)


@pytest.mark.slow
def test_every_character() -> None:
    table = 14  # the Unicode version of csrc/text/unicode_table.inc
    if int(unicodedata.unidata_version.split(".")[0]) != table:
        limit, texts = 0x530, []  # Latin, Greek and Cyrillic have not changed since
    else:
        limit, texts = sys.maxunicode + 1, []
    texts = [f"x{chr(c)}y" for c in range(limit) if not 0xD800 <= c < 0xE000]
    expected = hashes([" ".join(planted.words(text)) for text in texts])
    assert hashes(texts) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ёлка всё ещё зелёная", "елка все еще зеленая"),
        ("за\u0301мок замо\u0300к", "замок замок"),
        ("пере\u00adнос сло\u200bва", "перенос слова"),
        ("мой и\u0306од", "мои\u0306 йод"),
        ("е\u0308лка Е\u0308ж", "елка еж"),
        ("Он — сказал: «Да!»", "он сказал да"),
        ("ПРИВЕТ, Мир", "привет мир"),
        ("  a\tb\nc ", "a b c"),
    ],
)
def test_what_is_the_same(one: str, other: str) -> None:
    assert hashes([one]) == hashes([other])


@pytest.mark.parametrize(("one", "other"), [("мой", "мои"), ("замок", "зама́к"), ("ab", "a b"), ("é", "e"), ("й", "и")])
def test_what_is_not(one: str, other: str) -> None:
    assert hashes([one]) != hashes([other])


@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_shingles_are_the_runs_of_words(length: int) -> None:
    draw = random.Random(length)
    hasher = MinHasher(shingle=f"word:{length}")
    for _ in range(50):
        text = " ".join(draw.choices("абвгд", k=draw.randrange(60)))
        values, _, is_short = hasher.shingles([text])
        assert len(values) == len(planted.shingles(text, length))
        assert is_short[0] == (len(planted.words(text)) < length)


def test_order_of_words_matters() -> None:
    sets = MinHasher(shingle="word:2").shingles(["a b", "b a", "a b c", "b c"])
    assert len(np.unique(sets.values)) == 3


def test_character_shingles() -> None:
    hasher = MinHasher(shingle="char:3")
    for text, count in [("абв", 1), ("Абв!", 1), ("аб  в", 2), ("аб", 1), ("а б в г", 5), ("мои\u0306", 1)]:
        assert len(hasher.shingles([text]).values) == count, text
    same = hasher.shingles(["Мой  дом", "мои\u0306 дом!"])
    assert same.values[: same.offsets[1]].tolist() == same.values[same.offsets[1] :].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["слово ", "x", "日本", "a b c d e f g "])
@pytest.mark.parametrize("shingle", ["word:5", "char:5"])
def test_long_texts_are_read_as_short_ones(unit: str, shingle: str) -> None:
    # Pieces of 64 KiB and of 4096 units are joined without a seam.
    draw = random.Random(7)
    marks = [str(draw.randrange(10**6)) for _ in range(30_000)]
    text = unit.join(marks)
    if shingle == "word:5":
        expected = len(planted.shingles(text)) if " " in unit else 1
    else:
        joined = " ".join(planted.words(text))
        expected = len({joined[i : i + 5] for i in range(len(joined) - 4)})
    assert len(MinHasher(shingle=shingle).shingles([text]).values) == expected


def test_short_texts_equal_only_the_same_words() -> None:
    texts = ["раз два", "Раз, два!", "раз два три", "***", "* * *", "***", "", "", "👍"]
    sets = MinHasher().shingles(texts)
    assert sets.is_short.all()
    groups = [sets.values.tolist().index(value) for value in sets.values]
    assert groups == [0, 0, 2, 3, 4, 3, 6, 6, 8]
