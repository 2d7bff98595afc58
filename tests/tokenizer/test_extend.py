"""Extension against a plain rewriting of BPE training, and against what it promises about ids and reachability."""

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast._native import Extender, WordCounts
from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer.efficiency import measure
from vikhr_fast.tokenizer.export import read_model
from vikhr_fast.tokenizer.extend import ExtendTokenizer, extend_tokenizer
from vikhr_fast.tokenizer.pieces import unreachable_pieces
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer

DATA = Path(__file__).parents[3] / "shared" / "data"
CONTROL = 3
FIRST_SCORE = -100.0


@pytest.fixture(scope="session")
def base(corpus: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An English tokenizer without chat pieces, as Mistral's own is."""
    directory = tmp_path_factory.mktemp("base") / "tokenizer"
    train_tokenizer(TrainTokenizer(input=corpus[-1:], output=directory, vocab_size=1000))
    model = read_model(directory / "tokenizer.model")
    for piece in [piece for piece in model.pieces if piece.piece.startswith("<|")]:
        model.pieces.remove(piece)
    file = directory.parent / "base.model"
    file.write_bytes(model.SerializeToString())
    return file


@pytest.fixture
def options(base: Path, corpus: tuple[Path, ...], tmp_path: Path) -> ExtendTokenizer:
    return ExtendTokenizer(base=base, input=corpus[:2], output=tmp_path / "out", compare=corpus[-1:], vocab_size=1600)


def test_base_keeps_its_ids_and_new_pieces_are_reachable(options: ExtendTokenizer) -> None:
    report = extend_tokenizer(options)
    old, new = read_model(options.base), read_model(options.output / "tokenizer.model")
    assert [(p.piece, p.score, p.type) for p in new.pieces[:998]] == [(p.piece, p.score, p.type) for p in old.pieces]
    assert [(p.piece, p.type) for p in new.pieces[998:1000]] == [("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL)]
    assert len(new.pieces) == 1600
    assert (report["base"], report["control"], report["unreachable"]) == (998, 2, 0)
    assert report["learnt"] + report["characters"] == 600
    assert unreachable_pieces(options.output / "tokenizer.model") == []
    assert json.loads((options.output / "extend.json").read_text()) == report
    added = [piece.piece for piece in new.pieces[1000:]]
    assert not [piece for piece in added if re.search(r"\d|.▁|[а-я][a-z,.]", piece)]
    assert max(map(len, added)) <= 16


def test_new_language_gets_shorter_and_the_old_one_stays(options: ExtendTokenizer, corpus: tuple[Path, ...]) -> None:
    report = extend_tokenizer(options)
    before, after = measure([options.base, options.output / "tokenizer.model"], corpus[2:3])
    assert after["tokens"] < 0.3 * before["tokens"]
    assert report["compared"]["words_changed"] < 0.01
    assert report["compared"]["tokens_after"] <= report["compared"]["tokens_before"]


def test_same_input_gives_the_same_bytes(options: ExtendTokenizer, tmp_path: Path) -> None:
    extend_tokenizer(options)
    extend_tokenizer(replace(options, input=options.input[::-1], output=tmp_path / "again"))  # in any order
    first, again = ({f.name: f.read_bytes() for f in d.iterdir()} for d in (options.output, tmp_path / "again"))
    assert first == again


def test_a_directory_is_a_base_and_control_pieces_are_added_once(options: ExtendTokenizer, tmp_path: Path) -> None:
    extend_tokenizer(replace(options, control=("<|tool|>",), reserved=2))
    again = replace(options, base=options.output, output=tmp_path / "again", vocab_size=1700, control=("<|more|>",))
    report = extend_tokenizer(again)
    assert report["control"] == 1  # the chat pieces are there already
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "again" / "tokenizer.model"))
    for piece in ("<|im_start|>", "<|im_end|>", "<|tool|>", "<|reserved_0|>", "<|reserved_1|>", "<|more|>"):
        assert processor.is_control(processor.piece_to_id(piece))
    assert unreachable_pieces(tmp_path / "again" / "tokenizer.model") == []


def test_a_naive_merge_of_vocabularies_is_found_unreachable(
    trained: Path, corpus: tuple[Path, ...], tmp_path: Path
) -> None:
    """The count that is 0 for an extension is not 0 for pieces that were just appended."""
    train_tokenizer(TrainTokenizer(corpus[:1], tmp_path / "one", vocab_size=1500))
    model = read_model(tmp_path / "one" / "tokenizer.model")
    known, score = {piece.piece for piece in model.pieces}, min(piece.score for piece in model.pieces)
    for piece in read_model(trained / "tokenizer.model").pieces:
        if piece.type == 1 and piece.piece not in known:
            model.pieces.add(piece=piece.piece, score=score - len(model.pieces), type=1)
    file = tmp_path / "merged.model"
    file.write_bytes(model.SerializeToString())
    unreachable = unreachable_pieces(file)
    assert unreachable
    processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    for piece in unreachable:
        assert processor.piece_to_id(piece) not in processor.encode("\n" + piece)


def naive(
    base: dict[str, float], classes: dict[str, int], words: Counter[str], most: int, count: int
) -> list[tuple[str, int]]:
    """BPE as it is defined: encode all words, take the most frequent possible piece, and again."""
    pieces = dict(base)
    learnt: list[tuple[str, int]] = []
    while len(learnt) < count:
        spelt: Counter[str] = Counter()
        for word, occurrences in words.items():
            parts = encode(pieces, word)
            for left, right in pairwise(parts):
                text = left + right
                marks = {classes.get(character) for character in text.removeprefix(" ")}
                if left in pieces and right in pieces and len(marks) == 1 and None not in marks and len(text) <= most:
                    spelt[text] += occurrences
        if not spelt or (best := min(spelt, key=lambda text: (-spelt[text], len(text), text.encode()))) is None:
            break
        if spelt[best] < 2:
            break
        pieces[best] = FIRST_SCORE - len(learnt)
        learnt.append((best, spelt[best]))
    return learnt


def encode(pieces: dict[str, float], word: str) -> list[str]:
    parts = list(word)
    while joins := [(pieces[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in pieces]:
        at = -max(joins)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


@settings(max_examples=400, deadline=None)
@given(
    words=st.lists(st.tuples(st.text("aab б1,", min_size=1, max_size=12), st.integers(1, 3)), min_size=1, max_size=12),
    base=st.lists(st.text("ab1б", min_size=2, max_size=4), max_size=5, unique=True),
    equal=st.booleans(),
    most=st.integers(2, 16),
)
def test_learns_what_the_definition_learns(
    words: list[tuple[str, int]], base: list[str], equal: bool, most: int
) -> None:
    characters = " ab1б"  # the comma is no piece
    scores = dict.fromkeys(characters, -50.0)
    scores |= {piece: -1.0 if equal else -1.0 - index for index, piece in enumerate(base)}
    classes = {"a": 0, "b": 0, ",": 1, "б": 2}  # digits join nothing
    counts, expected = WordCounts(1000), Counter[str]()
    for text, occurrences in words:
        counts.add([text] * occurrences)
        for word in re.findall(r" +[^ ]*", f" {text}"):
            expected[word] += occurrences
    counts.sort()
    assert dict(counts.words(0, len(counts))) == expected
    extender = Extender(
        list(scores.items()), {ord(character): kind for character, kind in classes.items()}, most, FIRST_SCORE
    )
    extender.add_words(counts)
    learnt = extender.learn(3) + extender.learn(9)
    assert learnt == naive(scores, classes, expected, most, 12)


def damaged(options: ExtendTokenizer, **fields: Any) -> Path:
    model = read_model(options.base)
    for name, value in fields.items():
        setattr(model.trainer_spec if name == "model_type" else model.normalizer_spec, name, value)
    file = options.output.parent / "damaged.model"
    file.write_bytes(model.SerializeToString())
    return file


def test_impossible_bases_and_sizes_are_named(options: ExtendTokenizer) -> None:
    unigram = damaged(options, model_type=1)
    with pytest.raises(InputError, match=r"damaged\.model: a unigram model, only BPE"):
        extend_tokenizer(replace(options, base=unigram))
    with pytest.raises(InputError, match=r"damaged\.model: add_dummy_prefix is False"):
        extend_tokenizer(replace(options, base=damaged(options, add_dummy_prefix=False)))
    with pytest.raises(InputError, match=r"base\.model: in: a piece of text there"):
        extend_tokenizer(replace(options, control=("in",)))
    with pytest.raises(InputError, match=r"base\.model: vocab_size 900: the base has 998 pieces"):
        extend_tokenizer(replace(options, vocab_size=900))
    with pytest.raises(InputError, match=r"vocab_size 90000: too little text .* at most --vocab-size") as caught:
        extend_tokenizer(replace(options, vocab_size=90_000))
    most = int(str(caught.value).split()[-1])
    assert not options.output.exists()
    assert extend_tokenizer(replace(options, vocab_size=most))["rarest"] == 2
    with pytest.raises(InputError, match="exists already"):
        extend_tokenizer(options)


def test_mistral_of_the_real_vocabulary(tmp_path: Path) -> None:
    if not DATA.exists():
        pytest.skip(f"{DATA} is absent")
    options = ExtendTokenizer(
        base=DATA / "tokenizer" / "mistral-7b-v0.1.model",
        input=(DATA / "ru" / "wiki.txt",),
        output=tmp_path / "out",
        compare=(DATA / "ru" / "wiki.txt",),
        vocab_size=33_000,
    )
    report = extend_tokenizer(options)
    assert report["unreachable"] == 0
    assert report["compared"]["tokens_after"] < 0.9 * report["compared"]["tokens_before"]
