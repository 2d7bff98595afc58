"""How tokens spell bytes, against the library that reads them."""

from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from vikhr_fast.tokenizer.byte_level import token_bytes, token_text


def test_the_characters_are_the_librarys() -> None:
    assert {token_text(bytes([byte])) for byte in range(256)} == set(ByteLevel.alphabet())


@given(text=st.text(min_size=1))
def test_bytes_are_spelt_as_the_library_does(text: str) -> None:
    [(word, _)] = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert token_text(text.encode()) == word
    assert token_bytes(word) == text.encode()


@given(text=st.text())
def test_a_text_with_other_characters_stands_for_no_bytes(text: str) -> None:
    assert (token_bytes(text) is None) is not set(text).issubset(ByteLevel.alphabet())
    assert token_bytes("<| |>") is token_bytes("слово") is token_bytes("\x00") is token_bytes("\xad") is None
