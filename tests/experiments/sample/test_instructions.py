"""The instruction pairs of the demo are what they claim to be: enough, natural, varied, no copies of one another."""

import itertools
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from vikhr_fast.chat.conversation import Conversation, checked_messages, read_conversations
from vikhr_fast.data.read import read_objects
from vikhr_fast.experiments.sample.instructions import INSTRUCTIONS, plant, write_preferences
from vikhr_fast.instruct.convert import CONVERSATIONS
from vikhr_fast.instruct.dedup import DedupConversations, dedup_conversations
from vikhr_fast.instruct.preferences import read_pairs
from vikhr_fast.instruct.rejected import Rejected
from vikhr_fast.instruct.schemas import messages_of

LEAST = {"russian": 300, "english": 100}
# Of each kind of task some, known by words of the question.
KINDS = {
    "russian": {
        "questions": r"^(кто|что|где|как|почему|зачем|сколько|какая|какой|когда|откуда)\b",
        "explanations": r"объясни|расскажи|опиши|поясни|в чём смысл",
        "rewriting": r"перепиши|исправь|замени|сократи|поставь|сделай|преврати|скажи",
        "lists": r"перечисли|список|назови|приведи|составь",
        "arithmetic": r"\d.*\?|\d[^?]*\d|посчитай|вычисли|сколько будет|умножить",
        "invention": r"придумай|сочини|напиши|выдумай|закончи",
        "advice": r"посовет|совет|что делать|подскажи|порекомендуй|как (\w+ ){0,2}\w+ть\b",
    },
    "english": {
        "questions": r"^(what|why|who|where|how|which|when|is|does)\b",
        "rewriting": r"rewrite|make this|put this|correct|turn this|change|replace|fix",
        "lists": r"^(list|name|give|suggest)\b|list",
        "arithmetic": r"\d",
        "invention": r"write|describe|invent|begin a story|compose",
    },
}


@pytest.fixture(scope="module", params=sorted(LEAST))
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def conversations(language: str) -> list[Conversation]:
    rows = [row for _, row in read_objects(INSTRUCTIONS / f"{language}.jsonl")]
    return [Conversation("", "", language, checked_messages(messages_of(row))) for row in rows]


def words_of(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower()))


def likeness(texts: list[str]) -> float:
    """The largest Jaccard similarity of any two texts, over sets of word pairs."""
    sets = [set(itertools.pairwise(("", *words_of(text)))) for text in texts]
    return max(len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2))


def monotony(questions: list[str], answers: list[str]) -> list[str]:
    """What betrays pairs that were put together from templates."""
    words = [word for text in (*questions, *answers) for word in words_of(text)]
    triples = Counter(
        t for text in (*questions, *answers) for t in zip(*(words_of(text)[i:] for i in range(3)), strict=False)
    )
    openings = Counter(words_of(question)[:3] for question in questions)
    measures = {
        "vocabulary": (len(set(words)) / len(words), 0.4),
        "distinct word triples": (len(triples) / triples.total(), 0.95),
        "distinct openings": (len(openings) / len(questions), 0.9),
        "questions apart": (1 - likeness(questions), 0.3),
        "answers apart": (len({words_of(answer) for answer in answers}) / len(answers), 0.95),
    }
    return [f"{name}: {value:.3f}, wanted {wanted}" for name, (value, wanted) in measures.items() if value < wanted]


def test_there_are_enough(language: str, conversations: list[Conversation]) -> None:
    assert len(conversations) >= LEAST[language]
    assert sum(len(one.messages) > 2 for one in conversations) >= LEAST[language] // 15


def test_they_are_in_their_language(language: str, conversations: list[Conversation]) -> None:
    letters = [character for one in conversations for character in one.text if character.isalpha()]
    cyrillic = sum(bool(re.fullmatch("[А-Яа-яЁё]", letter)) for letter in letters) / len(letters)
    assert cyrillic > 0.97 if language == "russian" else cyrillic < 0.02
    assert not any(re.search("[\ufffd\x00-\x08\x0b-\x1f]", one.text) for one in conversations)


def test_they_are_varied(conversations: list[Conversation]) -> None:
    assert monotony([one.prompt for one in conversations], [one.answer for one in conversations]) == []


def test_every_kind_of_task_is_there(language: str, conversations: list[Conversation]) -> None:
    for kind, pattern in KINDS[language].items():
        found = sum(bool(re.search(pattern, one.prompt.lower())) for one in conversations)
        assert found >= len(conversations) / 20, kind


TEMPLATES = (
    "Назови столицу страны {}.",
    "Расскажи, что такое {}.",
    "Сколько стоит {} в магазине?",
    "Опиши {} подробно.",
)
THINGS = ("дом", "лес", "стол", "снег", "хлеб", "мост", "чай", "сад", "порт", "клён", "ключ", "мяч", "плащ", "гриб")


def test_templates_are_recognised() -> None:
    chance = random.Random(0)
    questions = [chance.choice(TEMPLATES).format(chance.choice(THINGS)) for _ in range(100)]
    answers = [f"Вот что можно сказать про это: {chance.choice(THINGS)}." for _ in questions]
    assert len(monotony(questions, answers)) >= 4


def test_a_copied_pair_is_recognised(conversations: list[Conversation]) -> None:
    questions = [one.prompt for one in conversations]
    answers = [one.answer for one in conversations]
    assert monotony([*questions, questions[0].upper()], [*answers, "да"]) != []


def test_of_what_is_planted_dedup_removes_the_copies_and_every_preference_is_a_pair(
    conversations: list[Conversation], tmp_path: Path
) -> None:
    written = [one._replace(id=str(number)) for number, one in enumerate(conversations)]
    plant(written, tmp_path / "noisy.jsonl", 3)
    dedup_conversations(DedupConversations((tmp_path / "noisy.jsonl",), tmp_path / "unique"))
    planted, left = (
        {one.id for one in read_conversations([path])}
        for path in (tmp_path / "noisy.jsonl", tmp_path / "unique" / CONVERSATIONS)
    )
    assert left == {own for own in planted if not own.endswith("/copy")} < planted
    write_preferences(written, tmp_path / "preferences.jsonl", 3)
    rejected = Rejected()
    pairs = list(read_pairs([tmp_path / "preferences.jsonl"], ("prompt", "chosen", "rejected"), rejected))
    assert [pair._asdict() for pair in pairs] == [row for _, row in read_objects(tmp_path / "preferences.jsonl")]
    assert rejected == []


def test_the_files_lie_where_they_are_looked_for() -> None:
    assert sorted(path.name for path in Path(INSTRUCTIONS).glob("*")) == ["english.jsonl", "russian.jsonl"]
