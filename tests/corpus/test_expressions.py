"""Expressions of corpus.toml: what they can say, and that none of them explodes."""

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vikhr_fast.corpus.expressions import Expression
from vikhr_fast.errors import InputError

RECORD: dict[str, Any] = {
    "text": "Утро туманное", "votes": 12, "share": 0.5, "language": "ru", "none": None, "set": "train", "max": 5,
    "tags": ["a", "b"], "meta": {"site": "x.ru", "when": {"year": 1970}, "published": datetime(2024, 1, 1)},
}  # fmt: skip
VALUES = {
    "language in ['ru', 'uk'] and votes > 10": True,
    "not (votes < 10 or none is not None)": True,
    "votes * 2 + 1 - votes // 5 % 3": 23,
    "votes ** 2 / -share": -288.0,
    "abs(-votes) if share else 0": 12,
    "text.lower().startswith(('утро', 'вечер'))": True,
    "text.count('у') + text.find('т') + len(text.split())": 4,
    "meta.when.year == meta['when']['year'] and meta.get('none') is None": True,
    "tags[0] == 'a' and 'c' not in tags and text[:4] == 'Утро'": True,
    "min(votes, 3) + max([1, 2]) + int('7') + float('0.5')": 12.5,
    "1 <= votes <= 12": True,
    "set == 'train' and max(max, 4) == 5": True,
    "max([], default='') == '' and text.split(maxsplit=1)[1] == 'туманное'": True,
    "len(set(text.split())) / len(text.split())": 1.0,
    "meta.published.timestamp() > 0 and not text.isupper() and 'y'.isalpha()": True,
    "' .a. '.strip(' .') + 'b '.rstrip() + ' c'.lstrip()": "abc",
}


@pytest.mark.parametrize("text", VALUES)
def test_what_an_expression_can_say(text: str) -> None:
    expression = Expression(text, "where")
    assert expression(RECORD) == VALUES[text]
    assert set(expression.fields) <= RECORD.keys()


REFUSED = {
    "-" * 100_000 + "1": "more than 10,000 characters",
    "-" * 900 + "1": "nested more than 150 deep",
    "-" * 5000 + "1": "nested",  # by Python or by us: that depends on its version
    "(" * 500 + "1" + ")" * 500: "too many nested parentheses",
    "not " * 2000 + "1": "nested more than 150 deep",
    "1" + " + 1" * 2400: "nested",
    "votes" + ".a" * 4000: "nested",
    "f'{votes:>999999999}'": "JoinedStr: not known in expressions",
    "[a for a in text for b in text]": "ListComp: not known in expressions",
    "lambda: 1": "Lambda: not known in expressions",
    "(votes := 1)": "NamedExpr: not known in expressions",
    "'x'.center(999999999)": "center: no such method; there are casefold, count, endswith,",
    "tags.append(1)": "append: no such method",
    "(1).to_bytes(999999999)": "to_bytes: no such method",
    "max([999999999], key='x'.center)": "max: no argument key= here",
    "min(*tags)": "Starred: not known in expressions",
    "min(**meta)": r"min: no argument \*\*= here",
    "tags @ tags": "MatMult: not known in expressions",
    "list(text)": "list: no such function; there are abs, float,",
    "round(share)": "round: no such function",
    "meta['get']('x')": "only functions and methods can be called",
    "int(text, 16) // int(text, 36)": "int takes one argument here",
    "text.strip(text)": "strip takes a string of 100 characters at most",
    f"text.lstrip('{'x' * 101}')": "lstrip takes a string of 100 characters at most",
    f"[{', '.join(['text.upper()'] * 33)}]": "more than 32 calls and slices",
    f"[{', '.join(['text[1:]'] * 33)}]": "more than 32 calls and slices",
    "votes > 1; votes": "invalid syntax",
    "\0": "null bytes",
    "9" * 5000: "Exceeds the limit",
}


@pytest.mark.parametrize("text", REFUSED, ids=[f"{number}" for number in range(len(REFUSED))])
def test_what_explodes_is_refused_before_any_record(text: str) -> None:
    with pytest.raises(InputError, match=f"^where: .*: not an expression: .*{REFUSED[text]}") as caught:
        Expression(text, "where")
    assert "\n" not in str(caught.value)


BAD_FOR_A_RECORD = {
    "[[0] * 9000] * 9000": r"\* takes numbers alone",
    "text * votes": r"\* takes numbers alone",
    "'%999999999d' % votes": "% takes numbers alone",
    "9 ** 9 ** 9": "a number of more than 65,536 bits",
    "votes ** 4000000": "a number of more than 65,536 bits",
    " * ".join(["(1 << 9999)"] * 9): "a number of more than 65,536 bits",
    "votes << 999999999": "",
    "text // 2": "// takes numbers alone",
    "tags.sort": "a method that isn't called",
    "len(none)": "",
    "unknown": "not defined",
}


@pytest.mark.parametrize("text", BAD_FOR_A_RECORD)
def test_what_explodes_with_a_record_is_one_bad_record(text: str) -> None:
    expression = Expression(text, "where")
    with pytest.raises(InputError, match=f"^where: .*{BAD_FOR_A_RECORD[text]}") as caught:
        expression(RECORD)
    assert "\n" not in str(caught.value)


parts = st.sampled_from(["votes", "text", "tags", "2", "'x'", "[0]", "9", "share", "None", "(1 << 9999)"])
expressions = st.recursive(
    parts,
    lambda inner: st.tuples(inner, st.sampled_from(["*", "**", "%", "+", "<<", "-", "in", "and", "=="]), inner).map(
        lambda three: f"({' '.join(three)})"
    ),
    max_leaves=12,
)


@given(text=expressions)
def test_any_arithmetic_ends_and_is_small(text: str) -> None:
    try:
        value = Expression(text, "where")(RECORD)
    except InputError:
        value = None
    assert not hasattr(value, "__len__") or len(value) < 1000
    assert not isinstance(value, int) or value.bit_length() < 1 << 18
