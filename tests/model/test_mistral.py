import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding, apply_rotary_pos_emb

from vikhr_fast.model.mistral import Mistral, ModelConfig, document_positions
from vikhr_fast.model.weights import EMBEDDING, HEAD
from vikhr_fast.train.gradients import LocalGradients
from vikhr_kernels import reference

TINY = ModelConfig(
    vocab_size=31,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    initializer_range=0.3,
)
SAME_IN_FLOAT32 = 1e-5

differential = settings(max_examples=12, deadline=None)


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    key_value_heads = draw(st.integers(1, 3))
    return ModelConfig(
        vocab_size=draw(st.integers(11, 60)),
        hidden_size=draw(st.integers(3, 40)),
        intermediate_size=draw(st.integers(2, 50)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=key_value_heads * draw(st.integers(1, 3)),
        num_key_value_heads=key_value_heads,
        head_dim=2 * draw(st.integers(1, 9)),
        max_position_embeddings=64,
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        rope_theta=draw(st.sampled_from([50.0, 10000.0, 1000000.0])),
        sliding_window=draw(st.none() | st.integers(1, 10)),
        tie_word_embeddings=draw(st.booleans()),
        initializer_range=0.2,  # large enough for attention to be far from uniform
    )


def build(config: ModelConfig, seed: int = 0) -> Mistral:
    """A model whose norm scales matter too: initial ones would hide an error in them."""
    model = Mistral(config, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0, 0.3, generator=generator)
    return model


def peer_of(model: Mistral) -> MistralForCausalLM:
    peer = MistralForCausalLM(MistralConfig(**asdict(model.config), attn_implementation="eager"))
    peer.load_state_dict(model.state_dict() | {"lm_head.weight": model.head_module.weight}, strict=True)
    return peer


def draw_tokens(config: ModelConfig, *shape: int) -> Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(5))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    scale = max(float(theirs.norm()), 1e-30)  # where each token sees only itself, queries and keys have no gradient
    return float((ours - theirs).norm()) / scale


