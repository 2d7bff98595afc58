"""Log-likelihoods with shared beginnings are those of the plain forward; no answer changes a question's tokens."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.likelihood import Pair, encode_pair, likelihoods
from vikhr_fast.model.mistral import Mistral, ModelConfig
from vikhr_fast.tokenizer.load import load_encoder

SHAPE = ModelConfig(
    vocab_size=12,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=24,
    initializer_range=0.3,
)
TOKENS = st.lists(st.integers(0, 11), min_size=1, max_size=12)


@given(st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=4), st.booleans())
@settings(max_examples=30, deadline=None)
def test_shared_beginnings_change_nothing(questions: list[tuple[list[int], list[list[int]]]], has_window: bool) -> None:
    shape = ModelConfig(**{**SHAPE.__dict__, "sliding_window": 5 if has_window else None})
    model = Mistral(shape, dtype=torch.float64, seed=3)
    pairs = [[Pair(context, answer) for answer in answers] for context, answers in questions]
    for own, scored in zip(pairs, likelihoods(model, pairs), strict=True):
        for (context, answer), found in zip(own, scored, strict=True):
            tokens = torch.tensor([context + answer])
            logs = model.logits(model(tokens[:, :-1])).log_softmax(-1)[0, -len(answer) :]
            expected = logs[range(len(answer)), answer].sum().detach()
            assert found.log == pytest.approx(float(expected), abs=1e-10)
            assert found.is_greedy == (logs.argmax(-1).tolist() == answer)


def test_too_long_texts_lose_their_beginning() -> None:
    model = Mistral(SHAPE, dtype=torch.float64, seed=3)
    context, answers = [*range(12)] * 3, ([1, 2], [3])
    (found,) = likelihoods(model, [[Pair(context, answer) for answer in answers]])
    for answer, likelihood in zip(answers, found, strict=True):
        read = (context + answer)[-25:-1]  # as many as there are positions
        logs = model.logits(model(torch.tensor([read]))).log_softmax(-1)[0, -len(answer) :]
        assert likelihood.log == pytest.approx(float(logs[range(len(answer)), answer].sum().detach()), abs=1e-10)
    with pytest.raises(InputError, match="an answer of 25 tokens: the model has 24 positions"):
        likelihoods(model, [[Pair([1], [2] * 25)]])


def test_a_merge_across_the_boundary_leaves_the_question_alone(workspace: Path) -> None:
    encoder = load_encoder(workspace / "model")
    crossed = 0
    for number in range(encoder.vocab_size):
        piece = encoder.piece(number)
        if len(piece) < 2 or not piece.isalpha():
            continue
        for cut in range(1, len(piece)):
            context, answers = f"Слово {piece[:cut]}", [piece[cut:], f" {piece}"]
            alone = encoder.encode(context).tolist()
            crossed += encoder.encode(context + answers[0]).tolist()[: len(alone)] != alone
            for answer in answers:
                pair = encode_pair(encoder, context, answer)
                assert pair.context == [encoder.bos_id, *alone]
                assert encoder.decode(pair.context[1:] + pair.continuation) == context + answer
    assert crossed > 10


def test_white_space_belongs_to_the_answer(workspace: Path) -> None:
    encoder = load_encoder(workspace / "model")
    assert encode_pair(encoder, "Ответ: ", "да") == encode_pair(encoder, "Ответ:", " да")
    assert encode_pair(encoder, "", "да") == Pair([encoder.bos_id], encoder.encode("да").tolist())
