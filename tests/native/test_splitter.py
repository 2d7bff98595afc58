"""Where byte-level tokenizers cut text, against the `tokenizers` library's own expressions."""

import sys
from collections.abc import Callable

import pytest
from byte_level import HARD_PARTS, NATIVE_KINDS, of_kind
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast import _native
from vikhr_fast.tokenizer.byte_level import split_kind, token_bytes

strings = st.lists(st.one_of(st.sampled_from(HARD_PARTS), st.text(max_size=3)), max_size=14).map("".join)
CONTEXTS: list[Callable[[str], str]] = [
    lambda c: c,
    lambda c: f"a{c}B ",
    lambda c: f" {c}1",
    lambda c: f"'{c} ",
    lambda c: f"!{c}\n",
    lambda c: f"A{c}{c}a",
    lambda c: f"  {c}",
    lambda c: f"abcDefgh{c}abcdefg{c}ABCDEFG{c}",
    lambda c: f"жёлтыйЖ{c}ж{c}ЖЁЛТ",
]
CHARACTERS = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
AT_ONCE = 4096
PRE_TOKENIZERS = {native: of_kind(kind).pre_tokenizer for kind, native in NATIVE_KINDS.items()}
kinds = pytest.mark.parametrize("kind", PRE_TOKENIZERS)


def check(kind: str, text: str) -> None:
    expected = [token_bytes(word) for word, _ in PRE_TOKENIZERS[kind].pre_tokenize_str(text)]
    assert _native.split(kind, text) == expected


@kinds
def test_a_kind_is_told_by_its_steps(kind: str) -> None:
    assert split_kind(PRE_TOKENIZERS[kind]) == kind


@kinds
@settings(max_examples=400, deadline=None)
@given(text=strings)
def test_words_are_the_librarys(kind: str, text: str) -> None:
    check(kind, text)


@pytest.mark.nightly
@kinds
@settings(max_examples=20_000, deadline=None)
@given(text=strings)
def test_words_of_many_strings_are_the_librarys(kind: str, text: str) -> None:
    check(kind, text)


@kinds
def test_every_pair_of_parts(kind: str) -> None:
    for first in HARD_PARTS:
        check(kind, "".join(f"{first}{second}x{second}{first}." for second in HARD_PARTS))


@kinds
def test_wherever_a_word_starts_in_64_bytes(kind: str) -> None:
    parts = "".join(f"{part}a {part}" for part in [*HARD_PARTS, "ѠѡѢ", "яѢя"])
    for before in range(100):
        check(kind, f"{'x' * before} {parts}")
        check(kind, f"x{'я' * before}.{parts}")


def check_characters(kind: str, characters: list[str]) -> None:
    for start in range(0, len(characters), AT_ONCE):
        some = characters[start : start + AT_ONCE]
        check(kind, "".join(context(character) for context in CONTEXTS for character in some))


@pytest.mark.slow
@kinds
def test_every_character_of_small_scripts(kind: str) -> None:
    check_characters(kind, CHARACTERS[:0x3100])


@pytest.mark.nightly
@kinds
def test_every_character(kind: str) -> None:
    check_characters(kind, CHARACTERS)


def test_what_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="no such way to split text: words"):
        _native.split("words", "a")
    with pytest.raises(ValueError, match="not valid UTF-8"):
        _native.split("gpt2", b"a\xff")
