"""Bases with a byte-level vocabulary: to their own one extended, and to a SentencePiece one."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapting import Bases, base_ids_of, rewrite, weights
from byte_level import make_tokenizer
from safetensors.torch import load_file, save_file

from vikhr_fast.adapt.adapt import EMBEDDING, HEAD, Adapt, adapt
from vikhr_fast.adapt.measure import bits_per_byte
from vikhr_fast.errors import InputError
from vikhr_fast.model.config import ModelConfig
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer import JsonEncoder
from vikhr_fast.tokenizer.byte_level import token_text
from vikhr_fast.tokenizer.export import read_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
SPARE = 12  # rows past the tokens


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a byte-level tokenizer, `base`, and the same extended by hand, `extended`."""
    folder = tmp_path_factory.mktemp("byte-level")
    file = make_tokenizer(folder / "base", ["the cat sat on the mat and the dog at the door"] * 9, vocab_size=300)
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = content["model"]["vocab"]
    spelt = [(b" ", "м".encode()[:1]), (b" " + "м".encode()[:1], "м".encode()[1:]), (" м".encode(), b"!")]
    for left, right in spelt:
        vocabulary[token_text(left + right)] = len(vocabulary)
        content["model"]["merges"].append([token_text(left), token_text(right)])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>"}
    (folder / "base" / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "extended").mkdir()
    (folder / "extended" / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "extended" / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def options(made: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Adapt:
    """To the extended vocabulary."""
    base = tmp_path / "base"
    tokens = JsonEncoder.from_file(made / "base" / "tokenizer.json").vocab_size
    config = ModelConfig(
        vocab_size=tokens + SPARE, hidden_size=16, intermediate_size=24, num_hidden_layers=2, head_dim=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
        model_type="llama", tie_word_embeddings=request.param,
    )  # fmt: skip
    Mistral(config, seed=3).save_pretrained(base)
    for file in (made / "base").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    return Adapt(base=base, tokenizer=made / "extended", output=tmp_path / "out")


def texts(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "en.txt").write_text("the cat and the dog\n\nthat mat")
    (tmp_path / "ru.txt").write_text("мама мыла м!", encoding="utf-8")
    return f"en={tmp_path / 'en.txt'}", f"ru={tmp_path / 'ru.txt'}"


def test_extended_rows_are_copies_and_means_of_the_parts(options: Adapt) -> None:
    report = adapt(options)
    before, after = weights(options.base), weights(options.output)
    names = [name for name in (EMBEDDING, HEAD) if name in before]
    tokens = before[EMBEDDING].shape[0] - SPARE
    assert (report["copied"], report["averaged"], report["unspelt"]) == (tokens, 3, [])
    assert report["left_out"]["padding_rows"] == SPARE
    encoder = JsonEncoder.from_file(options.base / "tokenizer.json")
    for name in names:
        assert torch.equal(after[name][:tokens], before[name][:tokens])
        lead, trail = [encoder.merge(bytes([byte]))[0] for byte in "м".encode()]
        space, exclamation = encoder.encode(" ")[0], encoder.encode("!")[0]
        for row, parts in enumerate([[space, lead], [space, lead, trail], [space, lead, trail, exclamation]]):
            torch.testing.assert_close(after[name][tokens + row], before[name][parts].mean(0), rtol=0, atol=1e-7)
    assert (HEAD in after) == (HEAD in before)
    assert base_ids_of(options.output) == [*range(tokens), None, None, None]


def test_text_without_new_tokens_has_the_logits_of_the_base_in_transformers(options: Adapt) -> None:
    """Those of old tokens; ids, roles and kind of the model are the base's."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapt(options)
    old, new = (AutoTokenizer.from_pretrained(path) for path in (options.base, options.output))
    text = "the cat sat on that mat:кот"
    assert new(text)["input_ids"] == old(text)["input_ids"]
    assert len(new(" м")["input_ids"]) == 1
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (options.base, options.output))
    assert type(after).__name__ == "LlamaForCausalLM"
    for name in ("bos_token_id", "eos_token_id", "tie_word_embeddings"):
        assert getattr(after.config, name) == getattr(before.config, name)
    ids = torch.tensor([old(text)["input_ids"]])
    rows = before.config.vocab_size - SPARE
    with torch.no_grad():
        assert torch.equal(after(ids).logits[..., :rows], before(ids).logits[..., :rows])


def test_text_shows_what_a_vocabulary_costs(options: Adapt, tmp_path: Path) -> None:
    report = adapt(replace(options, text=texts(tmp_path)))
    sources = {"en": tmp_path / "en.txt", "ru": tmp_path / "ru.txt"}
    for when, model in (("before", options.base), ("after", options.output)):
        expected = bits_per_byte(model, sources)
        assert {name: own[when] for name, own in report["bits_per_byte"].items()} == expected
    assert json.loads((options.output / "adapt.json").read_text())["bits_per_byte"] == report["bits_per_byte"]


def test_named_roles_are_those_of_the_result(options: Adapt) -> None:
    """A tuned base's BOS and EOS may be tokens of chats, which no document has."""
    before = json.loads((options.base / "tokenizer_config.json").read_text())
    (options.base / "special_tokens_map.json").write_text('{"eos_token": "<|end|>", "pad_token": "<|end|>"}')
    (options.tokenizer / "special_tokens_map.json").write_text('{"eos_token": "<|end|>", "pad_token": "<|end|>"}')
    adapt(replace(options, base_bos="<|end|>", base_eos="<|begin|>"))
    (options.tokenizer / "special_tokens_map.json").unlink()
    encoder = JsonEncoder.from_file(options.output / "tokenizer.json")
    assert (encoder.bos_id, encoder.eos_id) == (1, 0)
    config = json.loads((options.output / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 0)
    after = json.loads((options.output / "tokenizer_config.json").read_text())
    assert after == before | {"bos_token": "<|end|>", "eos_token": "<|begin|>"}
    special = json.loads((options.output / "special_tokens_map.json").read_text())
    assert special == {"bos_token": "<|end|>", "eos_token": "<|begin|>", "pad_token": "<|end|>"}


@pytest.mark.parametrize("wrong", ["en", "=file", "en=", "e n=file"])
def test_texts_need_names(options: Adapt, wrong: str) -> None:
    with pytest.raises(InputError, match=rf"^--text {wrong}: must be NAME=SOURCE"):
        adapt(replace(options, text=(wrong,)))


def test_texts_may_be_patterns_and_must_hold_something(options: Adapt, tmp_path: Path) -> None:
    texts(tmp_path)
    report = adapt(replace(options, text=(f"both={tmp_path / '??.txt'}",)))
    together = tmp_path / "together.txt"
    together.write_text("\n\n".join((tmp_path / f"{name}.txt").read_text(encoding="utf-8") for name in ("en", "ru")))
    assert report["bits_per_byte"]["both"]["before"] == bits_per_byte(options.base, {"it": together})["it"]
    (tmp_path / "blank.txt").write_text("\n\n")
    with pytest.raises(InputError, match=r"^--text blank=.*blank\.txt: no text in it; give another$"):
        adapt(replace(options, output=tmp_path / "other", text=(f"blank={tmp_path / 'blank.txt'}",)))
    assert not (tmp_path / "other").exists()


def test_bits_per_byte_are_those_of_transformers(options: Adapt, tmp_path: Path) -> None:
    import math

    from transformers import AutoModelForCausalLM

    (tmp_path / "one.txt").write_text("the cat, мама", encoding="utf-8")
    encoder = JsonEncoder.from_file(options.base / "tokenizer.json")
    ids = [0, *encoder.encode("the cat, мама").tolist(), 1]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(options.base).double()(torch.tensor([ids])).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
    found = bits_per_byte(options.base, {"one": tmp_path / "one.txt"})["one"]
    assert found == pytest.approx(float(loss) / math.log(2) / len("the cat, мама".encode()), rel=1e-5)


def test_sentencepiece_rows_are_copies_and_means_of_what_the_base_spells(
    options: Adapt, tokenizers: tuple[Path, Path]
) -> None:
    adapt(replace(options, tokenizer=tokenizers[1], base_bos="<|begin|>", base_eos="<|end|>"))
    encoder = JsonEncoder.from_file(options.base / "tokenizer.json")
    before, after = weights(options.base), weights(options.output)
    model = read_model(options.output / "tokenizer.model")
    copied = 0
    for index, (piece, base_id) in enumerate(zip(model.pieces, base_ids_of(options.output), strict=True)):
        text = piece.piece.replace("▁", " ")
        parts = {"<s>": [0], "</s>": [1]}.get(piece.piece)
        if parts is None and piece.type == 6:
            parts = encoder.merge(bytes([int(piece.piece[3:5], 16)]))
        parts = encoder.encode(text).tolist() if parts is None else parts
        copied += base_id is not None
        assert base_id == (parts[0] if len(parts) == 1 else None), piece.piece
        for name in (EMBEDDING, HEAD):
            if name in before:
                torch.testing.assert_close(after[name][index], before[name][parts].mean(0), rtol=1e-6, atol=1e-7)
    assert copied > 256
    config = json.loads((options.output / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["model_type"]) == (1, 2, "llama")


def test_bytes_that_the_base_has_no_token_for_are_named(options: Adapt, tokenizers: tuple[Path, Path]) -> None:
    """As SmolLM2, which lacks 21."""
    file = options.base / "tokenizer.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    del content["model"]["vocab"][token_text(b"\xf1")]
    file.write_text(json.dumps(content), encoding="utf-8")
    report = adapt(replace(options, tokenizer=tokenizers[1], base_bos="<|begin|>", base_eos="<|end|>"))
    assert report["unspelt"] == ["<0xF1>"]
    before, after = weights(options.base)[EMBEDDING], weights(options.output)[EMBEDDING]
    encoder = JsonEncoder.from_file(file)
    known = [encoder.merge(bytes([byte]))[0] for byte in range(256) if byte != 0xF1]
    row = [piece.piece for piece in read_model(options.output / "tokenizer.model").pieces].index("<0xF1>")
    torch.testing.assert_close(after[row], before[known].mean(0), rtol=0, atol=1e-6)


def test_roles_are_named_and_exist(options: Adapt, tokenizers: tuple[Path, Path], bases: Bases) -> None:
    to_sentencepiece = replace(options, tokenizer=tokenizers[1])
    with pytest.raises(InputError, match=r"^--base-bos and --base-eos: .*chat tokens: <\|begin\|>, <\|end\|>$"):
        adapt(to_sentencepiece)
    with pytest.raises(InputError, match=r"^--base-eos: .*doesn't say"):
        adapt(replace(to_sentencepiece, base_bos="<|begin|>"))
    with pytest.raises(InputError, match=r"^--base-eos </s>: no token of .*tokenizer\.json; .* are <\|begin\|>, "):
        adapt(replace(to_sentencepiece, base_bos="<|begin|>", base_eos="</s>"))
    with pytest.raises(InputError, match=r"^--base-bos: .*tokenizer\.model says"):
        adapt(replace(to_sentencepiece, base=bases(torch.float32, 20_000), base_bos="<s>"))
    assert not options.output.exists()


def test_vocabularies_that_do_not_fit_are_refused(options: Adapt, bases: Bases, tmp_path: Path) -> None:
    other = make_tokenizer(tmp_path / "other", ["мама мыла раму"] * 9, vocab_size=300).parent
    with pytest.raises(InputError, match=r"id \d+ is .*`vikhr-fast tokenizer extend` makes one that keeps its ids"):
        adapt(replace(options, tokenizer=other))
    with pytest.raises(InputError, match=r"tokenizer\.json: byte-level, but .*tokenizer\.model is a SentencePiece"):
        adapt(replace(options, base=bases(torch.float32, 20_000)))
    rewrite(options.base / "config.json", vocab_size=9000)
    with pytest.raises(InputError, match=r"tokenizer\.json: \d+ tokens, but the weights have 9000 rows"):
        adapt(options)


def test_an_end_of_chats_that_is_new_ends_answers(options: Adapt, made: Path, tmp_path: Path) -> None:
    content = json.loads((made / "extended" / "tokenizer.json").read_text(encoding="utf-8"))
    number = 1 + max(content["model"]["vocab"].values())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"].append({"id": number, "content": "<|im_end|>", "special": True, **flags})
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat" / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    adapt(replace(options, tokenizer=tmp_path / "chat", pad_to_multiple=64))
    generation = json.loads((options.output / "generation_config.json").read_text())
    rows = weights(options.output)[EMBEDDING].shape[0]
    assert generation == {"eos_token_id": [1, number], "suppress_tokens": list(range(number + 1, rows))}
    assert rows % 64 == 0


def test_rows_that_padded_the_base_are_not_forbidden_once_they_are_tokens(options: Adapt) -> None:
    """A token that the base forbids stays forbidden."""
    tokens = 1 + max(json.loads((options.base / "tokenizer.json").read_text())["model"]["vocab"].values())
    padding = list(range(tokens, tokens + SPARE))
    (options.base / "generation_config.json").write_text(json.dumps({"suppress_tokens": [7, *padding]}))
    adapt(options)
    assert json.loads((options.output / "generation_config.json").read_text()) == {"suppress_tokens": [7]}


def test_a_text_that_is_none_is_said_before_any_row_is_made(
    options: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vikhr_fast.adapt.adapt._write_weights", lambda *_: pytest.fail("rows are made"))
    with pytest.raises(InputError, match=r"none\.txt: no such file$"):
        adapt(replace(options, text=(f"ru={tmp_path / 'none.txt'}",)))
    rewrite(options.base / "tokenizer_config.json", bos_token=None)
    with pytest.raises(InputError, match=r"no BOS or no EOS, .* --base-bos and --base-eos, or leave --text out$"):
        adapt(replace(options, text=texts(tmp_path)))


def test_a_file_of_any_name_is_the_tokenizer_and_no_model_beside_it_is(options: Adapt, tmp_path: Path) -> None:
    """The result would otherwise have the ids of that."""
    content = (options.tokenizer / "tokenizer.json").read_bytes()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.json").write_bytes(content)
    (tmp_path / "new" / "tokenizer.model").write_text("another")
    adapt(replace(options, tokenizer=tmp_path / "new" / "mine.json"))
    assert (options.output / "tokenizer.json").read_bytes() == content
    assert not (options.output / "tokenizer.model").exists()


def test_frequencies_are_counted_with_the_bases_tokenizer(options: Adapt, tmp_path: Path) -> None:
    """In a text of м alone its two bytes are equally frequent, so that the weighted mean of three parts differs."""
    (tmp_path / "m.txt").write_text("м" * 50, encoding="utf-8")
    adapt(replace(options, init="frequency-weighted-mean", frequencies=(tmp_path / "m.txt",)))
    encoder = JsonEncoder.from_file(options.base / "tokenizer.json")
    parts = [encoder.encode(" ")[0], *(encoder.merge(bytes([byte]))[0] for byte in "м".encode())]
    before, after = weights(options.base)[EMBEDDING], weights(options.output)[EMBEDDING]
    share = torch.tensor([1.0, 51.0, 51.0])
    expected = (before[parts] * (share / share.sum())[:, None]).sum(0)
    torch.testing.assert_close(after[-2], expected, rtol=1e-5, atol=1e-7)


def test_shares_of_an_extended_vocabulary(options: Adapt, tmp_path: Path) -> None:
    """Of all tokens that begin with the space, the head tells the one that the text has."""
    (tmp_path / "m.txt").write_text(" м" * 50, encoding="utf-8")
    options = replace(options, untie_head=HEAD not in weights(options.base))
    adapt(replace(options, output=tmp_path / "mean"))
    shares = replace(options, init="mean-and-share", frequencies=(tmp_path / "m.txt",))
    adapt(shares)
    before, after = weights(tmp_path / "mean"), weights(options.output)
    assert [name for name in before if not torch.equal(before[name], after[name])] == [HEAD]
    added = (after[HEAD] - before[HEAD]).norm(dim=-1)
    encoder = JsonEncoder.from_file(options.base / "tokenizer.json")
    space = encoder.encode(" ")[0]
    with torch.no_grad():
        hidden = Mistral.from_pretrained(options.base)(torch.tensor([[0, *encoder.encode(" м" * 50)][:128]]))[0]
    mean, share = hidden.mean(0), torch.tensor(1 / 54)  # of " м!": with what may follow the space, 50 and 4 in all
    expected = 0.5 * share.log() * mean / mean.square().sum()
    torch.testing.assert_close((after[HEAD] - before[HEAD])[-1], expected, rtol=1e-4, atol=1e-6)
    assert added[-2] < added[-1] / 10  # " м" and " м!", which never comes
    torch.testing.assert_close(added[space], added[-1])
    assert (added == 0).sum() > 200  # tokens with which no new one begins
    if options.untie_head:
        with pytest.raises(InputError, match=r"^--init mean-and-share: the head of .* is tied, .*; add --untie-head"):
            adapt(replace(shares, output=tmp_path / "tied", untie_head=False))


def test_ids_without_a_token_have_no_share(options: Adapt, tmp_path: Path) -> None:
    content = json.loads((options.tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"][token_text(" м!".encode())] += 50
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "cats.txt").write_text("the cat! the dog!")
    untie, texts = HEAD not in weights(options.base), (tmp_path / "cats.txt",)
    file = tmp_path / "tokenizer.json"
    adapt(replace(options, tokenizer=file, init="mean-and-share", frequencies=texts, untie_head=untie))
    sign = JsonEncoder.from_file(options.base / "tokenizer.json").encode("!")[0]
    before, after = weights(options.base), weights(options.output)
    assert torch.equal(after[HEAD][sign], before[EMBEDDING if untie else HEAD][sign])


def test_hidden_states_that_say_nothing_are_refused(options: Adapt, tmp_path: Path) -> None:
    file = options.base / "model.safetensors"
    save_file(load_file(file) | {"model.norm.weight": torch.zeros(16)}, file)
    (tmp_path / "cats.txt").write_text("the cat")
    untie, texts = HEAD not in weights(options.base), (tmp_path / "cats.txt",)
    with pytest.raises(InputError, match=r"^--init mean-and-share: hidden states of .* all zero; take another$"):
        adapt(replace(options, init="mean-and-share", frequencies=texts, untie_head=untie))
    assert not options.output.exists()


def test_shares_of_a_text_without_tokens(options: Adapt, tmp_path: Path) -> None:
    file = options.base / "tokenizer.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for byte in "ñ".encode():
        del content["model"]["vocab"][token_text(bytes([byte]))]
    file.write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "lost.txt").write_text("ñ", encoding="utf-8")
    is_tied = HEAD not in weights(options.base)
    lost = (tmp_path / "lost.txt",)
    shares = replace(options, tokenizer=file, init="mean-and-share", frequencies=lost, untie_head=is_tied)
    with pytest.raises(InputError, match=r"^--frequencies: no text that the base has tokens for; give another"):
        adapt(shares)


def test_a_base_that_holds_nan_is_refused(options: Adapt) -> None:
    file = options.base / "model.safetensors"
    values = load_file(file)
    values[EMBEDDING][3, 3] = float("nan")
    save_file(values, file)
    with pytest.raises(InputError, match="embed_tokens"):
        adapt(options)