def assert_same_gradients(model: Mistral, peer: MistralForCausalLM, ours: Tensor, theirs: Tensor) -> None:
    upstream = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(6))
    torch.autograd.backward(ours, upstream)
    torch.autograd.backward(theirs, upstream)
    gradients = {name: parameter.grad for name, parameter in peer.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert relative_error(parameter.grad, gradients[name]) < SAME_IN_FLOAT32, name


@differential
@given(configs(), st.integers(1, 3), st.integers(1, 24))
def test_batches_equal_transformers_in_logits_and_gradients(config: ModelConfig, rows: int, length: int) -> None:
    model = build(config)
    peer = peer_of(model)
    tokens = draw_tokens(config, rows, length)
    hidden = model(tokens)
    assert hidden.shape == (rows, length, config.hidden_size)
    ours, theirs = model.logits(hidden), peer(tokens).logits
    assert relative_error(ours.detach(), theirs.detach()) < SAME_IN_FLOAT32
    assert_same_gradients(model, peer, ours, theirs)


@differential
@given(configs(), st.lists(st.integers(1, 20), min_size=1, max_size=4))
def test_packed_documents_equal_transformers_on_each_alone(config: ModelConfig, lengths: list[int]) -> None:
    model = build(config)
    peer = peer_of(model)
    tokens = draw_tokens(config, sum(lengths))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    hidden = model(tokens, cu_seqlens=cu_seqlens)
    assert hidden.shape == (sum(lengths), config.hidden_size)
    ours = model.logits(hidden)
    theirs = torch.cat([peer(document[None]).logits[0] for document in torch.split(tokens, lengths)])
    assert relative_error(ours.detach(), theirs.detach()) < SAME_IN_FLOAT32
    assert_same_gradients(model, peer, ours, theirs)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_window_counts_the_token_itself(window: int) -> None:
    model = build(replace(TINY, num_hidden_layers=1, sliding_window=window))
    tokens = draw_tokens(TINY, 1, 8)
    changed = tokens.clone()
    changed[0, 0] = (tokens[0, 0] + 1) % TINY.vocab_size
    differs = (model(tokens) != model(changed)).any(-1)[0]
    assert differs.tolist() == [position < window for position in range(8)]


@differential
@given(
    heads=st.sampled_from([(4, 4), (4, 2)]),
    theta=st.sampled_from([10000.0, 500000.0]),
    window=st.sampled_from([None, 3]),
    tied=st.booleans(),
    length=st.integers(1, 40),
)
def test_llama_is_computed_by_the_same_file(
    heads: tuple[int, int], theta: float, window: int | None, tied: bool, length: int
) -> None:
    """Of a window that stands in its config.json transformers takes no notice."""
    values = asdict(TINY) | {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "rope_theta": theta}
    config = LlamaConfig(
        **(values | {"model_type": "llama", "sliding_window": window, "tie_word_embeddings": tied}),
        attn_implementation="eager",
    )
    torch.manual_seed(7)
    peer = LlamaForCausalLM(config)
    with TemporaryDirectory() as directory:
        peer.save_pretrained(directory)
        model = Mistral.from_pretrained(directory)
    tokens = draw_tokens(TINY, 2, length)
    ours, theirs = model.logits(model(tokens)), peer(tokens).logits
    assert relative_error(ours.detach(), theirs.detach()) < SAME_IN_FLOAT32
    assert_same_gradients(model, peer, ours, theirs)


def test_positions_restart_in_each_document() -> None:
    cu_seqlens = torch.tensor([0, 3, 3, 4, 6], dtype=torch.int32)  # the second document is empty
    assert document_positions(cu_seqlens, 6).tolist() == [0, 1, 2, 0, 0, 1]


def test_rope_rounds_as_transformers_far_into_a_document() -> None:
    config = MistralConfig(**asdict(TINY))
    positions = torch.tensor([0, 1, 1000, 4095, 32767])
    q, k = torch.randn(5, 4, 8), torch.randn(5, 2, 8)
    cos, sin = MistralRotaryEmbedding(config)(q, positions[None])
    theirs = apply_rotary_pos_emb(q, k, cos[0], sin[0])
    for ours, other in zip(reference.rope(q, k, positions, TINY.rope_theta), theirs, strict=True):
        assert torch.equal(ours, other)


def test_shapes_that_do_not_say_what_they_are_are_refused() -> None:
    model = Mistral(TINY)
    with pytest.raises(ValueError, match=r"tokens must be .* they are \[6\]"):
        model(draw_tokens(TINY, 6))
    with pytest.raises(ValueError, match=r"tokens must be .* they are \[1, 6\]"):
        model(draw_tokens(TINY, 1, 6), cu_seqlens=torch.tensor([0, 6], dtype=torch.int32))


def test_initial_values_depend_on_the_seed_alone() -> None:
    config = replace(TINY, vocab_size=500, initializer_range=0.02)
    state = torch.get_rng_state()
    first, again, other = Mistral(config, seed=3), Mistral(config, seed=3), Mistral(config, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    half = Mistral(config, seed=3, dtype=torch.bfloat16)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value.bfloat16(), half.state_dict()[name])
        assert torch.equal(value, other.state_dict()[name]) == ("norm" in name)
    assert (first.model.norm.weight == 1).all()
    for matrix in (first.lm_head.weight, first.model.embed_tokens.weight):
        assert matrix.std().item() == pytest.approx(0.02, rel=0.03)
        assert abs(matrix.mean().item()) < 0.001


def test_meta_device_then_values_is_the_same_model() -> None:
    model = Mistral(TINY, device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    model.initialise(7)
    tokens = draw_tokens(TINY, 1, 5)
    assert torch.equal(model(tokens), Mistral(TINY, seed=7)(tokens))


def test_runs_on_the_operations_it_is_given() -> None:
    calls: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            calls[name] += 1
            calls["residual"] += name == "rms_norm" and len(arguments) > 3
            return getattr(reference, name)(*arguments, **named)

        return operation

    operations: Any = SimpleNamespace(**{n: counted(n) for n in ("rms_norm", "rope", "swiglu", "flash_attention")})
    tokens = draw_tokens(TINY, 2, 5)
    assert torch.equal(Mistral(TINY, ops=operations)(tokens), Mistral(TINY)(tokens))
    assert calls == {"rms_norm": 5, "rope": 2, "swiglu": 2, "flash_attention": 2, "residual": 4}


def test_a_copy_is_independent_of_the_original() -> None:
    model = build(TINY)
    tokens = draw_tokens(TINY, 1, 5)
    before = model(tokens)
    frozen = copy.deepcopy(model)
    nn.init.zeros_(model.model.embed_tokens.weight)
    assert torch.equal(frozen(tokens), before)


@pytest.mark.parametrize("tied", [False, True])
def test_head_computes_the_loss_as_it_does_logits(tied: bool) -> None:
    model = build(replace(TINY, tie_word_embeddings=tied))
    hidden = model(draw_tokens(TINY, 1, 9)).flatten(0, 1).detach()
    targets, weight = draw_tokens(TINY, 9), model.head_module.weight
    loss, _, _ = model.head(hidden, targets=targets)
    torch.testing.assert_close(loss, F.cross_entropy(model.logits(hidden), targets))
    (gradient,) = torch.autograd.grad(loss, weight)
    (expected,) = torch.autograd.grad(F.cross_entropy(model.logits(hidden), targets), weight)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("summed", [False, True])
def test_a_tied_matrix_has_one_gradient_of_both_uses(tmp_path: Path, summed: bool) -> None:
    """In float64, by autograd and by sums in place: as in transformers, and as two equal matrices have together."""
    values = asdict(TINY) | {"model_type": "llama", "tie_word_embeddings": True, "sliding_window": None}
    torch.manual_seed(7)
    peer = LlamaForCausalLM(LlamaConfig(**values, attn_implementation="eager")).double()
    peer.save_pretrained(tmp_path)
    model = Mistral.from_pretrained(tmp_path, torch.float64)
    assert [name for name, _ in model.named_parameters() if "layers" not in name] == [EMBEDDING, "model.norm.weight"]
    apart = Mistral(replace(model.config, tie_word_embeddings=False), dtype=torch.float64)
    apart.load_state_dict(model.state_dict() | {HEAD: model.head_module.weight})
    gradients = LocalGradients(model, torch.float64) if summed else None
    tokens = draw_tokens(TINY, 1, 12)
    for _ in range(2):  # micro-batches
        loss, _, _ = model.head(model(tokens)[0, :-1], targets=tokens[0, 1:])
        expected = peer(tokens, labels=tokens).loss
        torch.testing.assert_close(loss, expected.double(), rtol=1e-6, atol=0)
        for each in (loss, expected, apart.head(apart(tokens)[0, :-1], targets=tokens[0, 1:])[0]):
            each.backward()
    theirs, parts = ({n: p.grad for n, p in other.named_parameters()} for other in (peer, apart))
    parts[EMBEDDING] += parts[HEAD]
    for name, parameter in model.named_parameters():
        gradient = parameter.grad if gradients is None else gradients.of(parameter)
        assert gradient is not None
        assert relative_error(gradient, theirs[name]) < 1e-6, name  # their norms and logits are in float32
        torch.testing.assert_close(gradient, parts[name], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_is_written_as_what_it_was(tmp_path: Path, tied: bool) -> None:
    values = asdict(TINY) | {"model_type": "llama", "tie_word_embeddings": tied, "sliding_window": None}
    torch.manual_seed(7)
    peer = LlamaForCausalLM(LlamaConfig(**values))
    peer.save_pretrained(tmp_path / "theirs")
    Mistral.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(again) is LlamaForCausalLM
    assert again.config.tie_word_embeddings is tied
    assert ("lm_head.weight" in load_file(tmp_path / "ours" / "model.safetensors")) is not tied
    tokens = draw_tokens(TINY, 2, 9)
    assert torch.equal(again(tokens).logits, peer(tokens).logits)
