import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapting import CONTROL, ROWS, RUSSIAN, base_ids_of, rewrite, segmented, store_head, tie, weights
from safetensors.torch import save_file

from vikhr_fast.adapt.adapt import Adapt, adapt
from vikhr_fast.config import train_config
from vikhr_fast.corpus.shard import Shard, write_shards
from vikhr_fast.errors import InputError
from vikhr_fast.io.files import sha256_of
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.model.weights import EMBEDDING, HEAD
from vikhr_fast.tokenizer import BpeEncoder
from vikhr_fast.tokenizer.export import read_model
from vikhr_fast.train.inputs import open_inputs

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def test_transformers_loads_the_result(options: Adapt) -> None:
    """The same ids as ours, the same logits as ours, and on kept pieces the logits that the base has."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapt(options)
    tokenizer = AutoTokenizer.from_pretrained(options.output)
    model = AutoModelForCausalLM.from_pretrained(options.output)
    encoder = BpeEncoder.from_file(options.output / "tokenizer.model")
    text = "Мама мыла раму, and the Python of 1991 — 😀"
    ids = tokenizer(text)["input_ids"]
    assert ids == [encoder.bos_id, *encoder.encode(text).tolist()]
    assert (model.config.vocab_size, model.config.bos_token_id, model.config.eos_token_id) == (1200, 1, 2)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits
        ours = Mistral.from_pretrained(options.output)
        torch.testing.assert_close(ours.logits(ours(torch.tensor([ids]))), logits, rtol=1e-5, atol=1e-6)

        kept = [index for index, base_id in enumerate(base_ids_of(options.output)) if base_id is not None]
        base_ids = torch.tensor([base_ids_of(options.output)[index] for index in kept])
        base = AutoModelForCausalLM.from_pretrained(options.base)
        expected = base(base_ids[None, :100]).logits[..., base_ids]
        assert torch.equal(model(torch.tensor([kept[:100]])).logits[..., kept], expected)


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_parameters": None},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    ],
)
def test_config_carries_both_spellings_and_all_else(options: Adapt, spelling: dict[str, Any]) -> None:
    rewrite(options.base / "config.json", **spelling, pad_token_id=7, sliding_window=9, unknown_field=[1])
    (options.base / "generation_config.json").write_text('{"eos_token_id": [2, 450], "temperature": 0.5}')
    adapt(options)
    config = json.loads((options.output / "config.json").read_text())
    before = json.loads((options.base / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5e5
    changed = {"vocab_size": 1200, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    rope = {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    assert config == {**before, **changed, **rope}
    generation = json.loads((options.output / "generation_config.json").read_text())
    end = BpeEncoder.from_file(options.output / "tokenizer.model").piece_to_id("<|im_end|>")
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, end], "pad_token_id": None, "temperature": 0.5}


def test_report_is_kept(options: Adapt) -> None:
    report = adapt(options)
    assert json.loads((options.output / "adapt.json").read_text()).items() > report.items()
    assert report["tokenizer_sha256"] == sha256_of(options.output / "tokenizer.model")
    assert report["base_tokenizer_sha256"] == sha256_of(options.base / "tokenizer.model")


def test_init_and_text_go_together(options: Adapt, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--frequencies: --init mean-and-share and frequency-weighted-mean need it"):
        adapt(replace(options, init="frequency-weighted-mean"))
    with pytest.raises(InputError, match=r"^--frequencies: "):
        adapt(replace(options, frequencies=(RUSSIAN,)))
    with pytest.raises(InputError, match=r"^--pad-to-multiple 0: must be positive"):
        adapt(replace(options, pad_to_multiple=0))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_padding_is_defined_and_never_sampled(options: Adapt) -> None:
    from transformers import AutoModelForCausalLM

    report = adapt(replace(options, pad_to_multiple=128))
    assert (report["vocab_size"], report["padding"]) == (1280, 80)
    assert base_ids_of(options.output)[1200:] == [None] * 80
    after = weights(options.output)
    for name in (EMBEDDING, HEAD):
        assert after[name].shape == (1280, 16)
        torch.testing.assert_close(after[name][1200:], after[name][:1200].mean(0).expand(80, -1), rtol=1e-4, atol=1e-7)
    assert json.loads((options.output / "config.json").read_text())["vocab_size"] == 1280
    # The logit of a mean row is the mean logit: never the largest, whatever the hidden state.
    hidden = 100 * torch.randn(1000, 16, generator=torch.Generator().manual_seed(2))
    logits = hidden @ after[HEAD].T
    assert (logits[:, 1200:] < logits[:, :1200].max(-1, keepdim=True).values).all()
    assert (logits.softmax(-1)[:, 1200:] < 1 / 1280).all()
    model = AutoModelForCausalLM.from_pretrained(options.output)
    torch.manual_seed(0)
    settings = {"do_sample": True, "temperature": 100.0, "top_k": 0, "max_new_tokens": 40, "eos_token_id": None}
    sampled = model.generate(torch.ones(60, 1, dtype=torch.int64), **settings)
    assert sampled[:, 1:].numel() == 2400  # of which 150 were padding if they could be sampled
    assert sampled.max() < 1200


def test_padded_model_trains_on_shards_of_its_tokenizer(options: Adapt, tmp_path: Path) -> None:
    adapt(replace(options, pad_to_multiple=128))
    write_shards(Shard(input=(RUSSIAN,), tokenizer=options.output, output=tmp_path / "shards"))
    values: dict[str, Any] = {"model": options.output, "output": tmp_path / "run"}
    values |= {"data": {"train": {"ru": tmp_path / "shards"}, "sequence_length": 64}}
    inputs = open_inputs(train_config(values, "test"))
    assert inputs.model.vocab_size == 1280


def test_llama_stays_a_llama(options: Adapt) -> None:
    """As Llama-2's own config.json is: without a window, and without the base of the rotary embeddings."""
    from transformers import LlamaForCausalLM

    changes = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "sliding_window": None}
    rewrite(options.base / "config.json", **changes, rope_theta=None, rope_parameters=None)
    adapt(options)
    kept = [index for index, base_id in enumerate(base_ids_of(options.output)) if base_id is not None]
    base_ids = [base_ids_of(options.output)[index] for index in kept]
    base, model = (LlamaForCausalLM.from_pretrained(directory) for directory in (options.base, options.output))
    assert model.config.rope_parameters["rope_theta"] == 10000.0
    with torch.no_grad():
        expected = base(torch.tensor([base_ids[:50]])).logits[..., base_ids]
        logits = model(torch.tensor([kept[:50]])).logits[..., kept]
        ours = Mistral.from_pretrained(options.output)
        torch.testing.assert_close(ours.logits(ours(torch.tensor([kept[:50]])))[..., kept], logits)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("untie", [False, True])
