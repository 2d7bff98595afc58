"""A whole model on the kernels: logits, loss and gradients are those of the eager operations."""

import torch

import vikhr_kernels
from vikhr_fast.model.mistral import Mistral, ModelConfig
from vikhr_kernels import reference

SHAPE = ModelConfig(
    vocab_size=53,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=64,
    sliding_window=5,
    initializer_range=0.2,
)


def test_model_on_kernels_equals_the_eager_one() -> None:
    tokens = torch.randint(53, (29,), generator=torch.Generator().manual_seed(0))
    cu_seqlens = torch.tensor([0, 1, 12, 29], dtype=torch.int32)
    results = []
    for ops, allowed in ((reference, False), (vikhr_kernels, True)):
        vikhr_kernels.allow_triton(allowed)
        model = Mistral(SHAPE, ops=ops, seed=1)
        hidden = model(tokens, cu_seqlens=cu_seqlens)
        loss, ce, kl = model.lm_head(
            hidden,
            targets=tokens.roll(-1),
            ref_hidden=0.9 * hidden.detach(),
            ref_weight=model.lm_head.weight.detach(),
            chunk_tokens=10,
        )
        loss.backward()
        results.append((hidden.detach(), loss.detach(), ce, kl, *(p.grad for p in model.parameters())))
    assert float(results[0][3].mean()) > 1e-4
    for eager, triton in zip(*results, strict=True):
        torch.testing.assert_close(triton, eager, rtol=1e-4, atol=1e-6)
