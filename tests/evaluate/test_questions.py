"""What is asked of the questions of a file: options that point at others, that fill a place, that are numbers."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.options import points_at_others
from vikhr_fast.evaluate.questions import UnanswerableError, choice_question, inference_question, read_questions

ASKED: dict[str, Any] = {"question": "Сколько ног?", "choices": ["одна", "две", "три", "четыре"], "answer": 1}
PADDING = st.sampled_from([None, "N/A", "n/a", " Н/Д ", float("nan")])


@pytest.mark.parametrize(
    "option",
    [
        "Верно и A, и B", "Both A and B", "A and C only", "A, B и C", "только Б", "А и Б", "а и б", "b and c only",
        "a) и b)", "Neither A nor B", "ни A, ни B", "Все, кроме A", "option C", "варианты 1 и 2", "D only",
        "Верны A и B", "A/B", "All of the above", "None of the above.", "none of these", "Both of these",
        "All answers are correct", "No correct answer", "Все перечисленные выше", "Всё вышеперечисленное",
        "ничего из перечисленного", "Ни один из перечисленных", "Ни одно из утверждений", "оба варианта",
        "Оба ответа верны", "Все варианты правильные", "Нет верного ответа", "и то, и другое",
        "Верны оба утверждения", "Предыдущие ответы неверны",
    ],
)  # fmt: skip
def test_options_that_point_at_others(option: str) -> None:
    assert points_at_others(["Юпитер", "Сатурн", option, "Марс"])


@pytest.mark.parametrize(
    "option",
    [
        "выше нуля", "above 5 degrees", "витамин A", "Plan B", "Все", "None", "Both", "a + b", "все люди смертны",
        "оба родителя", "Он и она", "В 1941 и 1945", "A. Einstein", "а также", "All metals conduct electricity",
        "2 and 3", "ответственность", "Either party", "В и К", "Only 5 people", "a and z are coprime", "A minor",
        "Henry I and Henry II",
    ],
)  # fmt: skip
def test_options_that_do_not(option: str) -> None:
    assert not points_at_others(["Юпитер", "Сатурн", option, "Марс"])


@settings(deadline=None)
@given(data=st.data(), choices=st.lists(st.text("абвг", min_size=1), min_size=2, max_size=6, unique=True))
def test_padding_goes_wherever_it_is(data: st.DataObject, choices: list[str]) -> None:
    answer = data.draw(st.integers(0, len(choices) - 1))
    padded: list[Any] = list(choices)
    for padding in data.draw(st.lists(PADDING, max_size=10 - len(choices))):
        padded.insert(data.draw(st.integers(0, len(padded))), padding)
    question = choice_question({"question": "?", "options": padded, "answer": padded.index(choices[answer])})
    assert question["choices"] == choices
    assert question["answer"] == answer


@pytest.mark.parametrize("label", [2, 2.0, "contradiction"])
def test_labels_of_any_spelling_are_numbers(label: object) -> None:
    question = inference_question({"premise": "Идёт дождь.", "hypothesis": "Сухо.", "label": label})
    assert (question["label"], question["subject"]) == (2, "contradiction")
    assert type(question["label"]) is int


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"choices": [3, 4, 5.0, -1e20]}, {"choices": ["3", "4", "5.0", "-1e+20"]}),
        ({"choices": ["одна", "две", "", " ", None]}, {"choices": ["одна", "две"]}),
        ({"answer": 1.0}, {"answer": 1}),
        ({"answer": " D "}, {"answer": 3}),
        ({"question_ru": "Сколько рук?"}, {"question": "Сколько рук?"}),
        ({"choices_ru": ["нет", "пять"]}, {"choices": ["нет", "пять"]}),
        ({"choices": ["три", "три", "две", "N/A"], "answer": 2}, {"choices": ["три", "три", "две"], "answer": 2}),
    ],
)
def test_what_is_read(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    question = choice_question({**ASKED, **changes})
    assert {key: question[key] for key in expected} == expected


def test_russian_columns_alone() -> None:
    row = {
        "question_en": "Legs?",
        "choices_en": ["1", "2"],
        "answer": 1,
        "question_ru": "Ноги?",
        "choices_ru": ["а", "б"],
    }
    assert choice_question(row) == {"question": "Ноги?", "choices": ["а", "б"], "answer": 1, "subject": "-"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"choices": ["одна", "N/A", "две"]}, "field 'answer': 'N/A' only fills a place among the options"),
        ({"choices": [None, "одна", None]}, "field 'choices': the other options only fill a place"),
        ({"choices": ["две", "две ", "три"]}, "field 'choices': the right answer, 'две ', stands there twice"),
        (
            {"choices": ["одна", "две", None, "A и B"]},
            "names options by letter, and one before others only fills a place",
        ),
    ],
)
def test_what_cannot_be_answered(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnanswerableError, match=reason):
        choice_question({**ASKED, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"choices": ["одна", "", "две"]}, "field 'choices': holds no text"),
        ({"choices": [True, False]}, "field 'choices': True: neither text nor a number"),
        ({"choices": [1, float("inf")]}, "field 'choices': inf: neither"),
        ({"choices": [{"text": "одна"}, "две"]}, "field 'choices': {'text': 'одна'}: neither"),
        ({"choices": {"text": ["одна", "две"]}}, "must be a list of 2 to 10 answers"),
        ({"answer": "В"}, "'В': none of the 4 choices; must be a number from 0 to 3 or a Latin letter from A to D"),
        ({"answer": "две"}, "'две': none of the 4 choices; must be a number"),
        ({"answer": 1.5}, "1.5: none of the 4 choices"),
        ({"answer": 4}, "4: none of the 4 choices"),
    ],
)
def test_what_is_no_question(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        choice_question({**ASKED, **changes})
    assert not isinstance(error.value, UnanswerableError)


def test_parquet_with_nulls(tmp_path: Path) -> None:
    rows = [{**ASKED, "choices": ["одна", "две", None], "answer": 1.0}, {**ASKED, "answer": None}, ASKED]
    pq.write_table(pa.Table.from_pylist([rows[0], ASKED]), tmp_path / "a.parquet")
    found = read_questions(tmp_path / "a.parquet", choice_question)
    assert [question["choices"] for question in found.asked] == [["одна", "две"], ASKED["choices"]]
    assert (found.stripped, found.rejected) == (1, [])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: row 2: field 'answer': None: none of the 4 choices"):
        read_questions(tmp_path / "b.parquet", choice_question)


def test_questions_that_are_left_out_have_a_place(tmp_path: Path) -> None:
    rows = [{**ASKED, "choices": ["одна", "N/A"]}, ASKED, {**ASKED, "choices": ["две", "две"]}]
    found = read_questions(write_jsonl(tmp_path / "a.jsonl", rows), choice_question)
    assert len(found.asked) == 1
    assert [(one["line"], one["reason"].split(": ", 2)[1]) for one in found.rejected] == [(1, "line 1"), (3, "line 3")]
    write_jsonl(tmp_path / "b.jsonl", rows[:1])
    with pytest.raises(InputError, match=r"no questions in it: .*b\.jsonl: line 1: field 'answer': 'N/A' only"):
        read_questions(tmp_path / "b.jsonl", choice_question)


def test_lines_that_are_called_a_list_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("\n".join([json.dumps(ASKED)] * 2))
    assert len(read_questions(tmp_path / "a.json", choice_question).asked) == 2