def test_a_tied_head_stays_tied_or_becomes_one_of_its_own(options: Adapt, untie: bool) -> None:
    from transformers import AutoModelForCausalLM

    tie(options.base)
    adapt(replace(options, untie_head=untie))
    after = weights(options.output)
    assert (HEAD in after) == untie
    assert json.loads((options.output / "config.json").read_text())["tie_word_embeddings"] is not untie
    kept = [index for index, base_id in enumerate(base_ids_of(options.output)) if base_id is not None]
    base_ids = [base_ids_of(options.output)[index] for index in kept]
    base = AutoModelForCausalLM.from_pretrained(options.base)
    model = AutoModelForCausalLM.from_pretrained(options.output)
    with torch.no_grad():
        expected = base(torch.tensor([base_ids[:50]])).logits[..., base_ids]
        assert torch.equal(model(torch.tensor([kept[:50]])).logits[..., kept], expected)
        ours = Mistral.from_pretrained(options.output)
        torch.testing.assert_close(ours.logits(ours(torch.tensor([kept[:50]])))[..., kept], expected)
    assert not untie or torch.equal(after[HEAD], after[EMBEDDING])


def test_untying_what_is_untied_is_refused(options: Adapt) -> None:
    with pytest.raises(InputError, match="base: its head is untied already"):
        adapt(replace(options, untie_head=True))


