"""Counting words against a plain rewriting."""

import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast._native import WordCounts
from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer.word_counts import count_words


def expected_words(texts: list[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        for line in re.split(r"[\n\r\t]", text):
            if line:
                counts.update(re.findall(" +[^ ]*", " " + line.replace("▁", " ")))
    return counts


def counted(words: WordCounts) -> dict[str, int]:
    return dict(words.words(0, len(words)))


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(st.one_of(st.text("аб ▁\n\t", max_size=30), st.text(max_size=30)), max_size=20))
def test_counts_are_those_of_the_definition(texts: list[str]) -> None:
    words = WordCounts(10_000)
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    words.add(texts)
    words.sort()
    expected = expected_words(texts)
    assert counted(words) == expected
    assert words.bytes == sum(len(word.encode()) * count for word, count in expected.items())
    assert words.words(0, len(words)) == sorted(expected.items(), key=lambda item: (-item[1], item[0].encode()))
    characters = Counter[int]()
    for word, count in expected.items():
        for character in word:
            characters[ord(character)] += count
    assert words.characters() == sorted(characters.items())


def test_memory_is_bounded_and_frequent_words_stay() -> None:
    words = WordCounts(1000)
    for start in range(0, 50_000, 100):
        words.add([f"частое слово {number}" for number in range(start, start + 100)])
        assert len(words) <= 1000
    assert counted(words).items() >= {" частое": 50_000, " слово": 50_000}.items()
    assert words.dropped + sum(counted(words).values()) == 150_000


def test_long_words_are_cut_between_characters() -> None:
    words = WordCounts(100)
    words.add(["я" * 1000])
    assert counted(words) == {" " + "я" * 255: 1, "я" * 256: 2, "я" * 233: 1}


def test_words_of_any_bytes_are_counted_as_they_are() -> None:
    words = WordCounts(100)
    words.add_words([(b"a b\n", 2), (b"\xd1", 3), ("я".encode() * 300, 1), (b"\x80" * 600, 1)])
    words.add_words([(b"a b\n", 5)])
    assert (len(words), words.bytes) == (6, 28 + 3 + 600 + 600)
    assert words.characters() == [(ord("\n"), 7), (ord(" "), 7), (ord("a"), 7), (ord("b"), 7), (ord("я"), 300)]


def test_texts_that_are_not_nfc_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text(f"йод\n\n{unicodedata.normalize('NFD', 'йод')}")
    assert len(count_words((tmp_path / "a.txt",), (), "text", 1000)) == 2
    assert f"{tmp_path / 'a.txt'}: 1 texts are not in NFC" in caplog.text
    caplog.clear()
    (tmp_path / "a.txt").write_text("йод")
    count_words((tmp_path / "a.txt",), (), "text", 1000)
    assert "NFC" not in caplog.text


def test_weights_are_shares_of_the_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("корова " * 1000)
    (tmp_path / "b.txt").write_text("пастух " * 10)
    sources = (tmp_path / "a.txt", tmp_path / "b.txt")
    plain = counted(count_words(sources, (), "text", 1000))
    assert (plain[" корова"], plain[" пастух"]) == (1000, 10)
    weighted = counted(count_words(sources, (1.0, 3.0), "text", 1000))
    assert weighted[" пастух"] / weighted[" корова"] == pytest.approx(3, rel=0.01)
    assert weighted[" корова"] == 1000  # no count shrinks
    for weights in ((1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, float("nan"))):
        with pytest.raises(InputError, match=r"^--weights .*: must be 2 positive numbers"):
            count_words(sources, weights, "text", 1000)
    with pytest.raises(InputError, match=r"^--max-words 10: must be 1000 or more"):
        count_words(sources, (), "text", 10)


def test_a_document_that_is_too_long_is_refused_or_allowed(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("раз два\n\n" + "три четыре\n" * 100)
    with pytest.raises(InputError, match=r"a\.txt: line 3: more than 0.0005 MB; cut it up"):
        count_words((file,), (), "text", 1000, max_line=500)
    assert len(count_words((file,), (), "text", 1000, max_line=2000)) == 4
