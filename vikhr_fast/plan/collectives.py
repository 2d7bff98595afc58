"""The collectives of one training step, by the model's parts: what every rank calls, how often, and how large."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vikhr_fast.config import TrainConfig
from vikhr_fast.data.packing import num_drawn
from vikhr_fast.model.config import ModelConfig

ITEM_BYTES = {"bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Part:
    """What FSDP2 gathers and reduces at once; a model has several alike."""

    name: str
    count: int
    shapes: tuple[tuple[int, ...], ...]  # of its parameters

    def elements(self, shards: int) -> int:
        """Of one such part, each parameter padded to equal rows a shard."""
        return sum(-(-rows // shards) * shards * math.prod(rest) for rows, *rest in self.shapes)


def parts(model: ModelConfig) -> tuple[Part, ...]:
    """Embedding, layers, final norm and LM head; tied, the embedding is the head's part."""
    hidden, inner, vocabulary = model.hidden_size, model.intermediate_size, model.vocab_size
    queries, keys = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    attention = ((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries))
    layer = (*attention, (inner, hidden), (inner, hidden), (hidden, inner), (hidden,), (hidden,))
    return (
        *(() if model.tie_word_embeddings else (Part("embedding", 1, ((vocabulary, hidden),)),)),
        Part("layer", model.num_hidden_layers, layer),
        Part("final norm", 1, ((hidden,),)),
        Part("LM head", 1, ((vocabulary, hidden),)),
    )


@dataclass(frozen=True)
class StepCounts:
    """How often a rank does what in one step."""

    micro_batches: int
    compared: int  # micro-batches that take the KL
    reference_forwards: int
    reductions: int  # of gradients, among the ranks that share one copy of the weights

    @classmethod
    def of(cls, config: TrainConfig, gpus: int) -> "StepCounts":
        """Those of a configuration."""
        batch, runtime = config.batch, config.runtime
        together = batch.micro_batch * gpus
        micro_batches = batch.sequences_per_step // together
        drawn = num_drawn(config.kl.fraction, batch.sequences_per_step) if config.kl.needs_reference else 0
        compared = -(-drawn // together)
        return cls(
            micro_batches=micro_batches,
            compared=compared,
            reference_forwards=-(-compared // runtime.reference_micro_batches),
            reductions=micro_batches if runtime.reduce_each_micro_batch else 1,
        )


@dataclass(frozen=True)
class Collective:
    """One kind of call in a step."""

    of: str
    kind: Literal["all-gather", "reduce-scatter", "all-reduce"]
    among: Literal["shards", "replicas", "all"]
    """The ranks that hold one copy of the weights together, those that hold equal parts of different copies, or all."""
    ranks: int  # how many these are
    times: int
    elements: int  # of the whole tensor
    item_bytes: int

    @property
    def link_bytes(self) -> float:
        """That a rank sends in all calls of the step, as a ring does."""
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * (self.ranks - 1) / self.ranks * self.num_bytes

    @property
    def num_bytes(self) -> int:
        """Of the whole tensors of all calls."""
        return self.times * self.elements * self.item_bytes


def collectives(config: TrainConfig, model: ModelConfig, gpus: int) -> Iterator[Collective]:
    """All of a step from its first forward to its update; none on one rank."""
    if gpus == 1:
        return
    runtime, counts = config.runtime, StepCounts.of(config, gpus)
    shards, compute = gpus // runtime.replicas, ITEM_BYTES[runtime.dtype]
    wide, found = max(compute, 4), parts(model)
    if shards > 1:
        for part in found:
            again = 2 if part.name == "layer" else 1  # a layer is freed between its forward and its backward
            times = part.count * (1 if runtime.keep_gathered else again * counts.micro_batches)
            elements = part.elements(shards)
            yield Collective(f"model: {part.name}", "all-gather", "shards", shards, times, elements, compute)
        for part in found if counts.compared and not runtime.whole_reference else []:
            if part.name != "final norm":  # nothing frees it after the run's first forward
                times, elements = part.count * counts.reference_forwards, part.elements(shards)
                yield Collective(f"reference: {part.name}", "all-gather", "shards", shards, times, elements, compute)
        for part in found:
            times, elements = part.count * counts.reductions, part.elements(shards)
            yield Collective(f"gradients: {part.name}", "reduce-scatter", "shards", shards, times, elements, wide)
    for part in found if runtime.replicas > 1 else []:
        each = part.elements(shards) // shards
        yield Collective(f"gradients: {part.name}", "all-reduce", "replicas", runtime.replicas, part.count, each, wide)
    if config.optimizer.master == "split":
        yield Collective("gradients' norm", "all-reduce", "all", gpus, 1, 1, 8)
    elif shards > 1:
        tensors = sum(part.count * len(part.shapes) for part in found)
        yield Collective("gradients' norms", "all-reduce", "shards", shards, 1, tensors, wide)
    yield Collective("trained tokens", "all-reduce", "all", gpus, 1, 1, 8)
    yield Collective("losses, FLOPs, tokens", "all-reduce", "all", gpus, 1, 13, 8)
    yield Collective("signals, on the CPU", "all-reduce", "all", gpus, counts.micro_batches, 1, 8)
