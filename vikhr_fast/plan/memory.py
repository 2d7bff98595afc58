"""Bytes of one GPU's memory, by what they are for, at the peak of a step."""

from dataclasses import dataclass

from vikhr_fast.config import TrainConfig
from vikhr_fast.model_config import ModelConfig
from vikhr_kernels.linear_ce_kl import default_chunk

GIB = 2**30
_WIDE, _HALF = 4, 2  # bytes of float32 and of bf16


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters."""

    layer: int
    head: int
    """Of the LM head; the embedding has as many."""
    total: int

    @classmethod
    def of(cls, model: ModelConfig) -> "Parameters":
        """Those of a model."""
        queries = model.num_attention_heads * model.head_dim
        keys = model.num_key_value_heads * model.head_dim
        attention = model.hidden_size * (2 * queries + 2 * keys)
        layer = attention + 3 * model.hidden_size * model.intermediate_size + 2 * model.hidden_size
        head = model.vocab_size * model.hidden_size
        return cls(layer, head, model.num_hidden_layers * layer + 2 * head + model.hidden_size)

    @property
    def multiplied(self) -> int:
        """Those that a token is multiplied with: all but the embedding."""
        return self.total - self.head


def activation_bytes(model: ModelConfig, tokens: int) -> int:
    """What one layer keeps of a micro-batch for its backward pass, in bf16, as its operations save it.

    The two sums of the residual stream, both normalised, q, k, v, the attended values, gate, up and their product;
    in float32 the two scales of the norms and attention's statistics, whose rows are padded to 128 tokens.
    """
    queries = model.num_attention_heads * model.head_dim
    keys = model.num_key_value_heads * model.head_dim
    halves = 4 * model.hidden_size + 2 * queries + 2 * keys + 3 * model.intermediate_size
    padded = -(-tokens // 128) * 128
    return _HALF * tokens * halves + _WIDE * (2 * tokens + padded * model.num_attention_heads)


def layers_bytes(model: ModelConfig, tokens: int, checkpointing: str) -> int:
    """What all layers keep: everything, or their inputs (and attention's results) and one layer in whole."""
    whole = activation_bytes(model, tokens)
    if checkpointing == "none":
        return model.num_hidden_layers * whole
    kept = _HALF * tokens * model.hidden_size
    if checkpointing == "selective":
        queries = model.num_attention_heads * model.head_dim
        kept += _HALF * tokens * queries + _WIDE * (-(-tokens // 128) * 128) * model.num_attention_heads
    return model.num_hidden_layers * kept + whole


def loss_bytes(model: ModelConfig, tokens: int, chunk_tokens: int, reference: bool) -> int:
    """The most that the loss head has at once.

    That is, where forward ends, both hidden states, the float32 logits of a chunk, the head's float32 gradient and the
    hidden states'; or, in backward, both gradients beside their results in bf16.
    """
    each = _WIDE * model.vocab_size * (1 + reference)
    chunk = min(tokens, chunk_tokens or default_chunk(tokens, each, on_gpu=True))
    head = model.vocab_size * model.hidden_size
    hidden = _HALF * tokens * model.hidden_size
    return max((2 + reference) * hidden + chunk * each + _WIDE * head, (_WIDE + _HALF) * head + 2 * hidden)


def memory(config: TrainConfig, model: ModelConfig, gpus: int) -> dict[str, int]:
    """Bytes a GPU at the peak of a step, in bf16, by category."""
    count = Parameters.of(model)
    shard = count.total / (gpus // config.runtime.replicas)
    reference = config.kl.combine == "slerp" or config.kl.weight > 0
    split = config.optimizer.master == "split"
    tokens = config.batch.micro_batch * config.data.sequence_length
    sharded = {}
    if gpus > 1:
        accumulation = config.batch.sequences_per_step // (config.batch.micro_batch * gpus)
        waiting = accumulation > 1 and not config.runtime.reduce_each_micro_batch
        sharded = {
            "gradients not yet reduced": _WIDE * (count.total if waiting else count.layer),
            # the heads from their forward to the end of their backward, and two layers, one of them on its way
            "gathered parameters": _HALF * (count.head + 2 * count.layer) * (1 + reference),
        }
    return {
        name: round(size)
        for name, size in {
            **({"parameters": _HALF * shard} if split or gpus == 1 else {}),
            **({"remainders": _HALF * shard} if split else {"master weights": _WIDE * shard}),
            "moments": 2 * (_WIDE if config.optimizer.moments == "float32" else _HALF) * shard,
            "gradients": _WIDE * shard,
            **({"reference": _HALF * shard} if reference else {}),
            **sharded,
            "activations": layers_bytes(model, tokens, config.runtime.checkpointing),
            "loss head": loss_bytes(model, tokens, config.runtime.chunk_tokens, reference),
        }.items()
    }
