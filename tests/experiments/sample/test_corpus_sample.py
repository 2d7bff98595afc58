"""The Russian sample corpus is what it claims to be: enough, natural, varied, and apart from its held-out part."""

import itertools
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from vikhr_fast.experiments.sample.text import RUSSIAN_TRAIN, RUSSIAN_VALIDATION

GENRES = ("encyclopaedia", "news", "popular_science", "stories", "technical_blog")
Words = tuple[str, ...]


def paragraphs_of(path: Path) -> list[str]:
    return [paragraph for paragraph in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")) if paragraph.strip()]


@pytest.fixture(scope="module")
def genres() -> dict[str, list[str]]:
    return {path.stem: paragraphs_of(path) for path in sorted(RUSSIAN_TRAIN.glob("*.txt"))}


@pytest.fixture(scope="module")
def validation() -> list[str]:
    return [paragraph for path in sorted(RUSSIAN_VALIDATION.glob("*.txt")) for paragraph in paragraphs_of(path)]


def words_of(paragraph: str) -> Words:
    return tuple(re.findall(r"\w+", paragraph.lower()))


def shingles_of(paragraph: str) -> set[Words]:
    words = words_of(paragraph)
    return set(zip(words, words[1:], words[2:], strict=False))


def largest_jaccard(paragraphs: list[str]) -> float:
    """Of all pairs, exactly, over shingles of three words."""
    shingles = [shingles_of(paragraph) for paragraph in paragraphs]
    return max(len(a & b) / max(1, len(a | b)) for a, b in itertools.combinations(shingles, 2))


def monotony(paragraphs: list[str]) -> list[str]:
    """What betrays text that was put together from templates; nothing for natural prose of some thousand words."""
    words = [word for paragraph in paragraphs for word in words_of(paragraph)]
    trigrams = Counter(zip(words, words[1:], words[2:], strict=False))
    openings = Counter(words_of(paragraph)[:2] for paragraph in paragraphs)
    measures = {
        "vocabulary": (len(set(words)) / len(words), 0.5),
        "distinct word triples": (len(trigrams) / trigrams.total(), 0.98),
        "distinct openings": (len(openings) / len(paragraphs), 0.9),
        "apart from one another": (1 - largest_jaccard(paragraphs), 0.9),
    }
    return [f"{name}: {value:.3f}, wanted {wanted}" for name, (value, wanted) in measures.items() if value < wanted]


def test_size() -> None:
    sizes = {path.stem: path.stat().st_size for path in RUSSIAN_TRAIN.glob("*.txt")}
    assert sorted(sizes) == sorted(GENRES)
    assert all(size >= 20_000 for size in sizes.values()), sizes
    assert sum(sizes.values()) >= 120_000
    assert sum(path.stat().st_size for path in RUSSIAN_VALIDATION.glob("*.txt")) >= 12_000


def test_is_russian_prose_in_paragraphs(genres: dict[str, list[str]], validation: list[str]) -> None:
    for name, paragraphs in {**genres, "validation": validation}.items():
        text = "\n".join(paragraphs)
        letters = [character for character in text if character.isalpha()]
        cyrillic = sum(bool(re.fullmatch("[А-Яа-яЁё]", letter)) for letter in letters)
        assert cyrillic / len(letters) > 0.9, name
        assert len(paragraphs) >= 30, name
        assert min(len(paragraph) for paragraph in paragraphs) >= 200, name
        assert all(re.search(r"[.!?…»)]$", paragraph.rstrip()) for paragraph in paragraphs), name
        assert not re.search("[\ufffd\x00-\x08\x0b-\x1f]", text), name


def test_no_near_duplicates_also_not_with_the_held_out_part(
    genres: dict[str, list[str]], validation: list[str]
) -> None:
    assert largest_jaccard([*itertools.chain(*genres.values()), *validation]) < 0.1


def test_language_is_varied(genres: dict[str, list[str]], validation: list[str]) -> None:
    for name, paragraphs in {**genres, "validation": validation}.items():
        assert monotony(paragraphs) == [], name


def test_no_phrase_is_worn_out(genres: dict[str, list[str]]) -> None:
    words = [word for paragraphs in genres.values() for paragraph in paragraphs for word in words_of(paragraph)]
    longer = Counter(zip(*(words[start:] for start in range(5)), strict=False))
    assert max(longer.values()) <= 2


TEMPLATES = (
    "В городе {place} недавно открыли {thing}. Жители давно ждали этого события и теперь очень довольны.",
    "Учёные из {place} исследовали {thing} и пришли к неожиданным выводам, о которых рассказали журналистам.",
    "Мало кто знает, что {thing} впервые появился именно в {place}. С тех пор прошло много лет.",
    "Как сообщает администрация {place}, {thing} будет отремонтирован до конца года за счёт бюджета.",
    "Каждое утро в {place} начиналось одинаково: старый сторож выходил посмотреть на {thing} и вздыхал.",
    "Чтобы построить {thing}, инженерам из {place} понадобилось три года и терпение местных властей.",
)
PLACES = ("Сосновске", "Берёзовке", "Заречье", "Каменске", "Озёрном", "Луговом", "Красном Яре", "Тихой Бухте")
THINGS = ("музей", "мост", "маяк", "завод", "театр", "вокзал", "стадион", "рынок", "парк", "архив", "телескоп", "порт")


@pytest.mark.parametrize("sentences", [1, 4])
def test_templated_text_is_recognised(sentences: int) -> None:
    generator = random.Random(0)
    paragraphs = [
        " ".join(
            generator.choice(TEMPLATES).format(place=generator.choice(PLACES), thing=generator.choice(THINGS))
            for _ in range(sentences)
        )
        for _ in range(60)
    ]
    assert len(monotony(paragraphs)) >= 3


def test_a_copied_paragraph_is_recognised(genres: dict[str, list[str]]) -> None:
    news = genres["news"]
    reworded = news[0].replace(words_of(news[0])[10], "другой")
    assert monotony([*news, reworded]) != []
