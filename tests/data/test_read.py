import gzip
import json
import random
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast.corpus import read_documents
from vikhr_fast.data.parquet_rows import NanosecondTime
from vikhr_fast.data.read import Columns, read_objects, read_records, readable_values
from vikhr_fast.data.text_lines import CutShortError, numbered_lines
from vikhr_fast.errors import InputError

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(level=1).compress,
}

line = st.text(st.characters(codec="utf-8", exclude_characters="\n\r")).filter(str.strip)
paragraph = st.lists(line, min_size=1, max_size=3).map("\n".join)
document = st.text(st.characters(codec="utf-8")).filter(str.strip)


def texts(*paths: Path, text_field: str = "text") -> list[str]:
    return [document.text for document in read_documents(paths, text_field)]


def write(directory: Path, name: str, content: bytes) -> Path:
    file = directory / name
    file.write_bytes(content)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("read")


@settings(max_examples=60, deadline=None)
@given(
    paragraphs=st.lists(paragraph, min_size=1, max_size=5),
    gaps=st.lists(st.sampled_from(["\n", "\n\n", " \n", "\t\n\n"]), min_size=6, max_size=6),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
    packing=st.sampled_from(list(PACKERS)),
)
def test_paragraphs_come_back(
    folder: Path, paragraphs: list[str], gaps: list[str], end: str, mark: bool, packing: str
) -> None:
    text, numbers = gaps[-1], []
    for content, gap in zip(paragraphs, gaps, strict=False):
        numbers.append(text.count("\n") + 1)
        text += content + "\n" + gap
    text = ("\ufeff" if mark else "") + text.removesuffix("\n").replace("\n", end)
    file = write(folder, f"a.txt{packing}", PACKERS[packing](text.encode("utf-8")))
    found = list(read_documents([file]))
    assert [document.text for document in found] == paragraphs
    assert [document.number for document in found] == numbers
    assert {document.source for document in found} == {file}


@settings(max_examples=60, deadline=None)
@given(contents=st.lists(document, min_size=1, max_size=5), packing=st.sampled_from(list(PACKERS)), ascii=st.booleans())
def test_json_lines_come_back(folder: Path, contents: list[str], packing: str, ascii: bool) -> None:  # noqa: A002
    lines = [json.dumps({"id": 1, "body": text}, ensure_ascii=ascii) for text in contents]
    file = write(folder, f"a.jsonl{packing}", PACKERS[packing]("\n\n".join(lines).encode("utf-8")))
    found = list(read_documents([file], "body"))
    assert [document.text for document in found] == contents
    assert [document.number for document in found] == list(range(1, 2 * len(contents), 2))


@settings(max_examples=40, deadline=None)
@given(
    contents=st.lists(document, min_size=1, max_size=5),
    kind=st.sampled_from(
        [
            pa.string(),
            pa.large_string(),
            pa.string_view(),
            *(pa.dictionary(n, pa.string()) for n in (pa.int8(), pa.int32())),
        ]
    ),
)
def test_parquet_rows_come_back(folder: Path, contents: list[str], kind: pa.DataType) -> None:
    column = pa.array(contents, pa.string())
    column = column.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else column.cast(kind)
    file = folder / "a.parquet"
    pq.write_table(pa.table({"id": range(len(contents)), "text": column}), file, row_group_size=2)
    found = list(read_documents([file]))
    assert [document.text for document in found] == contents
    assert [document.number for document in found] == list(range(1, len(contents) + 1))


def test_files_are_read_in_the_order_given(tmp_path: Path) -> None:
    first, second = write(tmp_path, "2.TXT", b"one\n\ntwo"), write(tmp_path, "1.jsonl", b'{"text": "three"}')
    assert texts(first, second) == ["one", "two", "three"]
    assert texts(second, first) == ["three", "one", "two"]


def test_blank_documents_are_skipped(tmp_path: Path) -> None:
    lines = write(tmp_path, "a.jsonl", b'{"text": ""}\n{"text": " \\n"}\n{"text": "x"}\n')
    assert texts(lines) == ["x"]


def test_zstd_frames_follow_one_another(tmp_path: Path) -> None:
    pack = zstandard.ZstdCompressor().compress
    assert texts(write(tmp_path, "a.txt.zst", pack("при".encode()) + pack("вет\n\n".encode()) + pack(b"x"))) == [
        "привет",
        "x",
    ]


