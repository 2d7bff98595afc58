"""Private strings give way to tags, and what only looks like them stays."""

import json
import time
from pathlib import Path

import pytest
from corpora import make_documents, texts_of
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_noise import private_strings

from vikhr_fast.corpus.scrub import REPLACED, Scrub, scrub, scrub_text
from vikhr_fast.corpus.settings import ScrubStage
from vikhr_fast.data.documents import Documents
from vikhr_fast.errors import InputError
from vikhr_fast.report.command import Report, report_run

ALL = ScrubStage()


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("Пишите на ivan.petrov+news@mail.example.ru.", "Пишите на [EMAIL]."),
        ("Почта: иван@почта.рф, ждём.", "Почта: [EMAIL], ждём."),
        ("Тел. 8 (495) 123-45-67 или +7 912 345 67 89", "Тел. [PHONE] или [PHONE]"),
        ("Позвоните в Лондон: +44 20 7946 0958!", "Позвоните в Лондон: [PHONE]!"),
        ("Звоните 8 (495) 123-45-67, спросить Анну", "Звоните [PHONE], спросить Анну"),
        ("8 912 345 67 89, 8 912 345 67 88, 8 912 345 67 87", "[PHONE], [PHONE], [PHONE]"),
        ("тел.8-912-345-67-89,+7 912 345 67 88", "тел.[PHONE],[PHONE]"),
        ("8 912 345-67-89 – 8 912 765-43-21", "[PHONE] – [PHONE]"),
        ("ivan@mail.example.ru- пишите; ivan@xn--80a1acny.xn--p1ai", "[EMAIL]- пишите; [EMAIL]"),
        ("token: " + "a1" * 150, "token: [KEY]"),
        ("Сервер 8.8.8.8, порт 80; 2001:4860:4860::8888.", "Сервер [IP], порт 80; [IP]."),
        ("Сервер 2001:4860:4860::8888 отвечает", "Сервер [IP] отвечает"),
        ("export KEY=AKIAIOSFODNN7EXAMPLE", "export KEY=[KEY]"),
        ("api_key: 'f3Ab09cd77e1f3Ab09cd'", "api_key: '[KEY]'"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----.", "[KEY]."),
    ],
)
def test_private_strings_are_replaced(text: str, scrubbed: str) -> None:
    assert scrub_text(text, ALL)[0] == scrubbed


@pytest.mark.parametrize(
    "text",
    [
        "В 1941-1945 годах, 22.06.1941, в 12:30:45.",
        "Версия 1.2.3.4.5, адреса 127.0.0.1 и 192.168.0.1, std::vector и ::1.",
        "A::B и C::D, 2 145 678 901,50 руб, 0,8912345678 и 1.8912345678",
        "ГОСТ 12345-67, ISBN 978-5-699-12014-7, 3.14159265358979.",
        "Население 12 345 678 человек; @имя и e-mail; 10 000 000 000 рублей",
        "пароль: собакакошкамышка",
        "skрипка и sk-короткий",
    ],
)
def test_what_only_looks_like_them_stays(text: str) -> None:
    assert scrub_text(text, ALL)[0] == text


def test_all_that_is_planted_is_found_and_counted(tmp_path: Path) -> None:
    planted = private_strings(40, seed=5)
    texts = [f"Слово {value} и ещё слово." for kind in planted for value in kind]
    documents = make_documents(tmp_path, {"a": texts[:80], "b": texts[80:]}, part_bytes=2000)
    scrub(Scrub(documents.directory, tmp_path / "out", ALL))
    result = Documents.open(tmp_path / "out")
    assert {kind: result.total[kind] for kind in ALL.kinds} == dict.fromkeys(ALL.kinds, 40)
    assert result.counts["a"]["key"] == result.counts["b"]["email"] == 0
    assert not any(value in text for text in texts_of(result) for kind in planted for value in kind)


def test_only_the_kinds_that_are_asked_for() -> None:
    text = "a@b.ru, IP 8.8.8.8"
    assert scrub_text(text, ScrubStage(kinds=("ip",))) == ("a@b.ru, IP [IP]", {"ip": 1})


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="аб1. \n", max_size=80))
def test_scrubbing_twice_changes_nothing_more(text: str) -> None:
    once, _ = scrub_text(text, ALL)
    assert scrub_text(once, ALL)[0] == once


def test_a_country_that_is_none_is_refused(tmp_path: Path) -> None:
    documents = make_documents(tmp_path / "in", {"a": ["текст"]})
    with pytest.raises(InputError, match="region XX: no such country"):
        scrub(Scrub(documents.directory, tmp_path / "out", ScrubStage(region="XX")))


@pytest.mark.parametrize(
    "piece", ["a", "1", "1.", "@", "a@", " ", ":", "a.", "1 ", "-", "eyJ", "+7 ", "token=", "(", "12 "]
)
def test_no_text_takes_quadratic_time(piece: str) -> None:
    start = time.process_time()
    scrub_text(piece * (100_000 // len(piece)), ALL)
    assert time.process_time() - start < 5


def test_a_sample_of_what_was_replaced(tmp_path: Path) -> None:
    texts = [f"Документ {n} <b>жирный</b>: пишите на {n}@mail.ru, 8 912 345-67-{n:02}." for n in range(60)]
    samples = []
    for part_bytes in (1 << 10, 1 << 20):  # many parts, one part
        root = tmp_path / str(part_bytes)
        documents = make_documents(root / "in", {"a": texts}, part_bytes)
        scrub(Scrub(documents.directory, root / "out", ScrubStage(sample=7)))
        samples.append((root / "out" / REPLACED).read_text())
    assert samples[0] == samples[1]
    notes = [json.loads(line) for line in samples[0].splitlines()]
    assert [note["kind"] for note in notes] == ["email"] * 7 + ["phone"] * 7
    assert all(note["before"] + note["found"] + note["after"] in texts for note in notes if note["kind"] == "email")
    page = report_run(Report((root / "out",)))
    assert page == root / "out" / "report.html"
    shown = page.read_text()
    assert "This page holds personal data" in shown
    assert "[EMAIL]: 7 of 60, drawn at random." in shown
    assert notes[0]["found"] in shown
    assert "<b>" not in shown


def test_no_sample(tmp_path: Path) -> None:
    documents = make_documents(tmp_path / "in", {"a": ["пишите на a@mail.ru"]})
    scrub(Scrub(documents.directory, tmp_path / "out", ScrubStage(sample=0)))
    assert not (tmp_path / "out" / REPLACED).exists()
    assert texts_of(Documents.open(tmp_path / "out")) == ["пишите на [EMAIL]"]
