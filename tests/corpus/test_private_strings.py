"""What is a phone number or an address, and what only looks like one: how often that is right, and laws."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lookalikes import HALF, LISTS, MOBILE, cases, quality

from vikhr_fast.corpus.private_strings import Kind
from vikhr_fast.corpus.scrub import scrub_text
from vikhr_fast.corpus.settings import ScrubStage

ALL = ScrubStage()


@pytest.mark.parametrize("half", [0, 1], ids=["rules-made-on", "held-out"])
@pytest.mark.parametrize("kind", LISTS)
def test_precision_and_recall(kind: Kind, half: int) -> None:
    assert [len(own) for own in cases(kind, half)] == [HALF, HALF]
    found = quality(kind, half)
    assert found.precision >= 0.99
    assert found.recall >= 0.98


def test_the_halves_have_no_sentence_in_common() -> None:
    for kind in LISTS.values():
        seen, held_out = (
            {s for own in (half.private, half.other) for texts in own.values() for s in texts} for half in kind
        )
        assert not (seen & held_out - {"{}"})


@settings(max_examples=100, deadline=None)
@given(
    amount=st.integers(10**5, 10**13),
    separator=st.sampled_from(" .\u00a0\u202f"),
    unit=st.sampled_from(["рублей", "и"]),
)
def test_groups_of_three_are_an_amount(amount: int, separator: str, unit: str) -> None:
    text = f"Всего {amount:,}".replace(",", separator) + f" {unit}"
    assert scrub_text(text, ALL)[0] == text


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 40), gap=st.sampled_from([" ", ", ", " – ", "\n"]), seed=st.integers(0, 99))
def test_each_number_of_a_list_is_found(count: int, gap: str, seed: int) -> None:
    draw = random.Random(seed)
    forms = ("8 {} {:03} {:02} {:02}", "+7 ({}) {:03}-{:02}-{:02}", "8-{}-{:03}-{:02}-{:02}", "{} {:03}-{:02}-{:02}")
    numbers = [
        draw.choice(forms).format(draw.choice(MOBILE), draw.randrange(1000), draw.randrange(100), draw.randrange(100))
        for _ in range(count)
    ]
    assert scrub_text(gap.join(numbers), ALL)[0] == gap.join(["[PHONE]"] * count)


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("8 912 345 67 89 8 912 345 67 88", "[PHONE] [PHONE]"),
        ("из Минска 8-10-375-17-123-45-67", "из Минска [PHONE]"),
        ("8 (38822) 2-34-56, 8 912 34 56 789", "[PHONE], [PHONE]"),
        ("заказ 79949646482, тел. 9994964648", "заказ 79949646482, тел. [PHONE]"),
        ("Рост +8 483 667 388 рублей, +48 123 456 789", "Рост +8 483 667 388 рублей, [PHONE]"),
        ("дом 12 8 912 345 67 89", "дом 12 [PHONE]"),
        ("пункты 12.15.22.31, 12.15.22.32 и 12.15.23.10", "пункты 12.15.22.31, 12.15.22.32 и 12.15.23.10"),
        ("обновление сервера 5.6.7.8", "обновление сервера [IP]"),
        ("прошивка: http://5.6.7.8/a.bin", "прошивка: http://[IP]/a.bin"),
        ("5.6.7.0/24 и 5.6.7.8", "[IP]/24 и 5.6.7.8"),
        ("_ivan@mail.ru_, logo@2x.png", "[EMAIL]_, logo@2x.png"),
        ("git clone git@github.com:user/repo.git", "git clone git@github.com:user/repo.git"),
        ("<div class='sk-fading-circle-container-wrapper'>", "<div class='sk-fading-circle-container-wrapper'>"),
        ("token = load_tokenizer_v2_model", "token = load_tokenizer_v2_model"),
        ("password = password_of_user_1(name)", "password = password_of_user_1(name)"),
        ("api_key = sk_live_4ec39hqlyjwdarjtt1zdp7dc", "api_key = [KEY]"),
    ],
)
def test_context_decides(text: str, scrubbed: str) -> None:
    assert scrub_text(text, ALL)[0] == scrubbed


def test_countries_write_their_own_way() -> None:
    text = "512 345 678, 512 345 678 руб."
    assert scrub_text(text, ScrubStage(region="PL"))[0] == "[PHONE], 512 345 678 руб."
    assert scrub_text(text, ALL)[0] == text
    american = "(212) 736-5000, 212-736-5000, 1-212-736-5000"
    assert scrub_text(american, ScrubStage(region="US"))[0] == "[PHONE], [PHONE], [PHONE]"
