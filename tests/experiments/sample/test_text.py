"""Where the demo's text comes from, what of it is used, and that nothing held out is trained on."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vikhr_fast.errors import InputError
from vikhr_fast.experiments.sample import text as demo_text
from vikhr_fast.experiments.sample.text import ENGLISH, RUSSIAN, read_usage, text_source, write_texts

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"
WORDS = st.text(alphabet="abcабв", min_size=1, max_size=9)


def write_paragraphs(path: Path, count: int, words: int = 40) -> Path:
    text = (" ".join(f"word{number}x{index}" for index in range(words)) for number in range(count))
    path.write_text("\n\n".join(text), encoding="utf-8")
    return path


def written(directory: Path, language: str, part: str) -> list[str]:
    lines = (directory / f"{language}-{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_texts_of_the_package(tmp_path: Path) -> None:
    sources = {language: text_source(language, ()) for language in (ENGLISH, RUSSIAN)}
    write_texts(tmp_path / "text", sources, 1_000_000)
    for language in sources:
        train, validation = (written(tmp_path / "text", language, part) for part in ("train", "validation"))
        use = read_usage(tmp_path / "text")[language]
        assert use.train_bytes == sum(len(text.encode()) for text in train) > 150_000
        assert use.validation_bytes == sum(len(text.encode()) for text in validation) > 20_000
        assert use.train_bytes + use.validation_bytes == use.available_bytes
        long_paragraphs = [
            {" ".join(part.split()) for text in texts for part in re.split(r"\n\s*\n", text) if len(part) > 60}
            for texts in (train, validation)
        ]
        assert not long_paragraphs[0] & long_paragraphs[1]
    assert any("\n" in text for text in written(tmp_path / "text", ENGLISH, "train"))  # code keeps its layout
    assert not any(
        re.search(r"^(\*{4,}|={4,}|-{4,})$", text, re.M) for text in written(tmp_path / "text", ENGLISH, "train")
    )


def test_big_files_are_sampled_from_all_over(tmp_path: Path) -> None:
    path = write_paragraphs(tmp_path / "big.txt", 2_000)
    write_texts(tmp_path / "text", {RUSSIAN: text_source(RUSSIAN, (path,))}, 100_000)
    numbers = [int(re.match(r"word(\d+)x", text)[1]) for text in written(tmp_path / "text", RUSSIAN, "train")]  # type: ignore[index]
    use = read_usage(tmp_path / "text")[RUSSIAN]
    assert 95_000 < use.train_bytes <= 100_000
    assert use.available_bytes > 800_000
    assert numbers == sorted(numbers)
    for quarter in range(4):
        share = sum(500 * quarter <= number < 500 * (quarter + 1) for number in numbers) / len(numbers)
        assert 0.2 < share < 0.3


def test_repeated_paragraphs_stay_on_one_side(tmp_path: Path) -> None:
    once = write_paragraphs(tmp_path / "once.txt", 400).read_text()
    path = tmp_path / "twice.txt"
    path.write_text(f"{once}\n\n{once.replace(' ', '  ')}", encoding="utf-8")
    write_texts(tmp_path / "text", {ENGLISH: text_source(ENGLISH, (path,))}, 1_000_000)
    sides = [{tuple(t.split()) for t in written(tmp_path / "text", ENGLISH, part)} for part in ("train", "validation")]
    assert not sides[0] & sides[1]
    assert 20 <= len(sides[1]) <= 60


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("Мало текста.", "only 22 bytes of text; at least 100,000 bytes of Russian are needed"),
        ("\n\n".join(["Один и тот же абзац без конца."] * 3_000), "fall into the tenth that is held out"),
    ],
)
def test_too_little_text(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "russian.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=f"russian.txt: .*{complaint}"):
        text_source(RUSSIAN, (path,))


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 800))
def test_sampling_never_exceeds_its_limit_and_takes_all_where_all_fits(sizes: list[int], limit: int) -> None:
    texts = ["x" * size for size in sizes]
    taken = list(demo_text._evenly(texts, sum(sizes), limit))
    assert sum(map(len, taken)) <= limit
    if limit >= sum(sizes):
        assert taken == texts
    else:
        assert sum(map(len, taken)) > limit - 2 * max(sizes)


@given(st.lists(st.lists(WORDS, min_size=1, max_size=200), min_size=1, max_size=40))
def test_pieces_are_short_and_lose_nothing(lines: list[list[str]]) -> None:
    text = "\n".join(" ".join(words) for words in lines)
    pieces = list(demo_text._pieces(text))
    assert all(len(piece) <= 2_000 for piece in pieces)
    assert " ".join(pieces).split() == text.split()


def test_a_word_without_end_is_cut() -> None:
    assert [len(piece) for piece in demo_text._pieces("x" * 4_500)] == [2_000, 2_000, 500]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real text beside the project is not here")
def test_real_files(tmp_path: Path) -> None:
    files = {RUSSIAN: SHARED_DATA / "ru" / "news.txt", ENGLISH: SHARED_DATA / "en" / "docs.txt"}
    write_texts(tmp_path / "text", {name: text_source(name, (path,)) for name, path in files.items()}, 1_000_000)
    for name, use in read_usage(tmp_path / "text").items():
        assert use.source == str(files[name])
        assert 990_000 < use.train_bytes <= 1_000_000
        assert 35_000 < use.validation_bytes <= 40_000


@pytest.mark.parametrize("damaged", ["[]", '{"english": []}', '{"english": {"source": 1}}', "[" * 100_000])
def test_usage_of_another_shape_is_one_line(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "usage.json").write_text(damaged)
    with pytest.raises(InputError, match=r"usage\.json: damaged: .*; run the same command again$"):
        read_usage(tmp_path)
