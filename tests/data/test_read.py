import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast.corpus import read_documents
from vikhr_fast.data.read import Columns, read_objects, read_records
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
    kind=st.sampled_from([pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]),
)
def test_parquet_rows_come_back(folder: Path, contents: list[str], kind: pa.DataType) -> None:
    column = pa.array(contents, pa.string()).cast(kind)
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
    found.clear()
    whole = read_objects(tmp_path / "far.parquet", lambda *bad: found.append(f"{bad[1]}: {bad[2]}"))
    assert [(row, record["text"]) for row, record in whole] == [(2, "два")]
    assert re.match("1: .*row 1: column 'when'", found[0])


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
    with pytest.raises(InputError, match="2 columns are called 'text'"):
        texts(tmp_path / "a.parquet")
