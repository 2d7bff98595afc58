import re
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece

from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer.export import read_model
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.fixture
def options(corpus: tuple[Path, ...], tmp_path: Path) -> TrainTokenizer:
    return TrainTokenizer(input=corpus[:1], output=tmp_path / "out", vocab_size=600)


def test_same_input_gives_the_same_bytes(options: TrainTokenizer, tmp_path: Path) -> None:
    train_tokenizer(options)
    train_tokenizer(replace(options, output=tmp_path / "again"))
    assert contents(options.output) == contents(tmp_path / "again")
    train_tokenizer(replace(options, output=tmp_path / "other", vocab_size=601))
    assert contents(options.output) != contents(tmp_path / "other")


def test_settings_are_those_of_llama_and_mistral(trained: Path) -> None:
    model = read_model(trained / "tokenizer.model")
    assert len(model.pieces) == 3000
    processor = sentencepiece.SentencePieceProcessor(model_file=str(trained / "tokenizer.model"))
    roles = (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id())
    assert roles == (0, 1, 2, -1)
    assert [model.pieces[i].piece for i in range(6)] == ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<0x00>"]
    assert all(processor.is_control(i) for i in range(1, 5))
    normal = [piece.piece for piece in model.pieces if piece.type == 1]
    assert not [piece for piece in normal if re.search(r"[\n\t]|\d.", piece)], "newlines are bytes, digits stand alone"
    assert [piece for piece in normal if re.fullmatch("▁{2,}", piece)], "runs of spaces are pieces"
    for text in ("  два  пробела ", "№ ½ ﬁ Ⅷ é e\u0301", "中文 😀\tтаб\nстрока"):  # nothing is normalised or lost
        assert processor.decode(processor.encode(text)) == text


def test_russian_of_the_corpus_is_learnt(trained: Path, corpus: tuple[Path, ...]) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(trained / "tokenizer.model"))
    text = corpus[0].read_text(encoding="utf-8")
    assert len(text) / len(processor.encode(text)) > 2.2  # characters a piece; 1 would be spelling


def test_long_lines_and_words_count(tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    # One line of 300,000 characters, which holds a word longer than SentencePiece can address.
    text.write_text("корова молоко " * 15_000 + "ы" * 70_000 + " " + "пастбище " * 2_000, encoding="utf-8")
    train_tokenizer(TrainTokenizer(input=(text,), output=tmp_path / "out", vocab_size=310))
    pieces = {piece.piece for piece in read_model(tmp_path / "out" / "tokenizer.model").pieces}
    assert {"▁корова", "▁молоко", "▁пастбище", "ы" * 16} <= pieces


@pytest.mark.parametrize(("asked", "flag"), [(200_000, "at most"), (270, "at least")])
def test_impossible_size_names_the_nearest_possible(
    options: TrainTokenizer, corpus: tuple[Path, ...], asked: int, flag: str
) -> None:
    with pytest.raises(InputError, match=rf"{re.escape(str(corpus[0]))}: vocab_size {asked}: .*{flag}") as caught:
        train_tokenizer(replace(options, vocab_size=asked))
    assert not options.output.exists()
    nearest = int(str(caught.value).split()[-1])
    train_tokenizer(replace(options, vocab_size=nearest))
    assert len(read_model(options.output / "tokenizer.model").pieces) == nearest


@pytest.mark.parametrize(
    ("field", "value"),
    [("vocab_size", 0), ("character_coverage", 0.5), ("max_words", 100), ("reserved", -1)],
)
def test_impossible_option_is_named(options: TrainTokenizer, field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"--{field.replace('_', '-')} {value}: must be"):
        train_tokenizer(replace(options, **{field: value}))


def test_error_in_the_text_keeps_its_place(
    options: TrainTokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes("первая строка\n\nвторая ".encode() + b"\xff\n")
    with pytest.raises(InputError, match=rf"^{re.escape(str(bad))}: line 3, byte 40: invalid UTF-8"):
        train_tokenizer(replace(options, input=(*options.input, bad)))
    assert [file.name for file in tmp_path.iterdir()] == ["bad.txt"]
    assert capfd.readouterr() == ("", "")


def test_empty_corpus_is_named(options: TrainTokenizer, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n\n")
    with pytest.raises(InputError, match=rf"{re.escape(str(empty))}: no text at all"):
        train_tokenizer(replace(options, input=(empty,)))


def test_existing_output_is_refused_before_any_work(options: TrainTokenizer) -> None:
    options.output.mkdir()
    with pytest.raises(InputError, match="exists already"):
        train_tokenizer(replace(options, input=(Path("absent.txt"),)))


def test_control_pieces_stand_apart_from_text(options: TrainTokenizer) -> None:
    train_tokenizer(replace(options, control=("<|tool|>",), reserved=2))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(options.output / "tokenizer.model"))
    names = ["<|im_start|>", "<|im_end|>", "<|tool|>", "<|reserved_0|>", "<|reserved_1|>"]
    assert [processor.id_to_piece(index) for index in range(3, 8)] == names
    assert all(map(processor.is_control, range(3, 8)))
    assert not set(processor.encode("<|tool|> <|reserved_0|>")) & set(range(3, 8))


@pytest.mark.parametrize("piece", ["", "a b", "<s>", "<0x0A>", "<|im_end|>", "<|reserved_0|>", "▁x"])
def test_impossible_control_pieces_are_named(options: TrainTokenizer, piece: str) -> None:
    with pytest.raises(InputError, match=f"--control {re.escape(repr(piece))}: must be new"):
        train_tokenizer(replace(options, control=(piece,), reserved=1))


def test_weights_and_patterns_reach_the_training(options: TrainTokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("корова молоко " * 50 + "бык")
    (tmp_path / "b.txt").write_text("zebra zoo zzz " * 5000)
    few = replace(options, input=(tmp_path / "*.txt",), vocab_size=290)
    train_tokenizer(replace(few, output=tmp_path / "plain"))
    sources = (tmp_path / "a.txt", tmp_path / "b.txt")
    train_tokenizer(replace(few, input=sources, weights=(1000.0, 1.0), output=tmp_path / "weighted"))
    first = [
        next(piece.piece for piece in read_model(tmp_path / name / "tokenizer.model").pieces if piece.type == 1)
        for name in ("plain", "weighted")
    ]
    assert re.search("[a-z]", first[0])
    assert re.search("[а-я]", first[1])
