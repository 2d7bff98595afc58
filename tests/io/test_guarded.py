"""JSON and TOML of any content: read, or refused in one line."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vikhr_fast
from vikhr_fast.errors import InputError
from vikhr_fast.io import guarded
from vikhr_fast.io.guarded import MOST_NESTED, parse_json, read_json, read_toml

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
LONG = "1" * 1_000_000


@given(value=values)
def test_what_is_json_is_read(value: Any) -> None:
    text = json.dumps(value)
    assert parse_json(text) == parse_json(text.encode()) == value


@given(text=st.text() | st.binary() | st.text("[]{}\":,1e-'ntf\\u", max_size=50))
def test_what_is_not_json_is_a_value_error(text: str | bytes) -> None:
    with suppress(ValueError):
        parse_json(text)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@given(depth=st.integers(1, 3 * MOST_NESTED) | st.just(100_000))
def test_nesting_has_a_limit(opening: str, depth: int) -> None:
    text = opening * depth + "1" + ("]" if opening == "[" else "}") * depth
    if depth <= MOST_NESTED:
        assert parse_json(text) == json.loads(text)
    else:
        with pytest.raises(ValueError, match="nested more than 100 deep"):
            parse_json(text)


BROKEN_JSON = {
    "[" * 100_000: "nested more than 100 deep",
    '{"a": ' * 100_000: "nested more than 100 deep",
    f'{{"a": {"[" * 200}{"]" * 200}}}': "nested more than 100 deep",
    f'{{"a": {LONG}}}': "a number of too many digits",
    f'{{"a": -{LONG}}}': "a number of too many digits",
    '{"a" 1}': "line 1, column 6: not JSON: Expecting ':' delimiter",
    "[]": "must hold a JSON object, holds a list",
    '"x"': "must hold a JSON object, holds a str",
    "null": "must hold a JSON object, holds a NoneType",
    "": "line 1, column 1: not JSON",
}


@pytest.mark.parametrize("text", BROKEN_JSON, ids=BROKEN_JSON.values())
def test_broken_json_is_one_line_that_names_the_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}: damaged: {BROKEN_JSON[text]}.*; make it again$"):
        read_json(file, "make it again")


BROKEN_TOML = {
    f"a = {'[' * 100_000}": "nested more than 100 deep",
    f"a = {'[' * 150}{']' * 150}": "nested more than 100 deep",
    f"a = {'{a = ' * 400}1{'}' * 400}": "nested more than 100 deep",
    f"{'.'.join('a' * 100_000)} = 1": "a key of more than 100 parts",
    f"[{' . '.join(['a', chr(34) + 'b c' + chr(34)] * 300)}]\nx = 1": "a key of more than 100 parts",
    f"a = {{{'.'.join('a' * 5000)} = 1}}": "a key of more than 100 parts",
    f"{'.'.join([chr(34) + chr(92) + chr(34) * 2] * 3000)} = 1": "a key of more than 100 parts",
    f"a = {LONG[:900_000]}": "a number of too many digits",
    f"a = 0x{'f' * 9000}": "a: an integer of more than 64 bits",
    "[a.b]\nc = 9223372036854775808": "a.b.c: an integer of more than 64 bits",
    'a = ["x", {b = "\\u0000"}]': r"a.b: a string with the character U\+0000",
    '"a\\u0000" = 1': r"a string with the character U\+0000",
    "a = 1\nb = ": "Invalid value",
}


@pytest.mark.parametrize("text", BROKEN_TOML, ids=[f"{n} {said}" for n, said in enumerate(BROKEN_TOML.values())])
def test_broken_toml_is_one_line_that_names_the_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}: not valid TOML: .*{BROKEN_TOML[text]}"):
        read_toml(file)


def test_toml_that_is_large_but_right_is_read(tmp_path: Path) -> None:
    text = f"a = {'[' * 99}1{']' * 99}\nb = -9223372036854775808\nc = 9223372036854775807\n"
    text += f'{".".join("k" * 90)} = "{"слово. " * 300}"\n'
    (tmp_path / "a.toml").write_text(text, encoding="utf-8-sig")  # as Notepad saves it
    found = read_toml(tmp_path / "a.toml")
    assert (found["b"], found["c"]) == (-(2**63), 2**63 - 1)


def test_a_file_that_nobody_means_is_not_read_whole(tmp_path: Path) -> None:
    sparse = tmp_path / "a.json"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(
        InputError, match=r"larger than 256 MiB, the most that is read of such a file; is it the right one\?$"
    ):
        read_json(sparse)
    with pytest.raises(
        InputError, match=r"larger than 1 MiB, the most that is read of such a file; is it the right one\?$"
    ):
        read_toml(Path("/dev/zero"))


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.json: no such file; make it$"):
        read_json(tmp_path / "a.json", "make it")
    for read in (read_json, read_toml):
        with pytest.raises(InputError, match=r"Is a directory$"):
            read(tmp_path)


ELSEWHERE = {
    "tokenizer/chat_renderer.py": "a program of its own, and what it reads is ours",
}
"""Where JSON or TOML may be read besides, and why."""


def test_json_and_toml_are_read_in_one_place() -> None:
    package = Path(guarded.__file__).parent.parent
    readers = re.compile(r"json\.loads?\b|JSONDecoder\b|validate_json\b|\btomli|\btomllib")
    assert package == Path(vikhr_fast.__file__).parent
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if readers.search(path.read_text())}
    assert found == {"io/guarded.py", *ELSEWHERE}
