import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapting import ROWS, RUSSIAN, rewrite, store_head, tie, weights
from byte_level import make_tokenizer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from vikhr_fast.adapt.adapt import Adapt, adapt
from vikhr_fast.errors import InputError
from vikhr_fast.model.weights import EMBEDDING, HEAD


@pytest.fixture
def untying(options: Adapt) -> Adapt:
    """Of a base that is to keep its vocabulary."""
    return Adapt(options.base, options.output, untie_head=True)


@pytest.mark.parametrize("kind", ["SentencePiece", "byte-level"])
def test_a_base_gets_a_head_of_its_own_and_all_else_stays(untying: Adapt, kind: str) -> None:
    base, output = untying.base, untying.output
    tie(base)
    rewrite(base / "config.json", pad_token_id=7, unknown_field=[1])
    (base / "generation_config.json").write_text('{"temperature": 0.5}')
    (base / "README.md").write_text("of the base")
    if kind == "byte-level":
        (base / "tokenizer.model").unlink()
        make_tokenizer(base, [RUSSIAN.read_text(encoding="utf-8")])
        (base / "merges.txt").write_text("a b")
    report = adapt(untying)
    assert report["head"] == EMBEDDING
    assert sorted(report["copied"]) == sorted(
        ["generation_config.json", "tokenizer.model"]
        if kind == "SentencePiece"
        else ["generation_config.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"]
    )
    assert {path.name for path in output.iterdir()} == {*report["copied"], "config.json", "model.safetensors"}
    for name in report["copied"]:
        assert (output / name).read_bytes() == (base / name).read_bytes()
    before, after = (json.loads((path / "config.json").read_text()) for path in (base, output))
    assert after == before | {"tie_word_embeddings": False}
    tensors = weights(base)
    tensors[HEAD] = tensors[EMBEDDING]
    found = weights(output)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    tokens = torch.arange(20)[None]
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path)(tokens).logits for path in (output, base))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("differs", [False, True])
def test_a_head_that_is_stored_all_the_same_is_kept(untying: Adapt, differs: bool) -> None:
    head = torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float32)
    store_head(untying.base, head if differs else None)
    assert adapt(untying)["head"] == (HEAD if differs else EMBEDDING)
    found = weights(untying.output)
    assert torch.equal(found[HEAD], head if differs else found[EMBEDDING])


def break_norm(base: Path) -> None:
    tie(base)
    tensors = weights(base)
    tensors["model.norm.weight"][3] = torch.inf
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


def test_what_cannot_be_done_is_named(untying: Adapt) -> None:
    with pytest.raises(InputError, match=r"^--tokenizer: give the new one, or --untie-head"):
        adapt(replace(untying, untie_head=False))
    others: list[dict[str, Any]] = [{"init": "random"}, {"pad_to_multiple": 64}, {"text": (RUSSIAN,)}, {"seed": 1}]
    for other in others:
        with pytest.raises(InputError, match=r"^--tokenizer: .* are of a new one's rows; give it"):
            adapt(replace(untying, **other))
    break_norm(untying.base)
    with pytest.raises(InputError, match=r"model.norm.weight: 1 of 16 numbers are NaN or infinite"):
        adapt(untying)
    rewrite(untying.base / "config.json", vocab_size=512)
    with pytest.raises(InputError, match=rf"base: .*{EMBEDDING}: shape is \[500, 16\], must be \[512, 16\]"):
        adapt(untying)
    rewrite(untying.base / "config.json", tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"base: its head is untied already, and without --tokenizer"):
        adapt(untying)
    assert not untying.output.exists()
