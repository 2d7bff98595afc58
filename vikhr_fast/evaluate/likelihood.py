"""Log-likelihoods of continuations: what they have in common with each other is computed once."""

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from vikhr_fast.errors import InputError
from vikhr_fast.model.key_value_cache import KeyValueCache
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer.load import Encoder

_BARRIER = "\x00"  # no piece joins it with what follows


class Pair(NamedTuple):
    """A context and how it might go on, in tokens; neither is empty."""

    context: list[int]
    continuation: list[int]


class Likelihood(NamedTuple):
    """How likely a model finds a continuation."""

    log: float
    """Natural logarithm of its probability after its context."""
    is_greedy: bool
    """Whether each of its tokens is the likeliest one."""


def encode_pair(encoder: Encoder, context: str, continuation: str) -> Pair:
    """The tokens of a context and its continuation; white space between the two belongs to the continuation.

    They are those of the whole text where it can be cut between the two. Where a piece reaches across, cutting it would
    change the question, and that differently for each of the answers: then the context is encoded as it is alone, and
    the continuation after it.
    """
    first = encoder.bos_id if encoder.bos_id >= 0 else encoder.eos_id
    if not context:
        return Pair([first], encoder.encode(continuation).tolist())
    own = context.rstrip()
    continuation = context[len(own) :] + continuation
    alone: list[int] = encoder.encode(own).tolist()
    whole: list[int] = encoder.encode(own + continuation).tolist()
    if whole[: len(alone)] == alone and len(whole) > len(alone):
        return Pair([first, *alone], whole[len(alone) :])
    barrier: list[int] = encoder.encode(_BARRIER).tolist()
    return Pair([first, *alone], encoder.encode(_BARRIER + continuation).tolist()[len(barrier) :])


def cut_pair(pair: Pair, positions: int) -> Pair:
    """Without the beginning of a text that is longer than the model's positions.

    Raises:
        InputError: the continuation alone has more tokens than the model positions.
    """
    if len(pair.continuation) > positions:
        raise InputError(f"an answer of {len(pair.continuation):,} tokens: the model has {positions:,} positions")
    too_many = len(pair.context) + len(pair.continuation) - 1 - positions  # nothing follows the last token
    return Pair(pair.context[max(0, too_many) :], pair.continuation)


@torch.no_grad()
def likelihoods(model: Mistral, questions: Sequence[Sequence[Pair]]) -> list[list[Likelihood]]:
    """Scores the continuations of several questions at once, each text cut by `cut_pair`.

    Args:
        model: not sharded.
        questions: the pairs of each, which begin alike: that beginning is computed once a question.
    """
    positions = model.config.max_position_embeddings
    cut = [[cut_pair(pair, positions) for pair in pairs] for pairs in questions]
    inputs = [[(pair.context + pair.continuation)[:-1] for pair in pairs] for pairs in cut]
    shared = [[tokens[0] for tokens in takewhile(_alike, zip(*own, strict=False))] for own in inputs]
    tails = [text[len(start) :] for start, own in zip(shared, inputs, strict=True) for text in own]
    cache = KeyValueCache(len(shared), max(map(len, shared)) + max(map(len, tails)))
    before = model.extend(shared, cache)
    owners = [index for index, own in enumerate(inputs) for _ in own]
    cache.select(owners)
    after = zip(owners, model.extend(tails, cache), strict=True)
    hidden = (torch.cat([before[owner], own]) for owner, own in after)
    return [[_likelihood(model, next(hidden), pair.continuation) for pair in pairs] for pairs in questions]


def _alike(tokens: tuple[int, ...]) -> bool:
    return len(set(tokens)) == 1


def _likelihood(model: Mistral, hidden: Tensor, continuation: list[int]) -> Likelihood:
    """Of the tokens that end a text, hidden [tokens - 1, H]."""
    logits = model.logits(hidden[-len(continuation) :])
    targets = torch.tensor(continuation, device=logits.device)
    precise = torch.promote_types(logits.dtype, torch.float32)
    log = logits.to(precise).log_softmax(-1).gather(-1, targets[:, None]).double().sum()
    return Likelihood(float(log), bool((logits.argmax(-1) == targets).all()))
