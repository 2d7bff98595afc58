"""Answers are token by token those of transformers; draws follow the distribution asked for, and the seed alone."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import write_model

from vikhr_fast.chat.template import Message
from vikhr_fast.inference.engine import ChatEngine, shown_text
from vikhr_fast.inference.sampling import Sampling, choose, distribution, generator_of
from vikhr_fast.model.config import read_config
from vikhr_fast.model.key_value_cache import KeyValueCache
from vikhr_fast.model.mistral import Mistral

QUESTIONS = ("Кто идёт?", "да", "", "Что написано в письме, которое пришло вчера вечером?", "1 2 3", "Почему?\n\n😀")


def chats() -> list[list[Message]]:
    single = [[Message("user", question)] for question in QUESTIONS]
    longer = [
        Message("system", "Отвечай."),
        Message("user", "Где?"),
        Message("assistant", "Там."),
        Message("user", "Да?"),
    ]
    return [*single, longer]


@pytest.fixture(scope="module")
def windowed(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a sliding window shorter than its prompts."""
    directory = tmp_path_factory.mktemp("windowed")
    for file in (workspace / "model").iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "sliding_window": 20}))
    return directory


@pytest.fixture(scope="module")
def tied(workspace: Path) -> Path:
    """A model whose head is its embedding, with layers that outweigh that: the tiny one says its last token again."""
    return write_model(
        workspace, "heavy tied", dataclasses.replace(read_config(workspace / "tied"), initializer_range=1.0)
    )


