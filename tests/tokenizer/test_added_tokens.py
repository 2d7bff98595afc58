"""Tokens that tokenizer.model doesn't have: control tokens go in by id, all others are refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vikhr_fast.chat.encode import ChatEncoder
from vikhr_fast.chat.template import Message
from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer.bpe import BpeEncoder
from vikhr_fast.tokenizer.export import ExportTokenizer, export, read_model
from vikhr_fast.tokenizer.extend import ExtendTokenizer, extend_tokenizer
from vikhr_fast.tokenizer.load import load_encoder, same_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}<|bot|>{% generation %}{{ m['content'] }}"
    "{{ eos_token }}{% endgeneration %}{% else %}<|user|>{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|bot|>{% endif %}"
)
CHAT = [Message("user", "Сколько будет 6 * 7?\n"), Message("assistant", " Сорок два."), Message("user", "А 6 + 7?")]


def added(trained: Path, directory: Path, tokens: list[str], special: bool, **flags: bool) -> Path:
    """What transformers saves after tokens were added, with tokenizer.model beside it."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained)
    tokenizer.add_tokens([AddedToken(token, special=special, **flags) for token in tokens], special_tokens=special)
    tokenizer.save_pretrained(directory)
    shutil.copy(trained / "tokenizer.model", directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return directory


def copied(trained: Path, directory: Path, **files: Any) -> Path:
    """The tokenizer.model alone, with JSON files beside it."""
    directory.mkdir()
    shutil.copy(trained / "tokenizer.model", directory)
    for name, values in files.items():
        (directory / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return directory


@pytest.mark.parametrize("special", [True, False])
def test_control_tokens_have_their_ids(trained: Path, tmp_path: Path, special: bool) -> None:
    from transformers import AutoTokenizer

    directory = added(trained, tmp_path / "roles", ["<|user|>", "<|bot|>"], special, normalized=False)
    encoder, peer = ChatEncoder(directory), AutoTokenizer.from_pretrained(directory)
    assert encoder.tokenizer.added == {"<|user|>": 3000, "<|bot|>": 3001}
    assert (encoder.tokenizer.num_pieces, encoder.tokenizer.vocab_size) == (3000, 3002)
    for prompt in (False, True):
        ids = encoder.encode([CHAT], add_generation_prompt=prompt)[0].ids.tolist()
        chat = [message._asdict() for message in CHAT]
        assert ids == peer.apply_chat_template(chat, add_generation_prompt=prompt)["input_ids"]
        assert ids.count(3000) == 2
    # Text that looks like one stays text.
    text = "я сказал <|user|>"
    plain = BpeEncoder.from_file(trained / "tokenizer.model")
    assert encoder.tokenizer.encode(text).tolist() == plain.encode(text).tolist()
    assert encoder.tokenizer.decode([3000, *plain.encode(text), 3001]) == text
    assert encoder.tokenizer.decode_batch([3000, *plain.encode("да"), 3001], [0, 1, 2 + len(plain.encode("да"))]) == [
        "",
        "да",
    ]
    assert (encoder.tokenizer.piece(3001), encoder.tokenizer.piece_to_id("<|bot|>")) == ("<|bot|>", 3001)
    assert encoder.tokenizer.sha256 != plain.sha256
    with pytest.raises(IndexError, match="3002"):
        encoder.tokenizer.decode([3002])


def test_words_are_refused_by_name(trained: Path, tmp_path: Path) -> None:
    directory = added(trained, tmp_path / "words", ["перрон", "станцию"], False)
    for use in (load_encoder, ChatEncoder):
        with pytest.raises(
            InputError, match=r"words: .*add 2 tokens .*'перрон' \(3000\), 'станцию' \(3001\)"
        ) as caught:
            use(directory)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="would be lost"):
        export(ExportTokenizer(directory, tmp_path / "out"))
    # The model alone, elsewhere, is what it was.
    assert load_encoder(trained).vocab_size == 3000


@pytest.mark.parametrize("flag", ["rstrip", "normalized"])
def test_a_token_that_changes_the_text_around_it_is_refused_where_a_chat_has_it(
    trained: Path, tmp_path: Path, flag: str
) -> None:
    """rstrip swallows white space, normalized leaves no ▁ behind it; padding that nobody writes does no harm."""
    directory = added(trained, tmp_path / "roles", ["<|user|>", "<|bot|>", "[PAD]"], True, **{flag: True})
    assert load_encoder(directory).vocab_size == 3003
    with pytest.raises(InputError, match=r"chat_template.jinja: <\|bot\|>, <\|user\|>: lstrip, rstrip"):
        ChatEncoder(directory)
    shutil.copy(trained / "chat_template.jinja", directory)
    assert ChatEncoder(directory).tokenizer.added["[PAD]"] == 3002


def test_files_of_every_age_are_read(trained: Path, tmp_path: Path) -> None:
    hermes = {"<|im_extra|>": 3000, "[PAD]": 3001}
    assert load_encoder(copied(trained, tmp_path / "added", added_tokens=hermes)).vocab_size == 3002
    with pytest.raises(InputError, match=r"1 tokens .*'слово'"):
        load_encoder(copied(trained, tmp_path / "word", added_tokens={"слово": 3000}))
    named = {"additional_special_tokens": ["слово"]}
    special = copied(trained, tmp_path / "named", added_tokens={"слово": 3000}, special_tokens_map=named)
    assert load_encoder(special).vocab_size == 3001
    decoder = {"added_tokens_decoder": {"3000": {"content": "слово", "special": True}}}
    assert load_encoder(copied(trained, tmp_path / "decoder", tokenizer_config=decoder)).vocab_size == 3001
    vocabulary = {"model": {"vocab": {"слово": 3000}}}
    with pytest.raises(InputError, match="'слово'"):
        load_encoder(copied(trained, tmp_path / "vocabulary", tokenizer=vocabulary))


def test_an_id_past_the_weights_is_no_token(trained: Path, tmp_path: Path) -> None:
    """Llama-2's <pad> is 32000 of 32000 rows."""
    files = {"added_tokens": {"<pad>": 3000}, "config": {"vocab_size": 3000}}
    assert load_encoder(copied(trained, tmp_path / "pad", **files)).vocab_size == 3000


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (
            {"added_tokens": {"<a>": 3000}, "tokenizer": {"added_tokens": [{"content": "<a>", "id": 3001}]}},
            "'<a>' .*3000",
        ),
        ({"added_tokens": {"<a>": 17}}, r"'<a>' \(17\): another piece"),
        ({"added_tokens": {"<a>": "x"}}, "'<a>' has the id 'x'"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "<a>"}}}}, "'<a>' has the id 'x'"),
        ({"tokenizer_config": {"added_tokens_decoder": {"9" * 5000: {"content": "<a>"}}}}, "'<a>' has the id '9999"),
        *(({"added_tokens": {"<a>": index}}, f"'<a>' has the id {index}") for index in (-1, 2**31, 10**300, True, 1.5)),
        ({"added_tokens": {"<\ud800>": 3000}}, r"'<\\ud800>' has the id 3000"),
    ],
)
def test_files_that_disagree_are_refused(trained: Path, tmp_path: Path, files: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        load_encoder(copied(trained, tmp_path / "model", **files))


def test_a_template_means_the_role_that_the_files_name(trained: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    directory = added(trained, tmp_path / "roles", ["<|user|>", "<|bot|>", "<|end|>"], True)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|end|>"}))
    peer = AutoTokenizer.from_pretrained(directory)
    ids = ChatEncoder(directory).encode([CHAT])[0].ids.tolist()
    assert ids == peer.apply_chat_template([message._asdict() for message in CHAT])["input_ids"]
    assert ids.count(3002) == 3


def test_other_added_tokens_are_another_tokenizer(trained: Path, tmp_path: Path) -> None:
    first = copied(trained, tmp_path / "first", added_tokens={"<|a|>": 3000})
    second = copied(trained, tmp_path / "second", added_tokens={"<|b|>": 3000})
    assert same_tokenizer(first, second) is False
    assert same_tokenizer(first, trained) is False
    assert same_tokenizer(first, copied(trained, tmp_path / "third", added_tokens={"<|a|>": 3000})) is True


def test_extend_makes_control_tokens_pieces(trained: Path, corpus: tuple[Path, ...], tmp_path: Path) -> None:
    tokens = {"<|user|>": 3000, "слово": 3001}
    base = copied(trained, tmp_path / "base", added_tokens=tokens)
    report = extend_tokenizer(ExtendTokenizer(input=corpus, output=tmp_path / "out", vocab_size=3200, base=base))
    assert (report["control"], report["words_left_out"]) == (1, 1)
    pieces = {piece.piece: piece.type for piece in read_model(tmp_path / "out" / "tokenizer.model").pieces}
    assert pieces["<|user|>"] == 3
    assert "слово" not in pieces