def test_reading_streams(tmp_path: Path) -> None:
    """Documents before a broken place are delivered before it is reached."""
    file = write(tmp_path, "a.txt", b"first\n\nsecond\n\n\xff")
    documents = read_documents([file])
    assert [next(documents).text, next(documents).text] == ["first", "second"]
    with pytest.raises(InputError):
        next(documents)


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_cut_of_a_compressed_file_is_noticed(folder: Path, packing: str, data: st.DataObject) -> None:
    whole = PACKERS[packing](b"".join(b"paragraph %d\n\n" % i for i in range(2000)))
    cut = data.draw(st.integers(1, len(whole) - 1))
    file = write(folder, f"cut.txt{packing}", whole[:cut])
    with pytest.raises(InputError, match=r"cut\.txt.*: cannot be read on: .*; fetch or make it again"):
        texts(file)


BROKEN: list[tuple[str, bytes, str]] = [
    ("a.txt", b"one\n\xd0\xbf \xd0\n", r"line 2, byte 7: invalid UTF-8"),
    ("a.txt", "да\r\n".encode() + b"\xff", r"line 2, byte 6: invalid UTF-8"),
    ("a.txt", b"\xef\xbb\xbf\xff", r"line 1, byte 3: invalid UTF-8"),
    ("a.txt", "текст".encode("utf-16"), r"line 1, byte 0: invalid UTF-8"),
    ("a.txt.gz", gzip.compress(b"one\n\xff", mtime=0), r"line 2, byte 4: invalid UTF-8"),
    ("a.txt.gz", b"not gzip", r"cannot be read on: .*gzip"),
    ("a.txt.zst", b"not zstd", r"cannot be read on: "),
    ("a.txt", b" \n\n", r"no text at all"),
    ("a.jsonl", b"", r"no text at all"),
    ("a.jsonl", b'{"text": "x"}\n{"text": ', r"line 2: not valid JSON: "),
    ("a.jsonl", b"[" * 100_000, r"line 1: not valid JSON: "),
    ("a.jsonl", b'"text"', r"line 1: not a JSON object"),
    ("a.jsonl", b'{"body": 1, "id": 2}', r"line 1: no field 'text' \(it has 'body', 'id'\)"),
    ("a.jsonl", b'{"text": 1}', r"line 1: field 'text': int, not text"),
    ("a.jsonl", b'{"text": null}', r"line 1: field 'text': NoneType, not text"),
    ("a.jsonl", b'{"text": "ab\\ud800"}', r"line 1: field 'text': character 2: half of a surrogate pair"),
    ("a.parquet", b"not parquet", r"not readable as Parquet: "),
    ("a.parquet", b"", r"not readable as Parquet: "),
    ("a.csv", b"text\n", r"unknown kind of file"),
]


@pytest.mark.parametrize(("name", "content", "complaint"), BROKEN)
def test_broken_file_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    file = write(tmp_path, name, content)
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}: {complaint}") as caught:
        texts(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"body": ["x"]}, r"no column 'text' \(it has 'body'\)"),
        ({"text": [1, 2]}, r"column 'text': holds int64, not text"),
        ({"text": ["x", None]}, r"row 2: column 'text': NoneType, not text"),
    ],
)
def test_broken_parquet_is_named_with_its_place(
    tmp_path: Path, columns: dict[str, list[object]], complaint: str
) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), file)
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}: {complaint}"):
        texts(file)


def test_damaged_parquet_is_an_input_error(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": [f"{i} " * 50 for i in range(3000)]}), file, compression="zstd", use_dictionary=False
    )
    content = bytearray(file.read_bytes())
    content[2000:2100] = bytes(100)
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}: .*not readable as Parquet"):
        texts(file)


