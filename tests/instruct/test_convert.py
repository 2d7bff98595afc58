"""Every known schema becomes conversations and back; rows that cannot be used say why."""

import gzip
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import directory_bytes, write_jsonl

from vikhr_fast.chat.conversation import Conversation, read_conversations
from vikhr_fast.chat.template import Message
from vikhr_fast.data.documents import MANIFEST
from vikhr_fast.errors import InputError
from vikhr_fast.instruct.convert import CONVERSATIONS, Convert, convert, language_of
from vikhr_fast.instruct.rejected import REJECTED

Row = dict[str, Any]


def _turns(*turns: tuple[str, str]) -> Row:
    return {"conversations": [{"from": role, "value": value} for role, value in turns]}


VELES = [
    _turns(("system", "Ты помощник."), ("human", "Как дела?"), ("gpt", "Хорошо.")),
    _turns(("human", "Сколько будет 2+2?"), ("gpt", "4"), ("human", "А 3+3?"), ("gpt", "6")),
]
NECTAR = [
    {
        "prompt": "\n\nHuman: Name a river.\n\nAssistant: ",
        "answers": [
            {"answer": "Rivers are wet.", "model": "a", "rank": 2.0},
            {"answer": "The Volga.", "model": "b", "rank": 1.0},
        ],
        "turns": 1,
        "num_responses": 2,
        "source": ["flan"],
        "good_natured": True,
    },
    {
        "prompt": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: What is\n\n2+2?\n\nAssistant: ",
        "answers": [{"answer": "4", "model": "a", "rank": 1}, {"answer": "5", "model": "b", "rank": 2}],
        "good_natured": True,
    },
]
TURBO_ALPACA = [
    {
        "instruction": "Опиши осень.",
        "input": "",
        "output": "Холодно.",
        "alternative_output": "Золото.",
        "label": "ok",
    },
    {"instruction": "Посчитай буквы.", "input": "слово", "output": "5", "alternative_output": None, "label": None},
]
SAIGA = [
    {
        "messages": {
            "role": ["user", "bot", "user", "bot"],
            "content": ["Привет", "Добрый день", "Пока", "Пока"],
        },
        "source": "x",
    },
    {"messages": {"role": ["system", "user", "bot"], "content": ["Будь вежлив", "Где я?", "Дома"]}, "source": "y"},
]
OASST = [{"messages": [{"role": "user", "content": "Что такое дом?"}, {"role": "bot", "content": "Здание."}], "id": 3}]
RUFLAN = [{"inputs": "Верно ли, что снег белый?", "targets": "да"}, {"inputs": "2+2", "targets": "4"}]
ALPACA = [
    {"instruction": "Say hi.", "input": "", "output": "Hi."},
    {"instruction": "Add", "input": "1 2", "output": "3"},
]
SHAREGPT = [{"id": "abc", **_turns(("human", "Write code"), ("gpt", "```py\nprint(1)\n```"))}]
PLAIN = [{"messages": [{"role": "user", "content": "да"}, {"role": "assistant", "content": "нет"}]}]


def as_turns(messages: tuple[Message, ...], row: Row) -> Row:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return {**row, **_turns(*((names[m.role], m.content) for m in messages))}


def as_nectar(messages: tuple[Message, ...], row: Row) -> Row:
    names = {"user": "Human", "assistant": "Assistant"}
    prompt = "".join(f"\n\n{names[m.role]}: {m.content}" for m in messages[:-1]) + "\n\nAssistant: "
    best = min(row["answers"], key=lambda answer: float(answer["rank"]))
    answers = [{**answer, "answer": messages[-1].content} if answer is best else answer for answer in row["answers"]]
    return {**row, "prompt": prompt, "answers": answers}


def as_instruction(messages: tuple[Message, ...], row: Row) -> Row:
    instruction, _, given = messages[0].content.partition("\n\n")
    output = "alternative_output" if row.get("alternative_output") else "output"
    return {**row, "instruction": instruction, "input": given, output: messages[1].content}


def as_columns(messages: tuple[Message, ...], row: Row) -> Row:
    names = {"system": "system", "user": "user", "assistant": "bot"}
    return {**row, "messages": {"role": [names[m.role] for m in messages], "content": [m.content for m in messages]}}


