"""`vikhr-fast doctor FILE` says what each command would make of a file, and what it would stumble over."""

import json
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vikhr_fast.cli import main
from vikhr_fast.doctor.data import data_findings
from vikhr_fast.doctor.findings import Finding

Row = dict[str, Any]
CHAT = [{"role": "user", "content": "Как дела?"}, {"role": "assistant", "content": "Хорошо."}]
ASKED = {"question": "Сколько?", "choices": ["один", "два", "три"], "answer": 1}


def found(path: Path) -> dict[str, Finding]:
    return {finding.subject: finding for finding in data_findings(path)}


def of_rows(tmp_path: Path, rows: Iterable[Row]) -> dict[str, Finding]:
    return found(write_jsonl(tmp_path / "in.jsonl", rows))


USES: dict[str, tuple[list[Row], str, str, str]] = {
    "text": ([{"text": "да"}], "corpus", "ok", "1 texts"),
    "text and none": (
        [{"text": "да"}, {"text": ""}, {"text": None}, {"text": 5}],
        "corpus", "note", "1 texts for `corpus collect` and `corpus shard`; 2 rows hold none; the first: ",
    ),
    "chat": ([{"messages": CHAT}], "convert", "ok", "1 conversations"),
    "chat with more": ([{"messages": CHAT, "url": "u"}], "convert", "note", "dropped columns: url (1)"),
    "tools": ([{"messages": CHAT}, {"messages": CHAT, "tools": ["f"]}], "convert", "note", "none: the row has 'tools'"),
    "prompts": ([{"prompt": "Кто ты?"}, {"prompt": 5}], "generate", "note", "1 prompts for `generate batch`; 1 can't"),
    "pairs": ([{"prompt": "а", "chosen": "б", "rejected": "в"}], "preferences", "ok", "1 pairs"),
    "equal": ([{"prompt": "а", "chosen": "б", "rejected": "б"}], "preferences", "mend", "both answers are equal (1)"),
    "questions": ([ASKED], "evaluate", "ok", "1 questions"),
    "padding": ([{**ASKED, "choices": ["один", "два", "N/A"]}], "evaluate", "note", "1 with padding options"),
    "letters": ([{**ASKED, "choices": ["один", "два", "и A, и B"]}], "evaluate", "note", "keep their order"),
    "unanswerable": ([ASKED, {**ASKED, "choices": ["два", "два"]}], "evaluate", "note", "1 are left out"),
    "answered": ([{"text": "да", "answer": "нет"}], "corpus", "ok", "1 texts"),
    "NLI": ([{"premise": "а", "hypothesis": "б", "label": 0}], "evaluate", "ok", "1 questions"),
    "nothing": ([{"doc": {"text": "да"}}], "use", "mend", "no command reads such rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", USES)
def test_what_commands_would_make_of_it(tmp_path: Path, case: str) -> None:
    rows, subject, mark, words = USES[case]
    findings = of_rows(tmp_path, rows)
    assert findings[subject].mark == mark, findings
    assert words in findings[subject].text
    assert {one.mark for name, one in findings.items() if name != subject} <= {"ok"}


def test_an_id_is_missing_where_collect_finds_none(tmp_path: Path) -> None:
    rows = [{"text": "да", **own} for own in ({"id": 1}, {"id": ""}, {"id": float("nan")}, {"id": None}, {})]
    assert of_rows(tmp_path, rows)["ids"].text == "4 missing: the place in the file stands in for them"


def test_what_a_command_refuses_is_no_use(tmp_path: Path) -> None:
    """`corpus` reads no .json, and no column of bytes."""
    (tmp_path / "a.json").write_text('[{"text": "да"}]')
    corpus = found(tmp_path / "a.json")["corpus"]
    assert (corpus.mark, "the name must end in one of .txt" in corpus.text) == ("mend", True)
    (tmp_path / "b.json").write_text(json.dumps([{"text": "да", "messages": CHAT}]))
    assert found(tmp_path / "b.json").keys() & {"corpus", "convert", "use"} == {"convert"}
    pq.write_table(pa.table({"text": [b"a"]}), tmp_path / "c.parquet")
    corpus = found(tmp_path / "c.parquet")["corpus"]
    assert (corpus.mark, "holds binary, not text" in corpus.text.replace("large_", "")) == ("mend", True)


def test_what_is_wrong_with_rows_is_counted(tmp_path: Path) -> None:
    nfd = unicodedata.normalize("NFD", "йод")
    rows = [{"id": 1, "text": nfd}, {"id": 1, "text": "да", "score": float("nan")}, {"id": None, "text": "нет"}]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, "{"]))
    findings = found(tmp_path / "in.jsonl")
    assert findings["rows"].text.startswith("4; 1 can't be read; the first: ")
    assert "in.jsonl: line 4: not valid JSON" in findings["rows"].text
    assert findings["columns"].text == "id: number or null, text: text, score: number"
    assert findings["Unicode"].text.startswith("1 rows are not in NFC")
    assert findings["numbers"].text.startswith("1 rows hold NaN")
    assert findings["ids"].text == (
        "1 missing: the place in the file stands in for them; 1 repeat an earlier one, and stay as they are"
    )
    assert [name for name, one in findings.items() if one.mark == "note"] == ["rows", "Unicode", "numbers", "ids"]


