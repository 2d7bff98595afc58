"""Documents that share long n-grams with evaluation sets, against the plainest search for them."""

import json
import random
from pathlib import Path

import pytest
from corpora import make_documents, texts_of, write_jsonl

from vikhr_fast.cli import main
from vikhr_fast.corpus.decontaminate import CONTAMINATED, Decontaminate, decontaminate
from vikhr_fast.corpus.settings import DecontaminateStage, EvaluationSet
from vikhr_fast.data.documents import Documents
from vikhr_fast.errors import ExitCode, InputError

WORDS = [f"слово{number}" for number in range(40)]


def grams(text: str, length: int) -> set[tuple[str, ...]]:
    words = text.lower().replace(".", "").replace(",", "").split()
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


@pytest.fixture
def case(tmp_path: Path) -> tuple[Documents, list[str], list[str], Path]:
    chance = random.Random(3)
    questions = [" ".join(chance.choices(WORDS, k=chance.randint(3, 30))) for _ in range(30)]
    texts = []
    for number in range(200):
        words = chance.choices(WORDS, k=chance.randint(1, 60))
        if number % 3 == 0:
            borrowed = chance.choice(questions).split()
            words[5:5] = borrowed[: chance.randint(1, len(borrowed))]
        texts.append(", ".join(words).capitalize() + ".")
    path = write_jsonl(tmp_path / "set.jsonl", [{"q": q, "n": n, "a": "нет"} for n, q in enumerate(questions)])
    return make_documents(tmp_path, {"a": texts[:120], "b": texts[120:]}, part_bytes=9000), texts, questions, path


@pytest.mark.parametrize("length", [5, 8, 13])
def test_documents_with_a_shared_n_gram_are_dropped_and_no_others(
    case: tuple[Documents, list[str], list[str], Path], tmp_path: Path, length: int
) -> None:
    documents, texts, questions, path = case
    wanted = set().union(*(grams(question, length) for question in questions))
    clean = [text for text in texts if not grams(text, length) & wanted]
    assert 0 < len(clean) < len(texts)
    sets = {"quiz": EvaluationSet(input=(str(path),), text=("q", "a"))}
    decontaminate(Decontaminate(documents.directory, tmp_path / "out", DecontaminateStage(sets=sets, words=length)))
    result = Documents.open(tmp_path / "out")
    assert texts_of(result) == clean
    notes = [json.loads(line) for line in (tmp_path / "out" / CONTAMINATED).read_text().splitlines()]
    assert len(notes) == result.total["contaminated"] == result.total["in_quiz"] == len(texts) - len(clean)
    shared = {note["text"]: note["shared"] for note in notes}
    for text in texts:
        if text not in clean:
            assert shared[text[:300]] == len(grams(text, length) & wanted)


def test_marking_keeps_every_document(case: tuple[Documents, list[str], list[str], Path], tmp_path: Path) -> None:
    documents, texts, questions, path = case
    quiz = {"quiz": EvaluationSet(input=(str(path),), text=("q",))}
    settings = DecontaminateStage(sets=quiz, words=8, action="mark")
    decontaminate(Decontaminate(documents.directory, tmp_path / "out", settings))
    result = Documents.open(tmp_path / "out")
    assert texts_of(result) == texts
    metas = [json.loads(meta) for table in result.tables() for meta in table["meta"].to_pylist()]
    wanted = set().union(*(grams(question, 8) for question in questions))
    assert [meta == {"contaminated": ["quiz"]} for meta in metas] == [bool(grams(t, 8) & wanted) for t in texts]


def test_sets_that_cannot_be_found_are_refused(
    case: tuple[Documents, list[str], list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents, _, _, path = case
    command = ["corpus", "decontaminate", str(documents.directory), "--output", str(tmp_path / "out"), "--sets"]
    for flags, complaint in (
        ((), "--sets: name at least one evaluation set"),
        (("q", str(path)), "no field 'text'"),
        (("q", str(path), "--text", "a"), "set q: no text in it is as long"),
        (("q", str(tmp_path / "no.txt")), "no such file"),
        (("q", str(path), "--text", "q", "--words", "0"), "--words 0: must be 1 to 1000"),
    ):
        with pytest.raises(SystemExit, match=str(int(ExitCode.BAD_INPUT))):
            main([*command, *flags])
        assert complaint in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_every_field_of_a_set_is_looked_for(tmp_path: Path) -> None:
    secret = " ".join(WORDS[:20])
    documents = make_documents(tmp_path / "in", {"a": [f"начало {secret} конец", "чистый текст"]})
    rows = [{"context": "", "question": secret}, {"context": None, "question": "да"}]
    path = write_jsonl(tmp_path / "set.jsonl", rows)
    settings = DecontaminateStage(sets={"quiz": EvaluationSet(input=(str(path),), text=("context", "question"))})
    decontaminate(Decontaminate(documents.directory, tmp_path / "out", settings))
    assert texts_of(Documents.open(tmp_path / "out")) == ["чистый текст"]


@pytest.mark.parametrize("row", [{"context": "да"}, {"context": "да", "question": ["нет", "да"]}])
def test_a_field_that_is_no_text_is_not_passed_over(tmp_path: Path, row: dict[str, object]) -> None:
    documents = make_documents(tmp_path / "in", {"a": ["чистый текст"]})
    path = write_jsonl(tmp_path / "set.jsonl", [row])
    settings = DecontaminateStage(sets={"quiz": EvaluationSet(input=(str(path),), text=("context", "question"))})
    with pytest.raises(InputError, match=r"line 1: .*'question'"):
        decontaminate(Decontaminate(documents.directory, tmp_path / "out", settings))