def as_flan(messages: tuple[Message, ...], row: Row) -> Row:
    return {**row, "inputs": messages[0].content, "targets": messages[1].content}


def as_messages(assistant: str) -> Callable[[tuple[Message, ...], Row], Row]:
    def back(messages: tuple[Message, ...], row: Row) -> Row:
        names = {"assistant": assistant}
        return {**row, "messages": [{"role": names.get(m.role, m.role), "content": m.content} for m in messages]}

    return back


SETS: dict[str, tuple[list[Row], list[tuple[Row, str]], Callable[[tuple[Message, ...], Row], Row]]] = {
    "veles": (
        VELES,
        [
            (_turns(("human", "Эй"), ("human", "Эй!"), ("gpt", "Да")), "turn 2 is the user's"),
            (_turns(("gpt", "Я начну")), "turn 1 is the assistant's"),
            (_turns(("tool", "x"), ("gpt", "y")), "unknown role, 'tool'"),
            ({"conversations": [{"from": ["human"], "value": "x"}]}, "unknown role, ['human']"),
            (_turns(("human", "Эй")), "the last message has no answer"),
            ({"conversations": "нет"}, "field 'conversations' is no list"),
            (_turns(("human", "Эй"), ("gpt", "   ")), "message 2, of the assistant, is empty"),
        ],
        as_turns,
    ),
    "nectar": (
        NECTAR,
        [
            ({**NECTAR[0], "good_natured": False}, "not good-natured"),
            ({**NECTAR[0], "prompt": "Name a river."}, "the prompt does not go"),
            ({**NECTAR[0], "answers": []}, "answers without a rank"),
            ({**NECTAR[0], "answers": [{"answer": "x"}]}, "answers without a rank"),
        ],
        as_nectar,
    ),
    "ru_turbo_alpaca": (
        TURBO_ALPACA,
        [
            ({**TURBO_ALPACA[0], "label": "bad"}, 'labelled "bad"'),
            ({**TURBO_ALPACA[1], "output": ""}, "message 2, of the assistant, is empty"),
            ({**TURBO_ALPACA[1], "instruction": None}, "field 'instruction' is no text"),
        ],
        as_instruction,
    ),
    "ru_turbo_saiga": (
        SAIGA,
        [
            ({"messages": {"role": ["user"], "content": ["а", "б"]}}, "1 roles, but 2 contents"),
            ({"messages": {"role": [], "content": []}}, "nobody says anything"),
        ],
        as_columns,
    ),
    "oasst1_ru": (
        OASST,
        [({"messages": [{"role": "bot"}]}, "a message without")],
        as_messages("bot"),
    ),
    "ruflan": (RUFLAN, [({"inputs": "а", "targets": 5}, "field 'targets' is no text")], as_flan),
    "alpaca": (ALPACA, [({"instruction": "x"}, "of no known schema; its fields are 'instruction'")], as_instruction),
    "sharegpt": (SHAREGPT, [(_turns(("human", "a"), ("gpt", "\ud800")), "half of a surrogate pair")], as_turns),
    "plain": (PLAIN, [({"messages": None}, "is no list"), ({}, "of no known schema")], as_messages("assistant")),
}


@pytest.mark.parametrize("name", SETS)
def test_rows_become_conversations_and_back(name: str, tmp_path: Path) -> None:
    good, broken, back = SETS[name]
    rows = [row for row, _ in broken]
    (tmp_path / "in.jsonl").write_text("\n".join([*map(json.dumps, [*rows, *good]), "{broken", "[]"]))
    convert(Convert((tmp_path / "in.jsonl",), name, tmp_path / "out"))
    found = list(read_conversations([tmp_path / "out" / CONVERSATIONS]))
    assert [back(one.messages, row) for one, row in zip(found, good, strict=True)] == good
    assert [one.id for one in found] == [f"{name}-{len(broken) + 1 + number}" for number in range(len(good))]
    assert {one.source for one in found} == {name}
    rejected = [json.loads(line) for line in (tmp_path / "out" / REJECTED).read_text().splitlines()]
    reasons = [reason for _, reason in broken]
    for number, (entry, reason) in enumerate(
        zip(rejected, [*reasons, "not valid JSON", "not a JSON object"], strict=True)
    ):
        assert reason in entry["reason"]
        assert entry["number"] == (number + 1 if number < len(broken) else number + 1 + len(good))


