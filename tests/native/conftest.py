"""Small SentencePiece models of every kind that the encoder takes."""

import io
import pydoc_data.topics
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as protobuf

from vikhr_fast.tokenizer import BpeEncoder

RUSSIAN = """Утром туман поднялся над рекой, и на том берегу показались крыши деревни. Старый паромщик
вышел на крыльцо, посмотрел на воду и сказал: «Сегодня будет жарко». Никто ему не ответил.
К полудню ветер стих совсем; 12 лодок лежали на песке, а 345 шагов дальше, у мельницы, дети ловили рыбу.
Ёж, ёлка, объём, съезд — слова с редкими буквами. Цена выросла с 1990 до 2024 года на 17,5 процента.
Программа читает файл построчно, проверяет каждую запись и пишет ответ: «готово» или «ошибка в строке 42».
""".splitlines()
TRAINING_LINES = [
    line for topic in ("assignment", "strings", "for") for line in pydoc_data.topics.topics[topic].splitlines() if line
] + 8 * RUSSIAN

USER_DEFINED = ["<sep>", "foo", "foobar", "▁the", "a b", "\n", "\n\n", "▁▁", "é"]
PIECE = protobuf.ModelProto.SentencePiece


def train(**options: Any) -> bytes:
    model = io.BytesIO()
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 700,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "character_coverage": 0.995,
        "minloglevel": 2,
        "num_threads": 1,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_LINES), model_writer=model, **(settings | options)
    )
    return model.getvalue()


def change(model: bytes, edit: Callable[[protobuf.ModelProto], None]) -> bytes:
    message = protobuf.ModelProto.FromString(model)
    edit(message)
    return bytes(message.SerializeToString())


def retype(share: float, piece_type: int) -> Callable[[protobuf.ModelProto], None]:
    """Turns a share of the normal pieces, drawn with a fixed seed, into another type."""
    draw = random.Random(1)

    def edit(message: protobuf.ModelProto) -> None:
        for piece in message.pieces:
            if piece.type == PIECE.NORMAL and draw.random() < share:
                piece.type = piece_type

    return edit


def tie_scores(message: protobuf.ModelProto) -> None:
    draw = random.Random(2)
    for piece in message.pieces:
        piece.score = draw.choice([-1.0, -2.0, -3.0, 0.0, -0.0, 2.5, 3e38])


def drop_space(message: protobuf.ModelProto) -> None:
    for piece in message.pieces:
        if piece.piece == "▁":
            piece.piece = "ξξ"


def keep_spaces(message: protobuf.ModelProto) -> None:
    message.normalizer_spec.escape_whitespaces = False


def build_models() -> dict[str, bytes]:
    unknown = train()
    fallback = train(byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True)
    symbols = train(byte_fallback=True, user_defined_symbols=USER_DEFINED)
    symbols_unknown = train(user_defined_symbols=USER_DEFINED, control_symbols=["<x>", "a"])
    across_spaces = train(byte_fallback=True, split_by_whitespace=False)
    return {
        "unknown": unknown,
        "byte_fallback": fallback,
        "no_prefix": train(byte_fallback=True, add_dummy_prefix=False),
        "no_prefix_unknown": train(add_dummy_prefix=False),
        "user_defined": symbols,
        "user_defined_unknown": symbols_unknown,
        "squeezed": train(remove_extra_whitespaces=True),
        "squeezed_user_defined": train(
            remove_extra_whitespaces=True, user_defined_symbols=["<sep>", " x", "a  b", " ", "\n"], byte_fallback=True
        ),
        "across_spaces": across_spaces,
        "nested_symbols": train(byte_fallback=True, user_defined_symbols=["-" * n for n in range(2, 80)]),
        "keeps_spaces": change(unknown, keep_spaces),
        "keeps_spaces_user_defined": change(symbols, keep_spaces),
        "unused": change(fallback, retype(0.2, PIECE.UNUSED)),
        "unused_unknown": change(unknown, retype(0.2, PIECE.UNUSED)),
        "unused_user_defined": change(symbols_unknown, retype(0.2, PIECE.UNUSED)),
        "unused_across_spaces": change(across_spaces, retype(0.1, PIECE.UNUSED)),
        "unused_tied": change(change(fallback, retype(0.2, PIECE.UNUSED)), tie_scores),
        "tied": change(fallback, tie_scores),
        "tied_user_defined": change(symbols, tie_scores),
        "control": change(fallback, retype(0.1, PIECE.CONTROL)),
        "control_unknown": change(unknown, retype(0.1, PIECE.CONTROL)),
        "no_space": change(fallback, drop_space),
        "no_space_unknown": change(unknown, drop_space),
    }


MODELS = build_models()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "model_name" in metafunc.fixturenames:
        metafunc.parametrize("model_name", sorted(MODELS))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model files by name."""
    folder = tmp_path_factory.mktemp("models")
    paths = {name: folder / f"{name}.model" for name in MODELS}
    for name, path in paths.items():
        path.write_bytes(MODELS[name])
    return paths


@pytest.fixture(scope="session")
def pairs(models: dict[str, Path]) -> dict[str, tuple[BpeEncoder, sentencepiece.SentencePieceProcessor]]:
    """Our encoder and SentencePiece's for each model, by name."""
    return {
        name: (BpeEncoder.from_file(path), sentencepiece.SentencePieceProcessor(model_file=str(path)))
        for name, path in models.items()
    }


@pytest.fixture(scope="session", name="train")
def train_fixture() -> Callable[..., bytes]:
    """Trains a model with these options of SentencePiece."""
    return train
