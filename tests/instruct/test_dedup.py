"""Dedup of conversations, beside the policy computed pair by pair; nothing that evaluations ask is left."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from corpora import directory_bytes, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast.chat.conversation import Conversation, read_conversations, write_conversations
from vikhr_fast.chat.template import Message
from vikhr_fast.errors import InputError
from vikhr_fast.instruct.convert import CONVERSATIONS
from vikhr_fast.instruct.dedup import REMOVED, DedupConversations, dedup_conversations

WORDS = [f"слово{number}" for number in range(60)]


def conversation(number: int, source: str, question: str, answer: str) -> Conversation:
    return Conversation(str(number), source, "ru", (Message("user", question), Message("assistant", answer)))


def run(
    tmp_path: Path, made: list[Conversation], **options: Any
) -> tuple[list[Conversation], dict[str, dict[str, str]]]:
    write_conversations(tmp_path / "in.jsonl", made)
    dedup_conversations(replace(DedupConversations((tmp_path / "in.jsonl",), tmp_path / "out"), **options))
    lines = (tmp_path / "out" / REMOVED).read_text().splitlines()
    kept = list(read_conversations([tmp_path / "out" / CONVERSATIONS]))
    return kept, {entry["id"]: entry for entry in map(json.loads, lines)}


def are_copies(one: Conversation, other: Conversation) -> bool:
    """Under one system message short questions are spelled the same, long ones have nearly the same words."""
    if one.messages[0] != other.messages[0] and "system" in (one.messages[0].role, other.messages[0].role):
        return False
    lengths = [len(re.findall(r"\w+", own.prompt)) for own in (one, other)]
    if min(lengths) >= 29:
        return are_near(one.prompt, other.prompt)
    spelled = [" ".join(own.prompt.split()).rstrip(" .?…") for own in (one, other)]
    if any(own.isupper() for own in spelled):
        spelled = [own.upper() for own in spelled]
    return max(lengths) < 29 and spelled[0] == spelled[1]


def are_near(one: str, other: str) -> bool:
    """Jaccard of word triples from 0.8 on."""
    words = [re.findall(r"\w+", text.lower().replace("ё", "е")) for text in (one, other)]
    sets = [set(zip(own, own[1:], own[2:], strict=False)) for own in words]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1]) >= 0.8


def expected_of(made: list[Conversation], order: list[str]) -> dict[str, str]:
    """What is removed, and by what, by the policy as it is stated."""
    kept: list[Conversation] = []
    removed = {}
    for one in sorted(made, key=lambda one: order.index(one.source)):
        long = len(one.answer.split()) >= 20
        if any(are_copies(one, other) for other in kept):
            removed[one.id] = "question"
        elif long and any(len(o.answer.split()) >= 20 and are_near(one.answer, o.answer) for o in kept):
            removed[one.id] = "answer"
        else:
            kept.append(one)
    return removed


def changed(chance: random.Random, text: str) -> str:
    words = text.split()
    at = chance.randrange(len(words))
    words[at] = chance.choice(
        [chance.choice(WORDS), words[at].capitalize(), words[at].replace("о", "ё"), words[at] + "!"]
    )
    return chance.choice(["  ", " "]).join(words) + chance.choice(["", ".", "?", " …", "!"])


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_policy_pair_by_pair(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    chance = random.Random(seed)
    made: list[Conversation] = []
    for number in range(40):
        question = " ".join(chance.choices(WORDS, k=chance.choice([1, 2, 5, 30])))
        answer = " ".join(chance.choices(WORDS, k=chance.choice([1, 19, 20, 40])))
        if made and chance.random() < 0.5:
            other = chance.choice(made)
            question = chance.choice([question, other.prompt, changed(chance, other.prompt), other.prompt.upper()])
            answer = chance.choice([answer, other.answer, changed(chance, other.answer)])
        one = conversation(number, chance.choice("abc"), question, answer)
        system = chance.choice([(), (), (Message("system", "Ты пират."),), (Message("system", "Ты пират!"),)])
        made.append(one._replace(messages=(*system, *one.messages)))
    present = list(dict.fromkeys(one.source for one in made))
    order = ["c", *(source for source in present if source != "c")]
    kept, removed = run(tmp_path_factory.mktemp("dedup"), made, priority=("c",))
    assert {id_: entry["by"] for id_, entry in removed.items()} == expected_of(made, order)
    by_id = {one.id: one for one in made}
    assert {one.id for one in kept} == by_id.keys() - removed.keys()
    for id_, entry in removed.items():
        one, other = by_id[id_], by_id[entry["kept"]]
        assert other in kept
        assert are_copies(one, other) if entry["by"] == "question" else are_near(one.answer, other.answer)


def test_nothing_that_evaluations_ask_is_left(tmp_path: Path) -> None:
    long = " ".join(WORDS[:20])
    sets = write_jsonl(tmp_path / "set.jsonl", [{"text": "Столица Франции?"}, {"text": long}])
    made = [
        conversation(0, "a", "столица франции", "Париж"),
        conversation(1, "a", "Столица Италии?", "Рим"),
        conversation(2, "a", "Продолжи", f"вот так: {long} и дальше"),
        conversation(3, "a", " ".join(WORDS[:12]), "нет"),
    ]
    kept, removed = run(tmp_path, made, sets={"испытание": sets})
    assert [one.id for one in kept] == ["1", "3"]
    assert {id_: (entry["by"], entry["set"]) for id_, entry in removed.items()} == {
        "0": ("evaluation", "испытание"),
        "2": ("evaluation", "испытание"),
    }


def test_the_same_bytes_again_and_every_turn_counts(tmp_path: Path) -> None:
    turns = (
        Message("user", "а б в г"),
        Message("assistant", "да"),
        Message("user", "д е ж з"),
        Message("assistant", "1"),
    )
    made = [
        Conversation("0", "a", "ru", turns),
        Conversation("1", "a", "ru", turns[:2]),
        Conversation("2", "b", "ru", turns),
        Conversation("3", "b", "ru", (Message("system", "с"), *turns)),
        Conversation("4", "b", "ru", (turns[0], turns[1]._replace(is_trained=False), *turns[2:3], turns[1])),
    ]
    kept, removed = run(tmp_path, made)
    assert kept == [made[0], made[1], made[3]]
    assert {id_: entry["kept"] for id_, entry in removed.items()} == {"2": "0", "4": "0"}
    dedup_conversations(DedupConversations((tmp_path / "in.jsonl",), tmp_path / "again"))
    assert directory_bytes(tmp_path / "again") == directory_bytes(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"priority": ("z",)}, "no such source; there are a"),
        ({"threshold": 0.0}, "instruct dedup: .*threshold"),
        ({"shingle": "line:3"}, "instruct dedup: shingle"),
        ({"sets": {"x": Path("absent.jsonl")}}, "absent.jsonl: no such file"),
    ],
)
def test_impossible_options(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        run(tmp_path, [conversation(0, "a", "вопрос", "ответ")], **options)
    assert not (tmp_path / "out").exists()


def test_signs_tell_sums_apart_and_the_spaces_around_them_do_not(tmp_path: Path) -> None:
    sums = ["Сколько будет 12 + 7?", "Сколько будет 12 - 7?", "Сколько будет 12*7?", "Верно: 3 < 5?", "Верно: 3 >= 5?"]
    alike = ["Сколько будет 12+7", "СКОЛЬКО БУДЕТ 12 + 7? …", "Верно:  3<5"]
    kept, _ = run(tmp_path, [conversation(number, "a", asked, "да") for number, asked in enumerate(sums + alike)])
    assert [one.prompt for one in kept] == sums


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Чему равно 5!", "Чему равно 5"),
        ("Чему равен модуль числа -7?", "Чему равен модуль числа 7?"),
        ("Есть ли слово за́мок?", "Есть ли слово замо́к?"),
        ("Чем отличается все от всё?", "Чем отличается все от все?"),
        ("Верно ли: мы живём в России?", "Верно ли: мы живём в россии?"),
        ("Верно ли: казнить, нельзя помиловать?", "Верно ли: казнить нельзя, помиловать?"),
        ("Верно ли: он шёл не смотря под ноги?", "Верно ли: он шёл несмотря под ноги?"),
        ("if !x: что выведет код?", "if x: что выведет код?"),
    ],
)
def test_a_short_question_is_what_is_spelled(tmp_path: Path, one: str, other: str) -> None:
    made = [
        conversation(number, "a", asked, "да") for number, asked in enumerate([one, other, f" {one}\n", one.upper()])
    ]
    kept, removed = run(tmp_path, made)
    assert kept == made[:2]
    assert [entry["kept"] for entry in removed.values()] == ["0", "0"]


def test_the_system_message_belongs_to_the_question(tmp_path: Path) -> None:
    systems = ["Ты пират.", "Ты бабушка.", "", "Ты  пират."]
    for asked in ("Как прошёл твой день?", " ".join(WORDS), "✶ " * 40):
        made = [
            Conversation(str(number), "a", "ru", (*([Message("system", own)] if own else []), *turns))
            for number, own in enumerate(systems)
            for turns in [(Message("user", asked), Message("assistant", f"ответ {number}"))]
        ]
        directory = tmp_path / str(len(asked))
        directory.mkdir()
        kept, removed = run(directory, made)
        assert kept == made[:3]
        assert removed["3"]["kept"] == "0"
