"""Planted noise: what a corpus must lose on its way to the shards, with a record of what was planted where.

Bad documents come in two disjoint families of generators: `SEEN` to train the classifier, `HELD_OUT` to test it.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

Generator = Callable[[random.Random, Sequence[str]], str]

_MENU = ["Главная", "О компании", "Контакты", "Вакансии", "Карта сайта", "Вход", "Регистрация", "Каталог", "Доставка"]
_CALLS = ["Купить сейчас", "Только сегодня скидка", "Успей заказать", "Акция", "Бесплатная доставка", "Звоните нам"]
_GOODS = ["окна", "двери", "шины", "диваны", "кредит", "телефоны", "ставки", "казино", "дипломы", "таблетки"]
_LATIN = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "with",
    "as",
    "was",
    "on",
    "be",
    "at",
    "by",
    "this",
    "had",
    "not",
    "are",
    "but",
    "from",
    "or",
    "have",
    "an",
    "they",
]
_GERMAN = [
    "der",
    "die",
    "das",
    "und",
    "ist",
    "nicht",
    "mit",
    "auf",
    "ein",
    "eine",
    "für",
    "dem",
    "den",
    "von",
    "zu",
    "im",
    "sich",
    "auch",
    "werden",
    "bei",
    "nach",
    "wie",
    "über",
]
_FRENCH = [
    "le",
    "la",
    "les",
    "de",
    "des",
    "et",
    "un",
    "une",
    "est",
    "pas",
    "que",
    "qui",
    "dans",
    "pour",
    "sur",
    "avec",
    "plus",
    "nous",
    "vous",
    "ils",
    "elle",
    "être",
]
_KEYS = ["qwertyuiop", "asdfghjkl", "zxcvbnm", "йцукенгшщзхъ", "фывапролджэ", "ячсмитьбю"]


def _sentences(chance: random.Random, good: Sequence[str]) -> str:
    return chance.choice(good)


def menus(chance: random.Random, _: Sequence[str]) -> str:
    """Navigation."""
    return "\n".join(" | ".join(chance.sample(_MENU, 5)) for _ in range(chance.randint(4, 10)))


def broken_html(chance: random.Random, good: Sequence[str]) -> str:
    """Words among unclosed tags."""
    tags = ['<div class="block">', "</td><td>", "<br/>&nbsp;&nbsp;", '<a href="/index.php?id=%d">', "</span></div>"]
    words = _sentences(chance, good).split()[:60]
    return " ".join(f"{chance.choice(tags)}{word}" if chance.random() < 0.5 else word for word in words)


def adverts(chance: random.Random, _: Sequence[str]) -> str:
    """Calls to buy."""
    return " ".join(
        f"{chance.choice(_CALLS)}! {chance.choice(_GOODS).upper()} от {chance.randint(99, 9999)} руб!!!"
        for _ in range(chance.randint(5, 15))
    )


def mangled(chance: random.Random, good: Sequence[str]) -> str:
    """UTF-8 read as Latin-1."""
    return _sentences(chance, good)[: chance.randint(150, 500)].encode("utf-8").decode("latin-1")


def english(chance: random.Random, _: Sequence[str]) -> str:
    """English words without a sentence."""
    return " ".join(chance.choices(_LATIN, k=chance.randint(40, 120)))


def shuffled(chance: random.Random, good: Sequence[str]) -> str:
    """Words without their order, in capitals: the keyword lists of doorway pages."""
    words = _sentences(chance, good).split()[:80]
    chance.shuffle(words)
    return ", ".join(word.upper() for word in words)


def css(chance: random.Random, _: Sequence[str]) -> str:
    """Style sheets."""
    return "\n".join(
        f".{chance.choice(_LATIN)}{chance.randint(1, 99)} {{ margin: {chance.randint(0, 9)}px; color: #{n}f0; }}"
        for n in range(chance.randint(5, 15))
    )


def stock(chance: random.Random, _: Sequence[str]) -> str:
    """Rows of a stock list."""
    rows = (f"{n}; {chance.choice(_GOODS)}; {chance.randint(1, 999)} шт.; {chance.randint(1, 99)}%" for n in range(12))
    return "\n".join(rows)


def mangled_dos(chance: random.Random, good: Sequence[str]) -> str:
    """CP866 read as CP1251."""
    text = _sentences(chance, good)[: chance.randint(150, 500)]
    return text.encode("cp866", "ignore").decode("cp1251", "ignore")


def mangled_back(chance: random.Random, good: Sequence[str]) -> str:
    """UTF-8 read as CP1251."""
    return _sentences(chance, good)[: chance.randint(100, 300)].encode("utf-8").decode("cp1251", "ignore")


def french(chance: random.Random, _: Sequence[str]) -> str:
    """French words without a sentence."""
    return " ".join(chance.choices(_FRENCH, k=chance.randint(40, 120)))


def syllables(chance: random.Random, _: Sequence[str]) -> str:
    """Words that are none."""
    pieces = [c + v for c in "бвгджзклмнпрстф" for v in "аеиоуыя"]
    return " ".join("".join(chance.choices(pieces, k=chance.randint(1, 4))) for _ in range(chance.randint(30, 90)))


def wiki_markup(chance: random.Random, good: Sequence[str]) -> str:
    """Templates and links of a wiki."""
    words = _sentences(chance, good).split()[:50]
    return "".join(f"{{{{{word}|{chance.randint(1, 9)}}}}}[[{word}]]''" for word in words)


def scripts(chance: random.Random, _: Sequence[str]) -> str:
    """JavaScript."""
    return "\n".join(
        f"var a{chance.randint(1, 99)}=document.getElementById('b{chance.randint(1, 99)}');if(!a{{}}){{return;}}"
        for _ in range(chance.randint(5, 15))
    )


def price_lists(chance: random.Random, _: Sequence[str]) -> str:
    """Rows of a price list."""
    return "\n".join(
        f"{chance.choice(_GOODS)} арт. {chance.randint(1000, 99999)} — {chance.randint(10, 9999)},00 руб/шт"
        for _ in range(chance.randint(8, 20))
    )


def double_mangled(chance: random.Random, good: Sequence[str]) -> str:
    """CP1251 read as KOI8-R: Cyrillic letters without words."""
    text = _sentences(chance, good)[: chance.randint(150, 500)]
    return text.encode("cp1251", "ignore").decode("koi8-r", "ignore")


def german(chance: random.Random, _: Sequence[str]) -> str:
    """German words without a sentence."""
    return " ".join(chance.choices(_GERMAN, k=chance.randint(40, 120)))


def keyboards(chance: random.Random, _: Sequence[str]) -> str:
    """Keys pressed at random."""
    return " ".join(
        "".join(chance.choices(chance.choice(_KEYS), k=chance.randint(3, 9))) for _ in range(chance.randint(30, 90))
    )


def tables_of_tags(chance: random.Random, good: Sequence[str]) -> str:
    """Forum tags around every word."""
    words = _sentences(chance, good).split()[:40]
    return "".join(f"[b]{word}[/b][url=http://{chance.choice(_GERMAN)}.ru/{word}]" for word in words)


SEEN: dict[str, Generator] = {
    generator.__name__: generator
    for generator in (
        *(menus, broken_html, adverts, mangled, english, shuffled, css, stock),
        *(mangled_dos, mangled_back, french, syllables, wiki_markup),
    )
}
HELD_OUT: dict[str, Generator] = {
    generator.__name__: generator
    for generator in (scripts, price_lists, double_mangled, german, keyboards, tables_of_tags)
}


def bad_documents(generators: dict[str, Generator], count: int, good: Sequence[str], seed: int) -> list[str]:
    """So many bad documents, of each kind in turn."""
    chance = random.Random(seed)
    kinds = list(generators.values())
    return [kinds[number % len(kinds)](chance, good) for number in range(count)]


def nearly(paragraph: str, chance: random.Random) -> str:
    """The paragraph with one word in forty changed, so that it is a near-duplicate at Jaccard 0.8 or a little less."""
    words = paragraph.split(" ")
    for _ in range(max(1, len(words) // 60)):
        words[chance.randrange(len(words))] = chance.choice(["однако", "впрочем", "конечно", "например"])
    return " ".join(words)


class Private(NamedTuple):
    """Private strings that were planted, by kind."""

    email: list[str]
    phone: list[str]
    ip: list[str]
    key: list[str]


def private_strings(count: int, seed: int) -> Private:
    """So many of each kind."""
    chance = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    digits = "0123456789"

    def some(alphabet: str, length: int) -> str:
        return "".join(chance.choices(alphabet, k=length))

    def phone() -> str:
        return f"+7 (91{some(digits, 1)}) {some('123456789', 3)}-{some(digits, 2)}-{some(digits, 2)}"

    def address() -> str:
        return (
            f"{chance.choice((91, 95, 178))}.{chance.randint(10, 250)}.{chance.randint(1, 250)}.{chance.randint(1, 9)}"
        )

    return Private(
        [f"{some(letters, 7)}.{some(letters, 5)}@{some(letters, 6)}.ru" for _ in range(count)],
        [phone() for _ in range(count)],
        [address() for _ in range(count)],
        [f"ghp_{some(letters + digits, 36)}" for _ in range(count)],
    )