def test_cells_that_cannot_be_read_have_a_place(tmp_path: Path) -> None:
    when = pa.array([0, 10**16], pa.timestamp("ms"))
    pq.write_table(pa.table({"text": ["а", "б"], "when": when}), tmp_path / "in.parquet")
    cells = found(tmp_path / "in.parquet")["cells"]
    assert cells.mark == "note"
    assert cells.text.startswith("1 of 'when' can't be read; row 2: column 'when': date value out of range")


def test_text_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Раз.\n\nДва.\n", encoding="utf-8")
    assert found(tmp_path / "a.txt")["text"] == Finding("ok", "text", "2 documents (paragraphs)")
    (tmp_path / "b.txt").write_text(unicodedata.normalize("NFD", "Й\n"), encoding="utf-8")
    assert "1 are not in NFC" in found(tmp_path / "b.txt")["text"].text
    (tmp_path / "c.txt").write_bytes("Раз.\n\n".encode() + b"\xff\n")
    text = found(tmp_path / "c.txt")["text"]
    assert (text.mark, text.text.startswith("1 documents (paragraphs); 1 lines can't be read")) == ("note", True)
    (tmp_path / "d.txt").write_text("\n")
    assert found(tmp_path / "d.txt")["text"].mark == "mend"


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.json", "a.parquet", "a.bin", "absent.jsonl", "."])
def test_what_cannot_be_read_is_to_be_mended(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    if name not in ("absent.jsonl", "."):
        path.write_bytes(b"\x00\xff\x1f\x8b\x9f" * 300)
    with pytest.raises(SystemExit) as exit_info:
        main(["doctor", str(path)])
    assert exit_info.value.code == 3
    output, errors = capsys.readouterr()
    assert "mend" in output
    assert "Traceback" not in output + errors
    assert "Error:" not in output  # of an exception that nobody foresaw


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    [
        "id",
        "text",
        "messages",
        "conversations",
        "prompt",
        "answers",
        "chosen",
        "rejected",
        "question",
        "choices",
        "answer",
        "instruction",
        "output",
        "premise",
        "hypothesis",
        "label",
        "system",
        "history",
        "tools",
        "x",
    ]
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(names, values, max_size=4), max_size=4))
def test_any_rows_are_told_of_without_a_surprise(tmp_path: Path, rows: list[Row]) -> None:
    for finding in of_rows(tmp_path, rows).values():
        assert "\n" not in finding.text
        assert not any(f"{kind}Error:" in finding.text for kind in ("Type", "Value", "Key", "Attribute", "Index"))
