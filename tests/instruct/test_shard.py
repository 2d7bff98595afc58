"""Conversations become shards that train the assistant's tokens alone, packed as if each were alone."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_3 import make_tokenizer_of_llama_3
from training_runs import make_config

from vikhr_fast.chat.conversation import Conversation, read_conversations, write_conversations
from vikhr_fast.chat.encode import ChatEncoder, EncodedChat
from vikhr_fast.chat.template import Message
from vikhr_fast.data.packing import IGNORED, PackedCorpus
from vikhr_fast.data.token_shards import TokenShards
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.perplexity import score_shards
from vikhr_fast.instruct.shard import ShardConversations, cut_chat, shard_conversations
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer.byte_level import token_text
from vikhr_fast.train.inputs import open_inputs
from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import METRICS

LENGTH = 300


@pytest.fixture(scope="module")
def options(model: Path, conversations: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardConversations:
    output = tmp_path_factory.mktemp("shards") / "out"
    return ShardConversations((conversations,), model, output, sequence_length=LENGTH, validation=0.2, threads=1)


@pytest.fixture(scope="module")
def shards(options: ShardConversations) -> Path:
    shard_conversations(options)
    return options.output


def documents(directory: Path) -> list[tuple[list[int], list[bool]]]:
    opened = TokenShards.open(directory)
    found = []
    for index in range(opened.num_documents):
        trained = opened.trained(index)
        assert trained is not None
        found.append((opened.document(index).tolist(), trained.tolist()))
    return found


def test_every_conversation_is_in_one_split_of_its_source(shards: Path, model: Path, conversations: Path) -> None:
    encoder = ChatEncoder(model)
    expected: dict[str, list[list[int]]] = {"a": [], "b": []}
    for one in read_conversations([conversations]):
        ids, trained = cut_chat(encoder.encode([one.messages])[0], LENGTH + 1).chat
        assert int(ids[-1]) == encoder.end_id
        assert trained[-1]
        expected[one.source].append(ids.tolist())
    for source, whole in expected.items():
        splits = [documents(shards / split / source) for split in ("train", "validation")]
        assert sorted(ids for split in splits for ids, _ in split) == sorted(whole)
        assert all(len(split) > 0 for split in splits)
    toml = (shards / "train.toml").read_text()
    assert f'"a" = "{shards / "validation" / "a"}"' in toml


def test_bytes_are_the_answers_and_targets_the_assistants(shards: Path, model: Path, conversations: Path) -> None:
    encoder = ChatEncoder(model)
    answers = []
    for one in read_conversations([conversations]):
        kept = cut_chat(encoder.encode([one.messages])[0], LENGTH + 1).answers
        answers += [message.content for message in one.messages if message.role == "assistant"][:kept]
    opened = [TokenShards.open(path) for path in sorted(shards.glob("*/*")) if path.is_dir()]
    assert sum(one.num_bytes for one in opened) == sum(len(answer.encode()) for answer in answers)
    assert sum(one.num_trained for one in opened) == sum(
        sum(trained) for path in sorted(shards.glob("*/*")) for _, trained in documents(path)
    )
    scored = score_shards(Mistral.from_pretrained(model), opened[0], window=LENGTH, micro_batch=2)
    assert scored.tokens == opened[0].num_trained


@settings(max_examples=200, deadline=None)
@given(mask=st.lists(st.booleans(), max_size=30), tokens=st.integers(0, 40))
def test_a_long_conversation_is_cut_after_its_last_answer_that_fits(mask: list[bool], tokens: int) -> None:
    chat = EncodedChat(np.arange(len(mask), dtype=np.int32), np.array(mask, bool))
    cut = cut_chat(chat, tokens)
    ends = [i + 1 for i in range(len(mask)) if mask[i] and (i + 1 == len(mask) or not mask[i + 1])]
    fitting = [end for end in ends if end <= tokens]
    assert cut.answers == len(fitting)
    assert cut.chat.ids.tolist() == list(range(max(fitting, default=0)))
    assert len(cut.chat.is_trained) == len(cut.chat.ids)


def test_what_is_cut_and_left_out_is_counted(
    options: ShardConversations, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turn = (Message("user", "да"), Message("assistant", "нет"))
    long = (Message("user", "слово " * 400), Message("assistant", "нет"))
    made = [turn, turn + long, long]
    write_conversations(tmp_path / "in.jsonl", [Conversation(str(i), "s", "ru", m) for i, m in enumerate(made)])
    with caplog.at_level("INFO"):
        shard_conversations(replace(options, input=(tmp_path / "in.jsonl",), output=tmp_path / "out", validation=0.0))
    assert "2 conversations" in caplog.text
    assert "1 cut" in caplog.text
    assert "1 too_long" in caplog.text
    first, second = documents(tmp_path / "out" / "train" / "s")
    assert first == second


def test_a_conversation_that_the_template_refuses_is_left_out_counted_and_named(
    options: ShardConversations, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(options.tokenizer, tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    refusing = "{% if '<think>' in m.content %}{{ raise_exception('a thought') }}{% endif %}"
    template.write_text(f"{{% for m in messages %}}{refusing}{{% endfor %}}{template.read_text()}")
    contents = ["да", "<think>", "нет", "<think></think>", "слово " * 400]
    made = [(Message("user", content), Message("assistant", "так")) for content in contents]
    write_conversations(tmp_path / "in.jsonl", [Conversation(str(i), "s", "ru", m) for i, m in enumerate(made)])
    tried = replace(options, input=(tmp_path / "in.jsonl",), tokenizer=tmp_path / "model", output=tmp_path / "out")
    with caplog.at_level("INFO"):
        shard_conversations(replace(tried, validation=0.0))
    assert "conversation 1: left out, like any other of s that the template refuses: " in caplog.text
    assert caplog.text.count("a thought") == 1
    assert "2 conversations" in caplog.text
    assert "1 too_long" in caplog.text
    assert "2 refused" in caplog.text
    encoder = ChatEncoder(options.tokenizer)
    kept = [cut_chat(chat, LENGTH).chat.ids.tolist() for chat in encoder.encode([made[0], made[2]])]
    assert [ids for ids, _ in documents(tmp_path / "out" / "train" / "s")] == kept
    others = [Conversation(str(i), "t", "ru", made[i]) for i in (1, 3, 4)]
    write_conversations(tmp_path / "in.jsonl", [Conversation("0", "s", "ru", made[0]), *others])
    shard_conversations(replace(tried, output=tmp_path / "second", validation=0.0))
    assert "train/t: nothing is left of it, 1 too long and 2 refused by the template" in caplog.text
    assert "train/s: nothing" not in caplog.text
    write_conversations(tmp_path / "in.jsonl", [Conversation("1", "s", "ru", made[1])])
    with pytest.raises(InputError, match=r"other: nothing to train on, 0 too long and 1 refused by the template; "):
        shard_conversations(replace(tried, output=tmp_path / "other", validation=0.0))
    assert not (tmp_path / "other").exists()


def test_an_answer_that_is_not_to_be_learnt_is_context_alone(options: ShardConversations, tmp_path: Path) -> None:
    wrong, right = Message("assistant", "Шесть.", is_trained=False), Message("assistant", "Восемь ног.")
    turns = (Message("user", "Сколько ног у паука?"), wrong, Message("user", "Точно?"), right)
    write_conversations(tmp_path / "in.jsonl", [Conversation("1", "s", "ru", turns)])
    assert next(read_conversations([tmp_path / "in.jsonl"])).messages == turns
    shard_conversations(replace(options, input=(tmp_path / "in.jsonl",), output=tmp_path / "out", validation=0.0))
    opened = TokenShards.open(tmp_path / "out" / "train" / "s")
    encoder = ChatEncoder(options.tokenizer)
    [(ids, trained)] = documents(tmp_path / "out" / "train" / "s")
    assert ids == encoder.encode([turns])[0].ids.tolist()[: len(ids)]
    assert (
        encoder.tokenizer.decode([own for own, is_trained in zip(ids, trained, strict=True) if is_trained][:-1])
        == right.content
    )
    assert opened.num_bytes == len(right.content.encode())


def test_a_conversation_that_ends_with_an_answer_not_to_be_learnt_is_refused(tmp_path: Path) -> None:
    turns = (Message("user", "Как дела?"), Message("assistant", "Плохо", is_trained=False))
    write_conversations(tmp_path / "in.jsonl", [Conversation("1", "s", "ru", turns)])
    with pytest.raises(InputError, match=r"line 1: the last answer is not to be trained on; leave it out"):
        list(read_conversations([tmp_path / "in.jsonl"]))


def test_a_conversation_that_the_template_changes_is_named_and_left_out(
    options: ShardConversations, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "model"
    shutil.copytree(options.tokenizer, model)
    template = (model / "chat_template.jinja").read_text().replace("['content']", "['content'].split('</think>')[-1]")
    (model / "chat_template.jinja").write_text(template)
    thought = (Message("user", "Да?"), Message("assistant", "Так.</think>Да."))
    file = tmp_path / "chats.jsonl"
    write_conversations(file, [*read_conversations(options.input), Conversation("x7", "a", "ru", thought)])
    shard_conversations(replace(options, input=(file,), tokenizer=model, output=tmp_path / "out"))
    reason = "like any other of a that the template refuses: .*chat_template.jinja: looks at what is said in a chat"
    assert re.search(f"conversation x7: left out, {reason}", caplog.text)
    for split in ("train/a", "train/b", "validation/a", "validation/b"):
        assert documents(tmp_path / "out" / split) == documents(shards / split)


def test_weights_take_a_source_more_or_less_often(options: ShardConversations, shards: Path, tmp_path: Path) -> None:
    shard_conversations(replace(options, output=tmp_path / "out", weights={"a": 2.0, "b": 0.5}))
    counts = {
        name: [TokenShards.open(root / "train" / name).num_documents for root in (shards, tmp_path / "out")]
        for name in "ab"
    }
    assert counts["a"][1] == 2 * counts["a"][0]
    assert 0 < counts["b"][1] < counts["b"][0]
    for name in "ab":
        before, after = (documents(root / "validation" / name) for root in (shards, tmp_path / "out"))
        assert before == after


def test_packed_conversations_train_as_single_ones(shards: Path, model: Path) -> None:
    """Loss and gradients, in float64."""
    sources = {name: TokenShards.open(shards / "train" / name) for name in "ab"}
    corpus = PackedCorpus(sources, LENGTH, epochs=1, seed=0)
    batch = corpus.batch([0, 1])
    assert len(batch.cu_seqlens) > 5
    trained = Mistral.from_pretrained(model, dtype=torch.float64)
    hidden = trained(batch.tokens, cu_seqlens=batch.cu_seqlens)
    packed, _, _ = trained.lm_head(hidden, targets=batch.targets, reduction="sum")
    packed.backward()
    gradients = {name: p.grad.clone() for name, p in trained.named_parameters() if p.grad is not None}
    trained.zero_grad()
    single = torch.zeros((), dtype=torch.float64)
    for index in (0, 1):
        for window in corpus.windows(index):
            shard = list(sources.values())[window.source]
            ids = torch.from_numpy(shard.document(window.document).astype(np.int64))
            mask = torch.from_numpy(np.array(shard.trained(window.document)))
            logits = trained.logits(trained(ids[None, :-1]))[0]
            loss = torch.nn.functional.cross_entropy(logits[mask[1:]], ids[1:][mask[1:]], reduction="sum")
            loss.backward()
            single += loss.detach()
    torch.testing.assert_close(packed.detach(), single, rtol=1e-12, atol=0)
    for name, parameter in trained.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12)
    assert batch.trained_tokens < (batch.tokens != 0).sum() / 1.2


def test_training_goes_through_conversations_and_validates_each_source(
    shards: Path, model: Path, tmp_path: Path
) -> None:
    data = {
        "train": {name: shards / "train" / name for name in "ab"},
        "validation": {name: shards / "validation" / name for name in "ab"},
        "sequence_length": LENGTH,
        "epochs": 2,
    }
    changes = {
        "data": data,
        "kl": {"weight": 0.1},
        "schedule": {"validate_every": 4},
        "runtime": {"dtype": "float32", "chunk_tokens": 0},
    }
    config = make_config(model.parent, tmp_path / "run", **changes)
    train(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "validation.jsonl").read_text().splitlines()]
    for name in "ab":
        assert lines[-1]["sets"][name]["loss"] < lines[0]["sets"][name]["loss"]
    total = sum(TokenShards.open(path).num_trained for path in data["train"].values())  # type: ignore[attr-defined]
    assert read_lines(tmp_path / "run" / METRICS)[-1]["tokens"] == 2 * total
    with pytest.raises(InputError, match=r"a conversation takes \d+ positions, which data\.sequence_length 50"):
        open_inputs(
            make_config(model.parent, tmp_path / "other", **{**changes, "data": {**data, "sequence_length": 50}})
        )


def test_targets_are_ignored_where_the_user_speaks(shards: Path) -> None:
    opened = TokenShards.open(shards / "train" / "a")
    batch = PackedCorpus({"a": opened}, LENGTH, epochs=1, seed=0).batch([0])
    kept = batch.targets[batch.targets != IGNORED]
    expected: list[int] = []
    for window in PackedCorpus({"a": opened}, LENGTH, epochs=1, seed=0).windows(0):
        ids, mask = documents(shards / "train" / "a")[window.document]
        expected += [token for token, is_trained in zip(ids, mask, strict=True) if is_trained]
    assert kept.tolist() == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": {"c": 1.0}}, "no such source; there are a, b"),
        ({"weights": {"a": 0.0}}, "must be above 0"),
        ({"validation": 1.0}, "must be 0 or more and below 1"),
        ({"sequence_length": 4}, "nothing to train on"),
        ({"input": (Path("absent.jsonl"),)}, "absent.jsonl: no such file"),
    ],
)
def test_impossible_options(
    options: ShardConversations, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        shard_conversations(replace(options, output=tmp_path / "out", **change))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{}", "no text in field 'id'"),
        ('{"id": "1", "source": "s", "language": "ru", "messages": []}', "line 1: nobody says anything"),
        ('{"id": "1", "source": "s", "language": "ru", "messages": [{"role": "user", "t": 1}]}', "no role or no"),
        (
            '{"id": "1", "source": "s", "language": "ru", "messages": [{"role": "user", "content": "а", "name": "я"}]}',
            "line 1: message 1 has 'name', which a conversation can't hold",
        ),
        (
            '{"id": "1", "source": "s", "language": "ru", "messages": [{"role": "user", "content": "а", "train": 0}]}',
            "line 1: message 1: 'train' is 0, neither true nor false",
        ),
        ('{"id": "\\ud800", "source": "s", "language": "ru", "messages": []}', "'id' has half of a surrogate pair"),
        ("[1]", "line 1: not a JSON object"),
        ("", "no conversations"),
    ],
)
def test_lines_that_are_no_conversations(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "in.jsonl").write_text(line)
    with pytest.raises(InputError, match=reason):
        list(read_conversations([tmp_path / "in.jsonl"]))


@pytest.mark.parametrize("source", ["..", "../../a", "/tmp/a", "", "a//b", "a\0b", ".", "б" * 120])
def test_a_source_that_is_no_directory_below_the_output_is_refused(
    options: ShardConversations, tmp_path: Path, source: str
) -> None:
    turns = (Message("user", "Как дела?"), Message("assistant", "Хорошо"))
    write_conversations(tmp_path / "in.jsonl", [Conversation("1", source, "ru", turns)])
    with pytest.raises(InputError, match=r"source .*: cannot be the name of a directory"):
        shard_conversations(replace(options, input=(tmp_path / "in.jsonl",), output=tmp_path / "b" / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_bytes_that_have_no_token_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = tmp_path / "base"
    make_tokenizer_of_llama_3(base)
    content = json.loads((base / "tokenizer.json").read_text())
    vocabulary, lost = content["model"]["vocab"], token_text(b"\x90")
    content["model"]["vocab"] = {token: index for token, index in vocabulary.items() if lost not in token}
    content["model"]["merges"] = [merge for merge in content["model"]["merges"] if lost not in "".join(merge)]
    (base / "tokenizer.json").write_text(json.dumps(content))
    turns = (Message("user", "А?"), Message("assistant", "Ай"))
    write_conversations(tmp_path / "in.jsonl", [Conversation("1", "s", "ru", turns)])
    shard_conversations(ShardConversations((tmp_path / "in.jsonl",), base, tmp_path / "out", validation=0.0))
    assert "2 bytes of the text have no token in this tokenizer and are lost: 0x90 (2)" in caplog.text