@pytest.mark.parametrize("name", ["ru_turbo_saiga", "nectar", "ru_turbo_alpaca"])
def test_parquet_and_lists_give_the_same(name: str, tmp_path: Path) -> None:
    good, _, _ = SETS[name]
    write_jsonl(tmp_path / "in.jsonl", good)
    (tmp_path / "in.json").write_text(json.dumps(good))
    (tmp_path / "lines.json").write_bytes((tmp_path / "in.jsonl").read_bytes())
    pq.write_table(pa.Table.from_pylist(good), tmp_path / "in.parquet")
    for file in ("in.jsonl", "in.json", "lines.json", "in.parquet"):
        convert(Convert((tmp_path / file,), name, tmp_path / "out" / file))
    first, *others = [
        directory_bytes(tmp_path / "out" / file) for file in ("in.jsonl", "in.json", "lines.json", "in.parquet")
    ]
    assert others == [first] * 3


def test_the_alternative_output_is_preferred_and_the_best_answer_taken(tmp_path: Path) -> None:
    convert(Convert((write_jsonl(tmp_path / "in.jsonl", [*TURBO_ALPACA, *NECTAR]),), "s", tmp_path / "out"))
    answers = [one.answer for one in read_conversations([tmp_path / "out" / CONVERSATIONS])]
    assert answers == ["Золото.", "5", "The Volga.", "4"]


def test_language(tmp_path: Path) -> None:
    assert [language_of(text) for text in ("Привет, world", "hello, мир", "42")] == ["ru", "en", "und"]
    path = write_jsonl(tmp_path / "in.jsonl", [*RUFLAN, *ALPACA])
    convert(Convert((path,), "s", tmp_path / "out"))
    assert [one.language for one in read_conversations([tmp_path / "out" / CONVERSATIONS])] == ["ru", "und", "en", "en"]
    convert(Convert((path,), "s", tmp_path / "set", language="kk"))
    assert {one.language for one in read_conversations([tmp_path / "set" / CONVERSATIONS])} == {"kk"}