def test_parquet_with_invalid_utf8_is_an_input_error(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    column = pa.StringArray.from_buffers(1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe"))
    pq.write_table(pa.table({"text": column}), file)
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}: row 1: column 'text': invalid UTF-8"):
        texts(file)


def test_paths_are_checked_before_the_first_is_read(tmp_path: Path) -> None:
    good = write(tmp_path, "a.txt", b"text")
    for bad, complaint in ((tmp_path / "absent.txt", "no such file"), (tmp_path, "not a file")):
        with pytest.raises(InputError, match=f"^{re.escape(str(bad))}: {complaint}"):
            next(read_documents([good, bad]))


def test_no_files_are_an_empty_corpus() -> None:
    with pytest.raises(InputError, match="no files: no text at all"):
        texts()


def test_parquet_values_that_python_has_not_are_bad_records(tmp_path: Path) -> None:
    when = pa.array([10**16, 1], pa.timestamp("ms"))  # the year 318857
    pq.write_table(pa.table({"text": ["раз", "два"], "when": when}), tmp_path / "far.parquet")
    found: list[str] = []
    records = read_records(
        [tmp_path / "far.parquet"], Columns(("text",), ("when",)), lambda *bad: found.append(f"{bad[1]}: {bad[2]}")
    )
    assert [record.text for record in records] == ["два"]
    assert len(found) == 1
    assert re.match("1: .*row 1: column 'when'", found[0])
    whole = list(read_objects(tmp_path / "far.parquet"))
    assert [(row, record["text"]) for row, record in whole] == [(1, "раз"), (2, "два")]
    with pytest.raises(InputError, match=r"^column 'when': date value out of range; mend or remove it$"):
        whole[0][1].get("when")
    assert "when" in whole[0][1]
    assert whole[1][1]["when"] == datetime(1970, 1, 1, 0, 0, 0, 1000)
    values, wrong = readable_values(whole[0][1])
    assert values == {"text": "раз"}
    assert "column 'when'" in str(wrong)
    assert readable_values(whole[1][1])[1] is None


def strings(kind: pa.DataType, *contents: bytes) -> pa.Array:
    """An array of strings that need not be UTF-8."""
    made = pa.array(contents, pa.large_binary() if kind == pa.large_string() else pa.binary())
    return pa.Array.from_buffers(kind, len(made), made.buffers())


BAD = strings(pa.string(), b"\xff", b"ok")
CELLS: dict[str, tuple[pa.Array, object, str]] = {
    "large": (strings(pa.large_string(), b"\xff", b"ok"), "ok", "invalid UTF-8"),
    "view": (pa.array([b"\xff", b"ok"], pa.binary_view()).view(pa.string_view()), "ok", "invalid UTF-8"),
    "category": (pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), BAD), "ok", "invalid UTF-8"),
    "category64": (pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int64()), BAD), "ok", "invalid UTF-8"),
    "in a struct": (pa.StructArray.from_arrays([BAD], ["a"]), {"a": "ok"}, "invalid UTF-8"),
    "in a list": (pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), BAD), ["ok"], "invalid UTF-8"),
    "key of a map": (
        pa.MapArray.from_arrays(pa.array([0, 1, 2], pa.int32()), BAD, pa.array([1, 2])),
        [("ok", 2)],
        "invalid UTF-8",
    ),
    "date": (pa.array([10**8, 0], pa.int32()).cast(pa.date32()), date(1970, 1, 1), "out of range"),
    "days": (pa.array([10**9 * 86_400_000, 0]).cast(pa.date64()), date(1970, 1, 1), "must have magnitude"),
    "zone": (pa.array([253402300799, 0], pa.timestamp("s", "+03:00")), None, "out of range"),
    "span": (pa.array([2**62, 1], pa.duration("s")), timedelta(seconds=1), "too large"),
    "fine span": (pa.array([1001, 1000], pa.duration("ns")), timedelta(microseconds=1), "finer than a microsecond"),
    "fine time": (pa.array([1001, 1000], pa.time64("ns")), time(0, 0, 0, 1), "finer than a microsecond"),
    "time in a struct": (
        pa.StructArray.from_arrays([pa.array([10**16, 1], pa.timestamp("ms"))], ["a"]),
        {"a": datetime(1970, 1, 1, 0, 0, 0, 1000)},
        "out of range",
    ),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_that_cannot_be_read_costs_only_who_reads_it(tmp_path: Path, name: str) -> None:
    column, good, reason = CELLS[name]
    pq.write_table(pa.table({"text": ["раз", "два"], "c": column}), tmp_path / "a.parquet")
    rows = [row for _, row in read_objects(tmp_path / "a.parquet")]
    assert [row["text"] for row in rows] == texts(tmp_path / "a.parquet") == ["раз", "два"]
    with pytest.raises(InputError, match=rf"^column 'c': .*{reason}.*; mend or remove it$"):
        rows[0]["c"]
    assert rows[1]["c"] == good or good is None
    places: list[tuple[int, str]] = []
    records = read_records(
        [tmp_path / "a.parquet"], Columns(("text",), ("c",)), lambda _, row, error: places.append((row, str(error)))
    )
    assert [record.number for record in records] == [2]
    assert [row for row, _ in places] == [1]
    assert places[0][1].startswith(f"{tmp_path / 'a.parquet'}: row 1: column 'c': ")


