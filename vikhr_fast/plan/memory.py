"""Bytes of one GPU's memory, by what they are for, at the peak of a step."""

from dataclasses import dataclass

from vikhr_fast.config import TrainConfig
from vikhr_fast.model.config import ModelConfig
from vikhr_fast.plan.collectives import StepCounts, parts
from vikhr_kernels.linear_ce_kl import default_chunk

GIB = 2**30
_WIDE, _HALF = 4, 2  # bytes of float32 and of bf16


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters."""

    layer: int
    head: int  # of the LM head
    embedding: int  # as many, or none where it is the head
    total: int

    @classmethod
    def of(cls, model: ModelConfig) -> "Parameters":
        """Those of a model."""
        found = {part.name: part for part in parts(model)}
        total = sum(part.count * part.elements(1) for part in found.values())
        embedding = found["embedding"].elements(1) if "embedding" in found else 0
        return cls(found["layer"].elements(1), found["LM head"].elements(1), embedding, total)

    @property
    def multiplied(self) -> int:
        """Those that a token is multiplied with: all but an embedding that isn't the head."""
        return self.total - self.embedding


def layers_bytes(model: ModelConfig, tokens: int, checkpointing: str) -> int:
    """What all layers keep for backward: everything, or their inputs (and attention's results) and one layer in whole.

    Of a layer that is, in bf16, the two sums of the residual stream, both normalised, q, k, v, the attended values,
    gate, up and their product; in float32 the two scales of the norms and attention's statistics, whose rows are padded
    to 128 tokens.
    """
    queries, keys = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    halves = 4 * model.hidden_size + 2 * queries + 2 * keys + 3 * model.intermediate_size
    statistics = _WIDE * (-(-tokens // 128) * 128) * model.num_attention_heads
    whole = _HALF * tokens * halves + _WIDE * 2 * tokens + statistics
    if checkpointing == "none":
        return model.num_hidden_layers * whole
    kept = _HALF * tokens * model.hidden_size
    if checkpointing == "selective":
        kept += _HALF * tokens * queries + statistics
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


def gathered_bytes(config: TrainConfig, model: ModelConfig, gpus: int) -> int:
    """The most that is gathered at once of both models, buffers on their way included.

    A forward has a part, the buffer that it was copied from and the next part's; a backward the head, a layer and the
    next one's buffer. A tied head stays from the one's begin to the other's end. The reference's head stays for the
    micro-batches of a group.
    """
    runtime, counts = config.runtime, StepCounts.of(config, gpus)
    shards = gpus // runtime.replicas
    elements = {part.name: part.elements(shards) for part in parts(model)}
    layer, head, norm = elements["layer"], elements["LM head"], elements["final norm"]
    tied = head if model.tie_word_embeddings else 0
    whole = model.num_hidden_layers * layer + 2 * head - tied + norm
    passing = norm + max(3 * layer + tied, 2 * layer + head, layer + 2 * head)
    most = whole + max(layer, head) if runtime.keep_gathered else passing
    if counts.compared and not runtime.whole_reference:
        meanwhile = whole if runtime.keep_gathered and counts.reference_forwards > 1 else 0
        most = max(meanwhile + passing, most + head)
    return _HALF * most


def unreduced_bytes(config: TrainConfig, model: ModelConfig, gpus: int) -> int:
    """The most that gradients take before they are reduced.

    Waiting for the step's end: float32 sums of all, and the input of the first part's reduction. Otherwise a part's in
    bf16 and its reduction's input. That of a tied head waits for the embedding's, which is made last.
    """
    count, counts = Parameters.of(model), StepCounts.of(config, gpus)
    waiting = _HALF * count.head if model.tie_word_embeddings else 0
    if counts.micro_batches == counts.reductions:
        return max((_HALF + _WIDE) * count.head, (_HALF + _WIDE) * count.layer + waiting)
    if model.tie_word_embeddings:
        return _WIDE * (count.total + count.layer) + waiting
    return _WIDE * count.total + max(_WIDE * count.head, _HALF * count.layer, _WIDE * (count.layer - count.head))


def memory(config: TrainConfig, model: ModelConfig, gpus: int) -> dict[str, int]:
    """Bytes a GPU at the peak of a step, in bf16, by category."""
    count, counts, runtime = Parameters.of(model), StepCounts.of(config, gpus), config.runtime
    shard = count.total / (gpus // runtime.replicas)
    split = config.optimizer.master == "split"
    tokens = config.batch.micro_batch * config.data.sequence_length
    # replicas sum their gradients once a step: until then they lie beside the sums of split masters
    partial = split and runtime.replicas > 1 and runtime.reduce_each_micro_batch
    training = {
        "activations": layers_bytes(model, tokens, runtime.checkpointing),
        "loss head": loss_bytes(model, tokens, runtime.chunk_tokens, counts.compared > 0),
    }
    group = min(runtime.reference_micro_batches, counts.compared)
    if group > 1:
        training["reference's hidden states"] = _HALF * (group - 1) * tokens * model.hidden_size
    # The most that the reference's forward holds of a layer: gate, up and their product, five of the residual stream's
    # size; and what the forward before it made.
    frozen = _HALF * group * tokens * (6 * model.hidden_size + 3 * model.intermediate_size)
    if frozen > sum(training.values()):  # one after the other
        training = {"reference's activations": frozen}
    sizes = {"parameters": _HALF * shard} if split or gpus == 1 else {}
    sizes |= {"remainders": _HALF * shard} if split else {"master weights": _WIDE * shard}
    sizes["moments"] = 2 * (_WIDE if config.optimizer.moments == "float32" else _HALF) * shard
    sizes["gradients"] = _WIDE * shard * (2 if partial else 1)
    if counts.compared:
        sizes["reference"] = _HALF * (count.total if runtime.whole_reference else shard)
    if gpus > 1:
        sizes["gradients not yet reduced"] = unreduced_bytes(config, model, gpus)
        sizes["gathered parameters"] = gathered_bytes(config, model, gpus)
    return {name: round(size) for name, size in (sizes | training).items()}