def test_nothing_to_convert(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"no row can be used; .*not valid JSON"):
        convert(Convert((tmp_path / "bad.jsonl",), "s", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(InputError, match="no row can be used; there are no rows"):
        convert(Convert((tmp_path / "empty.json",), "s", tmp_path / "out"))
    (tmp_path / "in.txt").write_text("да")
    with pytest.raises(InputError, match="text has no records"):
        convert(Convert((tmp_path / "in.txt",), "s", tmp_path / "out"))


def converted(tmp_path: Path, *rows: Row) -> tuple[list[tuple[Message, ...]], list[str], Row]:
    """The messages, the reasons of what was rejected, and the manifest."""
    convert(Convert((write_jsonl(tmp_path / "in.jsonl", rows),), "s", tmp_path / "out"))
    found = [one.messages for one in read_conversations([tmp_path / "out" / CONVERSATIONS])]
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out" / REJECTED).read_text().splitlines()]
    return found, reasons, json.loads((tmp_path / "out" / MANIFEST).read_bytes())


QUESTION, ANSWER = Message("user", "Как дела?"), Message("assistant", "Хорошо.")
EXCHANGES: list[Row] = [
    {"conversations": [{"from": "human", "value": "Как дела?"}, {"from": "gpt", "value": "Хорошо."}]},
    {"conversations": [{"role": "user", "content": "Как дела?"}, {"role": "assistant", "content": "Хорошо."}]},
    {"conversations": {"from": ["human", "gpt"], "value": ["Как дела?", "Хорошо."]}},
    {"messages": [{"from": "human", "value": "Как дела?"}, {"from": "gpt", "value": "Хорошо."}]},
    {"messages": [{"role": "User", "content": "Как дела?"}, {"role": "ASSISTANT", "content": "Хорошо."}]},
    {"messages": [
        {"role": "user", "content": [{"type": "text", "text": "Как дела?"}], "from": None},
        {"role": "assistant", "content": [{"type": "text", "text": "Хорошо.", "image_url": None}], "tool_calls": []},
    ]},
    {"prompt": "\n\nHuman: Как дела?\n\nAssistant:", "answers": [{"answer": "Хорошо.", "rank": 1}]},
    {"instruction": "Как дела?", "output": "Хорошо."},
    {"inputs": "Как дела?", "targets": "Хорошо."},
    {"question": "Как дела?", "response": "Хорошо."},
    {"prompt": "Как дела?", "response": "Хорошо."},
    {"prompt": [{"role": "user", "content": "Как дела?"}], "completion": [{"role": "assistant", "content": "Хорошо."}]},
]  # fmt: skip


@pytest.mark.parametrize("row", EXCHANGES, ids=lambda row: "-".join(row))
def test_what_stands_beside_the_turns_is_kept_refused_or_named(row: Row, tmp_path: Path) -> None:
    earlier = [["Кто ты?", "Вихрь."]]
    has_history = not {"conversations", "messages", "answers"} & row.keys()
    rows = [
        row,
        {**row, "system": "Ты пират.", "id": 7, "url": "", "tools": "[]", "history": []},
        {**row, "system_prompt": "Ты пират.", "system_message": "Ты пират."},
        {**row, "system": "Ты пират.", "history": earlier},
        {**row, "system": "Ты пират.", "system_prompt": "Ты бабушка."},
        {**row, "system": 5},
        {**row, "tools": '[{"name": "погода"}]'},
        {**row, "images": ["a.png"]},
        {**row, "weight": 0},
    ]
    found, reasons, manifest = converted(tmp_path, *rows)
    system, history = Message("system", "Ты пират."), (Message("user", "Кто ты?"), Message("assistant", "Вихрь."))
    expected = [(QUESTION, ANSWER), (system, QUESTION, ANSWER), (system, QUESTION, ANSWER)]
    assert found == ([*expected, (system, *history, QUESTION, ANSWER)] if has_history else expected)
    assert reasons == [
        *(() if has_history else ["'history' beside a whole chat"]),
        "two system messages that differ",
        "message 1 is int, not text",
        "the row has 'tools', which a conversation cannot hold",
        "the row has 'images', which a conversation cannot hold",
        "marked as not to be trained on",
    ]
    kept = {"system": 2, "system_prompt": 1, "system_message": 1, "history": 1}
    assert manifest == {
        "stage": "instruct convert",
        "conversations": len(found),
        "rejected": len(reasons),
        "kept_columns": kept if has_history else dict.fromkeys(list(kept)[:3], 1),
        "dropped_columns": {"id": 1},
        "untrained_answers": {},
        "not_in_nfc": {},
    }


def test_a_system_message_is_not_said_twice(tmp_path: Path) -> None:
    row = _turns(("system", "Ты пират."), ("human", "Как дела?"), ("gpt", "Хорошо."))
    found, reasons, _ = converted(tmp_path, {**row, "system": "Ты пират."}, {**row, "system": "Ты бабушка."})
    assert found == [(Message("system", "Ты пират."), QUESTION, ANSWER)]
    assert reasons == ["two system messages that differ"]


@pytest.mark.parametrize("mark", [{"label": 0}, {"label": 0.0}, {"train": 0}, {"kto_tag": 0}, {"weight": 0}])
def test_no_is_also_a_number(mark: Row, tmp_path: Path) -> None:
    rows = [{"prompt": "Как дела?", "completion": answer, **own} for answer, own in (("Плохо.", mark), ("Хорошо.", {}))]
    found, reasons, _ = converted(tmp_path, *rows)
    assert found == [(QUESTION, ANSWER)]
    assert len(reasons) == 1


def test_a_developer_is_the_system(tmp_path: Path) -> None:
    """As OpenAI calls it since o1."""
    rows = [{"messages": [{"role": role, "content": "Как дела?"} for role in ("developer", "user", "assistant")]}]
    [(first, *_)], reasons, _ = converted(tmp_path, *rows)
    assert (first, reasons) == (Message("system", "Как дела?"), [])


def test_no_value_is_also_spelled_nan(tmp_path: Path) -> None:
    nan = float("nan")
    rows = [
        {"instruction": "Как дела?", "input": nan, "output": "Хорошо.", "system": nan, "tools": nan, "history": nan},
        _turns(("system", " "), ("human", "Как дела?"), ("gpt", "Хорошо.")),
    ]
    found, reasons, manifest = converted(tmp_path, *rows)
    assert (found, reasons) == ([(QUESTION, ANSWER)] * 2, [])
    assert manifest["dropped_columns"] == {}


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"train": 0}])
def test_answers_that_are_not_to_be_learnt_stay_as_context(
    mark: Row, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked, right = {"role": "user", "content": "Как дела?", "weight": 0}, {"role": "assistant", "content": "Хорошо."}
    wrong = {"role": "assistant", "content": "Плохо.", **mark}
    right["weight"] = 1
    rows = [[asked, wrong, asked, right], [asked, right, asked, wrong, asked, wrong], [asked, wrong], [asked, right]]
    with caplog.at_level("INFO", "vikhr_fast"):
        found, reasons, manifest = converted(tmp_path, *({"messages": row} for row in rows))
    assert found == [(QUESTION, Message("assistant", "Плохо.", False), QUESTION, ANSWER), *[(QUESTION, ANSWER)] * 2]
    assert reasons == ["no answer is to be trained on"]
    assert manifest["untrained_answers"] == {"kept": 1, "left out": 2}
    assert "untrained answers: kept (1), left out (2)" in caplog.text
    lines = (tmp_path / "out" / CONVERSATIONS).read_text().splitlines()
    assert [line.count('"train"') for line in lines] == [1, 0, 0]


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ({"tool_calls": [{"function": {"name": "f"}}]}, "a message of the assistant has 'tool_calls', which"),
        ({"function_call": {"name": "f"}}, "has 'function_call', which a conversation cannot hold"),
        ({"reasoning_content": "Подумаем"}, "has 'reasoning_content', which"),
        ({"thinking": "Подумаем"}, "has 'thinking', which"),
        ({"weight": 0.5}, "a message with 'weight' 0.5; all or nothing of it can be trained on: 1 or 0"),
        ({"train": "нет"}, "a message with 'train' 'нет'"),
        ({"content": [{"type": "image_url", "image_url": {}}]}, "a part that is no text, but 'image_url'"),
        ({"content": ["Хорошо."]}, "a part that is no text, but str"),
        ({"content": []}, "message 2, of the assistant, is empty"),
    ],
)
def test_messages_that_hold_more_than_text(field: Row, reason: str, tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "Хорошо.", "name": "Вихрь"}
    rows = [{"messages": [{"role": "user", "content": "Как дела?"}, own]} for own in ({**answer, **field}, answer)]
    found, reasons, manifest = converted(tmp_path, *rows)
    assert found == [(QUESTION, ANSWER)]
    assert len(reasons) == 1
    assert reason in reasons[0]
    assert manifest["dropped_columns"] == {"messages.name": 1}


