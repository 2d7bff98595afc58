"""Loss per token and bits per byte on held-out shards."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vikhr_fast.data.packing import PackedCorpus, StepLoader
from vikhr_fast.data.prefetch import prefetched
from vikhr_fast.data.token_shards import TokenShards
from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.errors import InputError
from vikhr_fast.model.mistral import Mistral
from vikhr_kernels import length_of

_LARGEST_LOSS = 700.0  # whose exponential is a number


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text.

    Perplexities over different vocabularies don't compare; bits per byte do.
    """

    loss: float
    """Mean cross-entropy a predicted token (of a text all but BOS, of a conversation the assistant's), in nats; its
    exponential is the perplexity."""
    bits_per_byte: float
    """All cross-entropy, EOS's included, in bits, over the UTF-8 bytes of the text."""
    tokens: int
    """Predicted tokens."""
    num_bytes: int
    """Bytes of the text in UTF-8."""
    window: int
    """Tokens that were read at once: the longer, the more of a document each token is predicted from."""

    def perplexity(self, what: str) -> float:
        """Of a token; InputError, which begins with `what`, where the loss is no number or has no exponential."""
        if not self.loss <= _LARGEST_LOSS:
            reason = "the model's weights hold NaN or infinity, or are too large for its dtype"
            raise InputError(f"{what}: the loss is {self.loss:g} nats a token; {reason}")
        return math.exp(self.loss)


@torch.no_grad()
def score_shards(
    model: Mistral,
    shards: TokenShards,
    *,
    window: int,
    micro_batch: int,
    chunk_tokens: int | None = None,
    ranks: Ranks | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Score:
    """Scores every document once, each on its own; one longer than a window in several, which share no context.

    Args:
        model: that of the ranks, sharded over them or not.
        shards: the held-out text.
        window: tokens a sequence.
        micro_batch: sequences a forward.
        chunk_tokens: tokens whose logits exist at once; None lets the loss head choose.
        ranks: who shares the work; every rank gets the same score.
        advance: called before each forward, by all ranks together.
    """
    rank, count = (ranks.rank, ranks.count) if ranks else (0, 1)
    device = next(model.parameters()).device
    corpus = PackedCorpus({"": shards}, window, epochs=1, seed=0)
    length = length_of(corpus.mean_pairs(model.config.sliding_window))
    per_step = micro_batch * count
    loader = StepLoader(corpus, sequences_per_step=per_step, micro_batch=micro_batch, rank=rank, ranks=count)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for _, batches in prefetched(loader.steps(0, -(-corpus.num_sequences // per_step))):
        advance()
        for batch in (b.to(device) for b in batches):
            hidden = model(batch.tokens, cu_seqlens=batch.cu_seqlens, length=length)
            loss, _, _ = model.head(hidden, targets=batch.targets, reduction="sum", chunk_tokens=chunk_tokens)
            total += loss
    nats = float(ranks.all_reduce_sum(total) if ranks else total)
    tokens = shards.num_trained
    return Score(nats / tokens, nats / math.log(2) / shards.num_bytes, tokens, shards.num_bytes, window)