@pytest.mark.parametrize("untie", [False, True])
def test_a_stored_head_that_is_the_embedding_is_no_head(options: Adapt, untie: bool) -> None:
    store_head(options.base, None)
    adapt(replace(options, untie_head=untie))
    after = weights(options.output)
    assert (HEAD in after) == untie
    assert not untie or torch.equal(after[HEAD], after[EMBEDDING])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_tied_head_that_differs_is_refused_or_kept(options: Adapt, dtype: torch.dtype) -> None:
    head = torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(3)).to(dtype)
    store_head(options.base, head)
    with pytest.raises(InputError, match=f"base: {HEAD}: .* tied, but one is stored .*; `.* --untie-head` keeps it"):
        adapt(options)
    adapt(replace(options, untie_head=True))
    after = weights(options.output)[HEAD]
    assert after.dtype == dtype
    new = read_model(options.tokenizer / "tokenizer.model")
    old = read_model(options.base / "tokenizer.model")
    for index, base_id in enumerate(base_ids_of(options.output)):
        expected = head[base_id] if base_id is not None else None
        if expected is None:
            expected = head[segmented(old, new.pieces[index].piece)].float().mean(0).to(dtype)
        assert torch.equal(after[index], expected)
    Mistral.from_pretrained(options.output)


def test_angles_of_rotary_embeddings_are_left_out(options: Adapt) -> None:
    """As Llama-2's own files have them, which transformers ignores."""
    tensors = weights(options.base)
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    for file in options.base.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, options.base / "model.safetensors", metadata={"format": "pt"})
    Mistral.from_pretrained(options.base)
    assert adapt(options)["left_out"]["buffers"] == 2
    assert not any("rotary_emb" in name for name in weights(options.output))


def test_settings_that_are_no_longer_true_are_left_out(options: Adapt) -> None:
    rewrite(options.base / "config.json", quantization_config={"bits": 4}, rope_scaling={"rope_type": "default"})
    assert adapt(options)["left_out"]["settings"] == ["quantization_config", "rope_scaling"]
    assert not {"quantization_config", "rope_scaling"} & json.loads((options.output / "config.json").read_text()).keys()


def widen(base: Path, rows: int) -> dict[str, torch.Tensor]:
    """Gives the matrices of a base more rows; returns its weights."""
    tensors = weights(base)
    for name in (EMBEDDING, HEAD):
        more = torch.randn(rows - ROWS, 16, generator=torch.Generator().manual_seed(len(name)))
        tensors[name] = torch.cat([tensors[name], more])
    for file in base.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    rewrite(base / "config.json", vocab_size=rows)
    return tensors


def test_rows_past_the_pieces_are_added_tokens_or_padding(options: Adapt, tmp_path: Path) -> None:
    tensors = widen(options.base, 512)
    tokens = {"<|user|>": 500, "<|other|>": 501, "слово": 502, "<pad>": 512}
    (options.base / "added_tokens.json").write_text(json.dumps(tokens))
    new = read_model(options.tokenizer / "tokenizer.model")
    new.pieces.add(piece="<|user|>", score=0, type=CONTROL)
    new.trainer_spec.control_symbols.append("<|user|>")
    (tmp_path / "new.model").write_bytes(new.SerializeToString())
    report = adapt(replace(options, tokenizer=tmp_path / "new.model"))
    left_out = {"added_tokens": ["<|other|>", "слово", "<pad>"], "padding_rows": 9, "buffers": 0, "settings": []}
    assert report["left_out"] == left_out
    assert base_ids_of(options.output)[1200] == 500
    for name in (EMBEDDING, HEAD):
        assert torch.equal(weights(options.output)[name][1200], tensors[name][500])
    assert json.loads((options.output / "adapt.json").read_text())["left_out"] == left_out


def test_rows_that_are_no_padding_are_refused(options: Adapt) -> None:
    widen(options.base, 700)
    with pytest.raises(InputError, match=r"500 pieces, but the weights have 700 rows.*added_tokens.json"):
        adapt(options)


def test_a_new_tokenizer_with_added_tokens_is_refused(options: Adapt, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "tokenizer.model").write_bytes((options.tokenizer / "tokenizer.model").read_bytes())
    (tmp_path / "new" / "added_tokens.json").write_text(json.dumps({"<|user|>": 1200}))
    with pytest.raises(InputError, match=r"new: .*add 1 tokens: '<\|user\|>' \(1200\); they would be lost"):
        adapt(replace(options, tokenizer=tmp_path / "new"))


def test_nan_in_the_base_is_named(options: Adapt) -> None:
    tensors = weights(options.base)
    tensors["model.norm.weight"][3] = torch.inf
    for file in options.base.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, options.base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model.norm.weight: 1 of 16 numbers are NaN or infinite"):
        adapt(options)
