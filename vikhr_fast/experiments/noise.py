"""Planted noise: what a corpus must lose on its way to the shards, by generators that a seed makes repeatable."""

import random
from collections.abc import Callable, Sequence

Generator = Callable[[random.Random, Sequence[str]], str]
"""Makes a bad document, if need be of one of the good ones."""

GOODS = str.split("окна двери шины диваны кредит телефоны ставки казино дипломы таблетки")
_MENU = str.split("Главная|О компании|Контакты|Вакансии|Карта сайта|Вход|Регистрация|Каталог|Доставка", "|")
_CALLS = str.split("Купить сейчас|Только сегодня скидка|Успей заказать|Акция|Бесплатная доставка|Звоните нам", "|")
_ENGLISH = str.split(
    "the of and to in is that for it with as was on be at by this had not are but from or have an they"
)
_FRENCH = str.split("le la les de des et un une est pas que qui dans pour sur avec plus nous vous ils elle être")


def bad_words(vocabulary: Sequence[str]) -> Generator:
    """Of words without a sentence."""
    return lambda chance, _: " ".join(chance.choices(vocabulary, k=chance.randint(40, 120)))


def misread(written: str, read: str, least: int = 150, most: int = 500) -> Generator:
    """Of text in one encoding that is read as another one, `least` to `most` characters of it."""

    def generator(chance: random.Random, good: Sequence[str]) -> str:
        text = chance.choice(good)[: chance.randint(least, most)]
        return text.encode(written, "ignore").decode(read, "ignore")

    return generator


def _menus(chance: random.Random, _: Sequence[str]) -> str:
    return "\n".join(" | ".join(chance.sample(_MENU, 5)) for _ in range(chance.randint(4, 10)))


def _broken_html(chance: random.Random, good: Sequence[str]) -> str:
    tags = ['<div class="block">', "</td><td>", "<br/>&nbsp;&nbsp;", '<a href="/index.php?id=%d">', "</span></div>"]
    words = chance.choice(good).split()[:60]
    return " ".join(f"{chance.choice(tags)}{word}" if chance.random() < 0.5 else word for word in words)


def _adverts(chance: random.Random, _: Sequence[str]) -> str:
    return " ".join(
        f"{chance.choice(_CALLS)}! {chance.choice(GOODS).upper()} от {chance.randint(99, 9999)} руб!!!"
        for _ in range(chance.randint(5, 15))
    )


def _doorway(chance: random.Random, good: Sequence[str]) -> str:
    words = chance.choice(good).split()[:80]
    chance.shuffle(words)
    return ", ".join(word.upper() for word in words)


def _style_sheet(chance: random.Random, _: Sequence[str]) -> str:
    return "\n".join(
        f".{chance.choice(_ENGLISH)}{chance.randint(1, 99)} {{ margin: {chance.randint(0, 9)}px; color: #{n}f0; }}"
        for n in range(chance.randint(5, 15))
    )


def _stock_list(chance: random.Random, _: Sequence[str]) -> str:
    rows = (f"{n}; {chance.choice(GOODS)}; {chance.randint(1, 999)} шт.; {chance.randint(1, 99)}%" for n in range(12))
    return "\n".join(rows)


def _syllables(chance: random.Random, _: Sequence[str]) -> str:
    pieces = [c + v for c in "бвгджзклмнпрстф" for v in "аеиоуыя"]
    return " ".join("".join(chance.choices(pieces, k=chance.randint(1, 4))) for _ in range(chance.randint(30, 90)))


def _wiki_markup(chance: random.Random, good: Sequence[str]) -> str:
    words = chance.choice(good).split()[:50]
    return "".join(f"{{{{{word}|{chance.randint(1, 9)}}}}}[[{word}]]''" for word in words)


SEEN: tuple[Generator, ...] = (
    *(_menus, _broken_html, _adverts, misread("utf-8", "latin-1"), bad_words(_ENGLISH), _doorway),
    *(_style_sheet, _stock_list, misread("cp866", "cp1251"), misread("utf-8", "cp1251", 100, 300)),
    *(bad_words(_FRENCH), _syllables, _wiki_markup),
)
"""The kinds that the classifier is trained on."""


def bad_documents(generators: Sequence[Generator], count: int, good: Sequence[str], seed: int) -> list[str]:
    """So many bad documents, of each kind in turn."""
    chance = random.Random(seed)
    return [generators[number % len(generators)](chance, good) for number in range(count)]


def nearly(paragraph: str, chance: random.Random) -> str:
    """The paragraph with one word in forty changed, so that it is a near-duplicate at Jaccard 0.8 or a little less."""
    words = paragraph.split(" ")
    for _ in range(max(1, len(words) // 60)):
        words[chance.randrange(len(words))] = chance.choice(["однако", "впрочем", "конечно", "например"])
    return " ".join(words)