def test_a_history_that_is_none_and_a_label(tmp_path: Path) -> None:
    row = {"prompt": "Как дела?", "completion": "Хорошо."}
    bad: list[Row] = [{"history": [["Кто ты?"]]}, {"history": "нет"}, {"label": False}, {"kto_tag": False}]
    found, reasons, _ = converted(tmp_path, row, *({**row, **own} for own in bad))
    assert len(found) == 1
    assert reasons == [
        "field 'history' has a turn that is no pair of question and answer",
        "field 'history' is no list",
        "labelled as an answer that is not desired",
        "marked as not to be trained on",
    ]


def test_a_cell_that_cannot_be_read_costs_its_row_only_where_it_is_read(tmp_path: Path) -> None:
    count = 1100
    messages = [[{"role": "user", "content": f"{i}?"}, {"role": "bot", "content": "да"}] for i in range(count)]
    table = pa.table({"messages": messages, "when": pa.array([10**16, *[0] * (count - 1)], pa.timestamp("ms"))})
    pq.write_table(table, tmp_path / "unread.parquet")
    convert(Convert((tmp_path / "unread.parquet",), "s", tmp_path / "unread"))
    assert len(list(read_conversations([tmp_path / "unread" / CONVERSATIONS]))) == count
    assert not (tmp_path / "unread" / REJECTED).read_text()

    text = pa.array(["да".encode(), b"\xff", "нет".encode()], pa.binary())
    output = pa.Array.from_buffers(pa.string(), 3, text.buffers())
    pq.write_table(pa.table({"instruction": ["а", "б", "в"], "output": output}), tmp_path / "read.parquet")
    convert(Convert((tmp_path / "read.parquet",), "s", tmp_path / "read"))
    found = [(one.id, one.answer) for one in read_conversations([tmp_path / "read" / CONVERSATIONS])]
    assert found == [("s-1", "да"), ("s-3", "нет")]
    (entry,) = [json.loads(line) for line in (tmp_path / "read" / REJECTED).read_text().splitlines()]
    assert (entry["number"], entry["reason"]) == (2, "column 'output': invalid UTF-8; mend or remove it")
    assert entry["row"] == '{"instruction": "б"}'