def test_a_zone_that_nobody_knows_costs_its_column_alone(tmp_path: Path) -> None:
    when = pa.array([0, None], pa.timestamp("us", "Mars/Olympus"))
    pq.write_table(pa.table({"text": ["раз", "два"], "when": when}), tmp_path / "a.parquet")
    first, second = (row for _, row in read_objects(tmp_path / "a.parquet"))
    assert (first["text"], second["text"], second["when"]) == ("раз", "два", None)
    with pytest.raises(InputError, match=r"^column 'when': .*Mars/Olympus"):
        first["when"]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(-(2**63) + 1, 2**63 - 1), min_size=1, max_size=4), zone=st.sampled_from([None, "UTC"])
)
def test_nanoseconds_are_read_to_the_last_digit(folder: Path, counts: list[int], zone: str | None) -> None:
    """With pandas or without; a time in a list is no other."""
    column = pa.array(counts, pa.timestamp("ns", zone))
    nested = pa.ListArray.from_arrays(pa.array(range(len(counts) + 1), pa.int32()), column)
    pq.write_table(pa.table({"when": column, "nested": nested}), folder / "ns.parquet")
    rows = [row for _, row in read_objects(folder / "ns.parquet")]
    epoch = datetime(1970, 1, 1, tzinfo=zone and timezone.utc)
    for count, row in zip(counts, rows, strict=True):
        when = row["when"]
        assert type(when) in (datetime, NanosecondTime)
        assert (when - epoch) // timedelta(microseconds=1) * 1000 + getattr(when, "nanoseconds", 0) == count
        assert row["nested"] == [when]
        written = str(when).removesuffix("+00:00").partition(".")[2]
        assert int(written.ljust(9, "0")) == count % 10**9


def zero_a_page(file: Path, group: int) -> None:
    """Damages the first column of a row group."""
    content = bytearray(file.read_bytes())
    start = pq.read_metadata(file).row_group(group).column(0).data_page_offset
    content[start : start + 100] = bytes(100)
    file.write_bytes(content)


def test_a_damaged_page_of_a_column_that_nobody_reads_costs_nothing(tmp_path: Path) -> None:
    file, heavy = tmp_path / "a.parquet", ["слово " * 50 + str(i) for i in range(3000)]
    pq.write_table(pa.table({"heavy": heavy, "text": ["раз"] * 3000}), file, compression="zstd", use_dictionary=False)
    zero_a_page(file, group=0)
    assert texts(file) == ["раз"] * 3000
    found: list[InputError] = []
    assert not list(read_objects(file, lambda _path, _row, error: found.append(error)))
    assert [type(error) for error in found] == [CutShortError]


def test_a_file_that_is_cut_short_says_how_much_of_it_was_read(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    column = [f"{i} " * 50 for i in range(3000)]
    pq.write_table(pa.table({"text": column}), file, row_group_size=1000, compression="zstd", use_dictionary=False)
    zero_a_page(file, group=2)
    found: list[InputError] = []
    assert len(list(read_records([file], Columns(), lambda _path, _row, error: found.append(error)))) == 1024
    assert [type(error) for error in found] == [CutShortError]
    assert re.match(rf"{re.escape(str(file))}: after row 1024 of 3000: not readable as Parquet: ", str(found[0]))


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([b"x"]), "binary"),
        (pa.array([b"x"], pa.binary_view()), "binary_view"),
        (pa.array([["x"]]), "list<element: string>"),
        (pa.array([["x"]], pa.list_view(pa.string())), "list_view<element: string>"),
        (pa.array([{"a": "x"}]), "struct<a: string>"),
        (pa.nulls(1), "null"),
        (pa.array([1]).dictionary_encode(), "int64"),
    ],
)
def test_columns_of_other_kinds_are_no_text(tmp_path: Path, column: pa.Array, kind: str) -> None:
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=rf"column 'text': holds {kind}, not text; name a column of strings"):
        texts(tmp_path / "a.parquet")


