"""Questions translated by an endpoint that does it badly: the same choices, the answer kept, nothing asked twice."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import write_jsonl
from endpoint import Endpoint, serving

from vikhr_fast.cli import main
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.questions import choice_question, read_questions
from vikhr_fast.evaluate.translate import translated_question

QUESTIONS: list[dict[str, Any]] = [
    {"question": "What is a river?", "choices": ["Water", "Fire", "12", "$$x$$"], "answer": 0, "subject": "geography"},
    {"question": "How many?", "options": ["3", "4", "ten"], "answer": "C", "category": "math"},
    {"question": "Lose one", "choices": ["yes", "no"], "answer": 1},
    {"question": "What is `fire`?", "choices": ["hot", "cold"], "answer": 1},
    {"question": "What is padded?", "choices": ["yes", "N/A"], "answer": 1},
]


def reply(body: dict[str, Any]) -> str:
    """Translates by putting Cyrillic for Latin outside of formulas and code, and wraps it in a block."""
    asked = json.loads(body["messages"][-1]["content"])

    def cyrillic(text: str) -> str:
        if "$" in text or "`" in text:
            return f"ж {text}" if " " in text else text
        return "".join(chr(ord("а") + ord(c) % 32) if c.isascii() and c.isalpha() else c for c in text)

    choices = [cyrillic(choice) for choice in asked["choices"]]
    if asked["question"].startswith("Lose"):
        choices.pop()
    return "```json\n" + json.dumps({"question": cyrillic(asked["question"]), "choices": choices}) + "\n```"


def test_questions_are_translated(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", QUESTIONS)
    broken = {"fails": True}

    def misbehave(text: str, _attempt: int) -> str | None:
        return "403" if "`fire`" in text and broken["fails"] else None

    with serving(Endpoint(reply=reply, misbehave=misbehave)) as endpoint:
        command = [
            "evaluate", "translate", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out"), "--model", "m",
            "--base-url", endpoint.url, "--key-variable", "NO_KEY", "--attempts", "2", "--backoff-seconds", "0.01",
            "--requests-per-minute", "1e6", "--concurrency", "1",
        ]  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 3
        assert not (tmp_path / "out").exists()
        broken["fails"] = False
        before = len(endpoint.asked)
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0
        assert len(endpoint.asked) == before + 1  # what was answered before isn't asked again
    made = read_questions(tmp_path / "out" / "questions.jsonl", choice_question).asked
    originals = [choice_question(record) for record in (QUESTIONS[0], QUESTIONS[1], QUESTIONS[3])]
    for own, original in zip(made, originals, strict=True):
        assert (own["answer"], own["subject"]) == (original["answer"], original["subject"])
        assert len(own["choices"]) == len(original["choices"])
    assert made[0]["choices"][2:] == ["12", "$$x$$"]
    failed = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert [entry.get("number", entry.get("line")) for entry in failed] == [3, 5]
    assert "'N/A' only fills a place" in failed[1]["reason"]
    assert "2 choices became 1" in failed[0]["reason"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"question": "Что?", "choices": ["да", "7"]}, None),
        ({"question": " Что? ", "choices": ["да ", "7"]}, None),
        ({"question": "What?", "choices": ["да", "7"]}, "not in Russian"),
        ({"question": "Что?", "choices": ["да"]}, "2 choices became 1"),
        ({"question": "Что?", "choices": ["да", " "]}, "has no text"),
        ({"question": "Что?", "choices": ["да", 7]}, "has no text"),
        ({"question": "Что?", "choices": ["7", "да"]}, "the choice '7' became 'да'"),
        ({"question": "Что?", "choices": ["7", "7"]}, "two choices became the same"),
        ({"question": "Что?"}, "no object with a question and choices"),
        ({"choices": ["да", "7"]}, "has no text"),
        ("Что?", "Expecting value"),
    ],
)
def test_what_a_translation_must_keep(value: Any, reason: str | None) -> None:
    original = {"question": "What?", "choices": ["yes", "7"], "answer": 1, "subject": "-"}
    if reason is None:
        expected = {"question": "Что?", "choices": ["да", "7"], "answer": 1, "subject": "-"}
        assert translated_question(original, f"Вот: {json.dumps(value)}") == expected
    else:
        with pytest.raises(ValueError, match=reason):
            translated_question(original, json.dumps(value))


def test_a_question_whose_cell_cannot_be_read_is_named(tmp_path: Path) -> None:
    when = pa.array([0, 10**16], pa.timestamp("ms"))
    table = pa.table({"question": ["а?", "б?"], "choices": [["в", "г"]] * 2, "answer": [0, 1], "when": when})
    pq.write_table(table, tmp_path / "in.parquet")
    assert [one["answer"] for one in read_questions(tmp_path / "in.parquet", choice_question).asked] == [0, 1]
    pq.write_table(table.rename_columns(["question", "choices", "answer", "subject"]), tmp_path / "in.parquet")
    with pytest.raises(InputError, match=r"in\.parquet: row 2: column 'subject': date value out of range"):
        read_questions(tmp_path / "in.parquet", lambda row: {"subject": row["subject"]})