def test_a_file_that_is_cut_short_is_refused_not_a_bad_row(tmp_path: Path) -> None:
    whole = gzip.compress("\n".join(json.dumps(PLAIN[0]) for _ in range(2000)).encode())
    (tmp_path / "in.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(InputError, match=r"in.jsonl.gz: after line \d+: cannot be read on"):
        convert(Convert((tmp_path / "in.jsonl.gz",), "s", tmp_path / "out"))
    (tmp_path / "in.json").write_text(json.dumps(PLAIN)[:-1])
    with pytest.raises(InputError, match=r"in.json: not a JSON list"):
        convert(Convert((write_jsonl(tmp_path / "good.jsonl", PLAIN), tmp_path / "in.json"), "s", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_conversations_that_are_not_nfc_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "vikhr_fast")
    rows = [{"inputs": unicodedata.normalize("NFD", "йод?"), "targets": "йод"}, *RUFLAN]
    convert(Convert((write_jsonl(tmp_path / "in.jsonl", rows),), "s", tmp_path / "out"))
    assert "not in nfc: conversations (1)" in caplog.text
    assert json.loads((tmp_path / "out" / MANIFEST).read_bytes())["not_in_nfc"] == {"conversations": 1}
    assert next(read_conversations([tmp_path / "out" / CONVERSATIONS])).prompt == rows[0]["inputs"]
    caplog.clear()
    convert(Convert((write_jsonl(tmp_path / "in.jsonl", RUFLAN),), "s", tmp_path / "nfc"))
    assert "not in nfc" not in caplog.text


def test_properties_of_a_conversation() -> None:
    messages = (Message("system", "с"), Message("user", "в"), Message("assistant", "о"))
    one = Conversation("1", "s", "ru", messages)
    assert (one.prompt, one.answer, one.text) == ("в", "о", "в\n\nо")


def test_a_long_line_is_a_rejected_row(tmp_path: Path) -> None:
    rows = [{"inputs": "Раз?", "targets": answer} for answer in ("Два.", "Три. " * 5000, "Четыре.")]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    convert(Convert((file,), "s", tmp_path / "out", max_line=0.02))
    assert [one.answer for one in read_conversations([tmp_path / "out" / CONVERSATIONS])] == ["Два.", "Четыре."]
    (rejected,) = map(json.loads, (tmp_path / "out" / REJECTED).read_text().splitlines())
    assert (rejected["number"], json.loads((tmp_path / "out" / MANIFEST).read_text())["rejected"]) == (2, 1)
    assert rejected["reason"].startswith(f"{file}: line 2: more than 0.02 MB; cut it up")
    convert(Convert((file,), "s", tmp_path / "whole"))
    assert len(list(read_conversations([tmp_path / "whole" / CONVERSATIONS]))) == 3


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", "null", '"x"', "[]"])
def test_a_line_of_any_json_is_a_rejected_row(tmp_path: Path, line: str) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"inputs": "Раз?", "targets": "Два."}])
    file.write_text(f"{line}\n{file.read_text()}")
    convert(Convert((file,), "s", tmp_path / "out"))
    (rejected,) = map(json.loads, (tmp_path / "out" / REJECTED).read_text().splitlines())
    assert rejected["number"] == 1