def test_invalid_utf8_in_another_column_costs_its_row_alone(tmp_path: Path) -> None:
    name = pa.array([b"\xff", "имя".encode(), None], pa.binary())
    column = pa.StringArray.from_buffers(3, name.buffers()[1], name.buffers()[2], name.buffers()[0])
    pq.write_table(pa.table({"text": ["раз", "два", "три"], "name": column}), tmp_path / "a.parquet")
    found: list[int] = []
    records = read_records(
        [tmp_path / "a.parquet"], Columns(("text",), ("name",)), lambda _path, row, _error: found.append(row)
    )
    assert [(record.text, record.fields["name"]) for record in records] == [("два", "имя"), ("три", None)]
    assert found == [1]


def test_json_lines_in_a_json_file_are_read_as_such(tmp_path: Path) -> None:
    file = write(tmp_path, "a.json", b'\xef\xbb\xbf{"n": 1}\n{"n": 2}\n{"n": "\xff"}\n{"n": \n\n{"n": 5}\n')
    bad: list[str] = []
    records = read_objects(file, lambda _path, number, error: bad.append(f"{number}: {error}"))
    assert list(records) == [(1, {"n": 1}), (2, {"n": 2}), (6, {"n": 5})]
    assert [re.sub(r".*/", "", one) for one in bad] == [
        "a.json: line 3, byte 28: invalid UTF-8; convert the file to UTF-8",
        "a.json: line 4: not valid JSON: Expecting value: line 1 column 7 (char 6); mend or remove the line",
    ]
    with pytest.raises(InputError, match="not a JSON list of objects: not a list"):
        list(read_objects(write(tmp_path, "b.json", b'{\n"data": []\n}')))


def test_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array(["раз"]), pa.array(["два"])], ["text", "text"]), tmp_path / "a.parquet")
    for read in (texts, lambda file: list(read_objects(file))):
        with pytest.raises(InputError, match="2 columns are called 'text'"):
            read(tmp_path / "a.parquet")


def lines_of(content: bytes) -> list[bytes]:
    """The lines of a text without their ends, as bytes."""
    lines = content.split(b"\n")
    return [line.removesuffix(b"\r") for line in (lines[:-1] if lines[-1] == b"" else lines)]


@settings(max_examples=100, deadline=None)
@given(
    content=st.lists(st.text("ax\r", max_size=30).map(str.encode), max_size=8).map(b"\n".join),
    max_line=st.integers(1, 30),
    packing=st.sampled_from(list(PACKERS)),
)
def test_lines_beyond_the_limit_are_bad_and_all_others_as_they_were(
    folder: Path, content: bytes, max_line: int, packing: str
) -> None:
    file = write(folder, f"limited.txt{packing}", PACKERS[packing](content))
    bad: list[int] = []
    found = list(numbered_lines(file, lambda _path, number, _error: bad.append(number), max_line))
    whole = list(numbered_lines(file, lambda *_: pytest.fail("no line is bad")))
    sizes = [len(line) for line in content.split(b"\n")]
    assert [number for number, _ in found] == [number for number, _ in whole]
    assert [line for _, line in whole] == [line.decode() for line in lines_of(content)]
    assert bad == [number for number, _ in whole if sizes[number - 1] > max_line]
    assert found == [(number, None if number in bad else line) for number, line in whole]


@pytest.mark.parametrize("packing", PACKERS)
def test_a_long_line_is_named_with_its_place_and_costs_itself_alone(tmp_path: Path, packing: str) -> None:
    rows = [json.dumps({"text": text}).encode() for text in ("one", "x" * 5_000_000, "three")]
    content = b"\n".join([*rows, b'{"text": "\xff"}', rows[0]])
    file = write(tmp_path, f"a.jsonl{packing}", PACKERS[packing](content))
    bad: list[str] = []
    found = list(read_records([file], Columns(), lambda _path, _number, error: bad.append(str(error)), 2_000_000))
    assert [(document.text, document.number) for document in found] == [("one", 1), ("three", 3), ("one", 5)]
    advice = "cut it up, or allow more where that can be: --max-line, or max_line in corpus.toml"
    assert bad == [
        f"{file}: line 2: more than 2 MB; {advice}",
        f"{file}: line 4, byte {content.index(255)}: invalid UTF-8; convert the file to UTF-8",
    ]
    with pytest.raises(InputError, match=r"line 2: more than 2 MB"):
        list(read_objects(file, max_line=2_000_000))
    assert len(list(read_objects(file, lambda *_: None))) == 4


