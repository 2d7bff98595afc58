"""A text goes on as its ids do, whatever kind the tokenizer is."""

import io
import sys
from pathlib import Path

import pytest
import torch
from llama_3 import make_base

from vikhr_fast.errors import InputError
from vikhr_fast.inference.complete import GenerateComplete, complete
from vikhr_fast.inference.engine import Engine
from vikhr_fast.inference.sampling import Sampling
from vikhr_fast.io.plain import plain
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer.load import load_encoder

TEXTS = ("Утром", "The cat", "")


@pytest.fixture(scope="module", params=["SentencePiece", "byte-level"])
def model(request: pytest.FixtureRequest, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "SentencePiece":
        return workspace / "model"
    base = tmp_path_factory.mktemp("byte-level") / "base"
    make_base(base)
    return base


def greedy(directory: Path, text: str, tokens: int) -> str:
    """By the logits of the whole text, token after token."""
    model, tokenizer = Mistral.from_pretrained(directory), load_encoder(directory)
    ids = [tokenizer.bos_id, *tokenizer.encode(text).tolist()]
    for _ in range(tokens):
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([ids])))[0, -1]
        logits[sorted(set(range(len(logits))) - tokenizer.ids())] = -torch.inf
        if (token := int(logits.argmax())) == tokenizer.eos_id:
            break
        ids.append(token)
    return tokenizer.decode(ids)


def options(model: Path, *texts: str) -> GenerateComplete:
    return GenerateComplete(model, texts, Sampling(max_tokens=7), device="cpu")


def test_texts_go_on_as_the_likeliest_ids_do(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = [plain(greedy(model, text, 7)) for text in TEXTS]
    assert all(len(found) > len(text) for found, text in zip(expected, TEXTS, strict=True))
    complete(options(model, *TEXTS))
    assert capsys.readouterr().out == "\n\n".join(expected) + "\n"


def test_standard_input_is_one_text(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Утром\n".encode())))
    complete(options(model))
    from_input = capsys.readouterr().out
    complete(options(model, "Утром"))
    assert capsys.readouterr().out == from_input
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    with pytest.raises(InputError, match="standard input: byte 0: not UTF-8"):
        complete(options(model))


def test_a_text_without_room_is_refused(model: Path) -> None:
    with pytest.raises(InputError, match=r"the prompt takes [\d,]+ tokens, the model has [\d,]+ positions"):
        complete(options(model, "слово " * 20_000))


def test_a_token_of_a_byte_level_vocabulary_ends_it(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    engine = Engine(tmp_path / "base", "cpu")
    found = engine.stop_ids(Sampling(stop=("<|eot_id|>", "Ġ", " ")))
    assert found == {engine.tokenizer.eos_id, *(engine.tokenizer.piece_to_id(text) for text in ("<|eot_id|>", " "))}
    with pytest.raises(InputError, match="--stop 'нет такого': not a piece"):
        engine.stop_ids(Sampling(stop=("нет такого",)))