@pytest.mark.parametrize("kind", ["model", "tied", "windowed"])
def test_greedy_answers_are_those_of_transformers(workspace: Path, windowed: Path, tied: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = {"model": workspace / "model", "tied": tied, "windowed": windowed}[kind]
    engine = ChatEngine(directory, "cpu")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    peer: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    prompts = [engine.prompt(chat) for chat in chats()]
    free = engine.answer(prompts, Sampling(max_tokens=24))
    sampling = Sampling(max_tokens=24, stop=(engine.tokenizer.piece(free[3].ids[9]),))
    stop = sorted(engine.stop_ids(sampling))
    together = engine.answer(prompts, sampling)
    for chat, prompt, ours in zip(chats(), prompts, together, strict=True):
        theirs = tokenizer.apply_chat_template([m._asdict() for m in chat], add_generation_prompt=True)["input_ids"]
        assert prompt == theirs
        for use_cache in (True, False):
            generated = peer.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=sampling.max_tokens,
                do_sample=False,
                use_cache=use_cache,
                eos_token_id=stop,
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
            assert generated == ours.ids + ([generated[-1]] if ours.is_complete else [])
            assert ours.is_complete == (generated[-1] in stop)
        assert engine.answer([prompt], sampling) == [ours]
    assert any(answer.is_complete for answer in together)
    assert len({tuple(answer.ids) for answer in together}) > 1


def test_cached_logits_are_the_models_own(engine: ChatEngine) -> None:
    """In float64, rows of different lengths, each of which goes on."""
    prompts = [engine.prompt(chat) for chat in chats()]
    cache = KeyValueCache(len(prompts), 120)
    hidden = engine.model.extend(prompts, cache)
    for token in range(7, 11):
        for own, prompt in zip(hidden, prompts, strict=True):
            expected = engine.model(torch.tensor([prompt]))[0, -1]
            torch.testing.assert_close(own[-1], expected, rtol=1e-9, atol=1e-12)
        further = [[token + row] for row in range(len(prompts))]
        prompts = [prompt + more for prompt, more in zip(prompts, further, strict=True)]
        hidden = engine.model.extend(further, cache)


def test_what_fills_rows_up_may_hold_nan(engine: ChatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vikhr_fast.model.mistral._CHUNK", 5)
    prompts = [prompt[1:] for prompt in map(engine.prompt, chats())]
    assert not any(0 in prompt for prompt in prompts)
    model, cache = copy.deepcopy(engine.model), KeyValueCache(len(prompts), 200)
    with torch.no_grad():
        model.model.embed_tokens.weight[0] = torch.nan
    found = [torch.cat(both) for both in zip(model.extend(prompts, cache), model.extend(prompts, cache), strict=True)]
    for own, prompt in zip(found, prompts, strict=True):
        torch.testing.assert_close(own, engine.model(torch.tensor([prompt * 2]))[0], rtol=1e-9, atol=1e-12)


def test_prompts_longer_than_a_chunk(engine: ChatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [engine.prompt(chat) for chat in chats()]
    whole = engine.model.extend(prompts, KeyValueCache(len(prompts), 100))
    monkeypatch.setattr("vikhr_fast.model.mistral._CHUNK", 5)
    chunked = engine.model.extend(prompts, KeyValueCache(len(prompts), 100))
    for found, expected in zip(chunked, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_an_answer_ends_at_a_stop_piece_the_limit_or_the_last_position(engine: ChatEngine) -> None:
    prompt = engine.prompt([Message("user", "Кто идёт?")])
    free = engine.answer([prompt], Sampling(max_tokens=12))[0]
    assert len(free.ids) == 12
    assert not free.is_complete
    piece = engine.tokenizer.piece(free.ids[5])
    stopped = engine.answer([prompt], Sampling(max_tokens=12, stop=(piece,)))[0]
    assert stopped.ids == free.ids[: free.ids.index(free.ids[5])]
    assert stopped.is_complete
    long = engine.prompt([Message("user", "да " * 150)])
    assert len(engine.answer([long], Sampling(max_tokens=10_000))[0].ids) == engine.positions - len(long)


def test_draws_depend_on_seed_and_prompt_number_alone(engine: ChatEngine) -> None:
    prompts = [engine.prompt(chat) for chat in chats()]
    sampling = Sampling(max_tokens=10, temperature=1.0)
    together = engine.answer(prompts, sampling)
    assert engine.answer(prompts, sampling) == together
    assert engine.answer(prompts[2:4], sampling, [2, 3]) == together[2:4]
    assert engine.answer(prompts, dataclasses.replace(sampling, seed=1)) != together
    assert engine.answer([prompts[0]] * 2, sampling)[0] != engine.answer([prompts[0]] * 2, sampling)[1]


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(st.floats(-5, 5), min_size=1, max_size=8),
    temperature=st.floats(0.2, 3),
    top_p=st.floats(0.05, 1),
)
def test_top_p_keeps_the_fewest_likeliest_tokens(logits: list[float], temperature: float, top_p: float) -> None:
    row = torch.tensor(logits, dtype=torch.float64)
    found = distribution(row[None], temperature, top_p)[0]
    whole = (row / temperature).softmax(-1)
    assert found.sum().item() == pytest.approx(1)
    kept = found > 0
    assert whole[kept].sum() >= top_p - 1e-9
    assert kept.sum() == 1 or whole[kept].sum() - whole[kept].min() < top_p + 1e-9
    assert kept.all() or whole[kept].min() >= whole[~kept].max()
    torch.testing.assert_close(found[kept], whole[kept] / whole[kept].sum())


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]], dtype=torch.float64)
    generators = [generator_of(0, 0)]
    counts = torch.zeros(4, dtype=torch.float64)
    for _ in range(3000):
        counts[choose(logits, Sampling(temperature=1.0), generators)] += 1
    expected = logits[0].softmax(-1)
    assert counts[3] == 0
    assert ((counts / 3000 - expected).abs() < 4 * (expected * (1 - expected) / 3000).sqrt() + 1e-9).all()


def test_rows_without_pieces_are_never_chosen(workspace: Path) -> None:
    engine = ChatEngine(workspace / "model", "cpu")
    config = dataclasses.replace(engine.model.config, vocab_size=600)
    engine.model = Mistral(config, seed=3).requires_grad_(False)
    engine.model.lm_head.weight[520:] *= 50
    ids = engine.answer([engine.prompt(chat) for chat in chats()], Sampling(max_tokens=20, temperature=1.5))
    assert max(token for answer in ids for token in answer.ids) < 520


def test_half_a_character_is_not_shown(engine: ChatEngine) -> None:
    ids = engine.tokenizer.encode("да 😀").tolist()
    shown = [shown_text(engine.tokenizer, ids[:end]) for end in range(len(ids) + 1)]
    assert shown[-1] == "да 😀"
    assert all("\ufffd" not in text for text in shown)
    assert all(shown[-1].startswith(text) for text in shown)