def test_a_document_of_many_lines_has_the_limit_of_one(tmp_path: Path) -> None:
    paragraphs = ["first\nparagraph", "\n".join(["word " * 10] * 50), "x" * 600, "last"]
    file = write(tmp_path, "a.txt", "\n\n".join(paragraphs).encode())
    bad: list[tuple[int, str]] = []
    found = list(read_records([file], Columns(), lambda _, number, error: bad.append((number, str(error))), 500))
    assert [(document.text, document.number) for document in found] == [("first\nparagraph", 1), ("last", 57)]
    assert [number for number, _ in bad] == [4, 55]
    assert bad[0][1].startswith(f"{file}: line 4: more than 0.0005 MB; ")


def test_a_document_is_measured_in_bytes(tmp_path: Path) -> None:
    file = write(tmp_path, "a.txt", "\n".join(["ё" * 10] * 5).encode())  # 5 lines of 20 bytes, 4 ends between them
    assert len(list(read_records([file], Columns(), max_line=104))) == 1
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}: line 1: more than 0.000103 MB"):
        list(read_records([file], Columns(), max_line=103))


def test_a_document_of_short_lines_takes_little_more_than_itself(tmp_path: Path) -> None:
    file = write(tmp_path, "a.txt", "ы\n".encode() * 300_000)
    tracemalloc.start()
    (document,) = read_records([file], Columns())
    assert len(document.text) == 599_999
    assert tracemalloc.get_traced_memory()[1] < 10e6  # a list of the lines takes 24e6
    tracemalloc.stop()


def test_json_lines_of_any_size_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vikhr_fast.data.read._MOST_LIST_BYTES", 5)
    file = write(tmp_path, "a.json", b'\xef\xbb\xbf\n{"n": 1}\r\n{"n": 2}\n')
    assert list(read_objects(file)) == [(2, {"n": 1}), (3, {"n": 2})]


def test_a_line_cut_short_beyond_the_limit_is_both(tmp_path: Path) -> None:
    packed = gzip.compress(json.dumps({"text": random.Random(0).randbytes(300_000).hex()}).encode())
    bad: list[InputError] = []
    file = write(tmp_path, "a.jsonl.gz", packed[: len(packed) // 2])
    assert list(read_objects(file, lambda _path, _number, error: bad.append(error), 1000)) == []
    assert [type(error) for error in bad] == [InputError, CutShortError]
    assert "line 1: more than 0.001 MB" in str(bad[0])


@pytest.mark.slow
@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_line_of_a_gigabyte_takes_little_memory(tmp_path: Path, packing: str) -> None:
    file = tmp_path / f"bomb.jsonl{packing}"
    with gzip.open(file, "wb") if packing == ".gz" else zstandard.open(file, "wb") as bomb:
        bomb.write(b'{"text": "')
        for _ in range(1000):
            bomb.write(b"x" * 1_000_000)
        bomb.write(b'"}\n{"text": "after"}\n')
    program = f"""
import resource, sys
from pathlib import Path
from vikhr_fast.data.read import read_objects
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 500_000_000,) * 2)
print(list(read_objects(Path({str(file)!r}), lambda _path, number, _error: print(number))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n[(2, {'text': 'after'})]\n"


def test_a_json_list_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(CutShortError, match=r"larger than 2048 MiB, .*; make JSON lines of it$"):
        list(read_objects(tmp_path / "a.json"))


@pytest.mark.parametrize("record", [b"[" * 100_000, b'{"a": ' * 100_000, b'{"a": ' + b"1" * 1_000_000 + b"}"])
def test_a_record_that_explodes_costs_itself_alone(tmp_path: Path, record: bytes) -> None:
    bad: list[int] = []
    for name in ("a.jsonl", "a.json"):
        file = write(tmp_path, name, b'{"n": 1}\n' + record + b'\n{"n": 3}\n')
        found = list(read_objects(file, lambda _path, number, _error: bad.append(number)))
        assert found == [(1, {"n": 1}), (3, {"n": 3})]
    assert bad == [2, 2]
