"""What the mean of rows leaves out of a new LM head: how often a text that begins so goes on so.

The base predicts the first of the tokens that spell a new piece. Of all new pieces that begin with that token, this
one has a share, whose logarithm belongs in its logit. A head has no bias, but hidden states have a mean, m: what is
added to a row along m / |m|^2 is added to the logit, more or less, wherever it is asked for. Half the logarithm is what
pays.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vikhr_fast.adapt.measure import load_network
from vikhr_fast.data.sources import read_texts
from vikhr_fast.errors import InputError
from vikhr_fast.io.progress import progress_bar
from vikhr_fast.tokenizer.load import load_encoder

_WEIGHT = 0.5
_BATCH = 1000  # documents that are encoded at once
_MOST_TOKENS = 2048  # whose hidden states are taken, of each source
_FIRST_TOKENS = 128  # of a document


@dataclass(frozen=True)
class Shares:
    """What is added to the rows of a head."""

    counts: list[int]
    """Of each new piece in the texts, plus one."""
    logarithms: list[float]
    """Of the share of each among those that begin with the same token of the base; 0 where the base spells none."""
    direction: Tensor
    """What a row gets for each unit of its logarithm: [H], float64."""

    def added_to(self, row: int) -> Tensor:
        """What the row of a piece gets besides: [H], float64."""
        return self.logarithms[row] * self.direction


def find_shares(
    base: Path, roles: dict[str, int], first_ids: list[int | None], tokenizer: Path, texts: tuple[Path, ...]
) -> Shares:
    """Counts the new pieces in texts, and takes the base's mean hidden state over the first tokens of these.

    Args:
        base: directory of the model and its tokenizer.
        roles: its id of "bos", where not the tokenizer's own begins a document.
        first_ids: the first of those with which it spells each new piece.
        tokenizer: the new one's file.
        texts: sources of documents, see `data.sources`.

    Raises:
        InputError: a text, the model or a tokenizer can't be read, there is no text, or hidden states are no numbers.
    """
    encoder = load_encoder(tokenizer)
    counts = np.ones(len(first_ids), dtype=np.int64)
    for source in texts:
        documents = read_texts(source)
        with progress_bar(f"pieces of {source.name}") as advance:
            while some := list(islice(documents, _BATCH)):
                ids, _ = encoder.encode_batch(some)
                counts += np.bincount(ids, minlength=len(counts))
                if encoder.eos_id >= 0:
                    counts[encoder.eos_id] += len(some)
                advance(len(some))
    first = np.array([-1 if index is None else index for index in first_ids])
    totals = np.bincount(first + 1, counts)
    logarithms = np.where(first >= 0, np.log(counts / totals[first + 1]), 0.0)
    mean = _mean_hidden_state(base, roles, texts)
    direction = _WEIGHT * mean / mean.square().sum()
    if not direction.isfinite().all():
        raise InputError(f"--init mean-and-share: hidden states of {base} are NaN, infinite or all zero; take another")
    return Shares(counts.tolist(), logarithms.tolist(), direction)


@torch.no_grad()
def _mean_hidden_state(base: Path, roles: dict[str, int], texts: tuple[Path, ...]) -> Tensor:
    """That goes into the head, over the beginnings of documents: [H], float64."""
    network = load_network(base)
    device = next(network.parameters()).device
    total, count = torch.zeros(network.config.hidden_size, dtype=torch.float64), 0
    with progress_bar("hidden states") as advance:
        for ids in _beginnings(base, roles, texts, min(_FIRST_TOKENS, network.config.max_position_embeddings)):
            total += network(torch.tensor([ids], device=device))[0].double().sum(0).cpu()
            count += len(ids)
            advance(len(ids))
    if count == 0:
        raise InputError("--frequencies: no text that the base has tokens for; give another")
    return total / count


def _beginnings(base: Path, roles: dict[str, int], texts: tuple[Path, ...], most: int) -> Iterator[list[int]]:
    """The first tokens of the first documents of each source, `most` of a document."""
    encoder = load_encoder(base)
    bos = roles.get("bos", encoder.bos_id)
    for source in texts:
        left = _MOST_TOKENS
        for text in read_texts(source):
            ids = encoder.encode(text).tolist()
            if not ids:
                continue
            beginning = [*([bos] if bos >= 0 else []), *ids][: min(most, left)]
            yield beginning
            left -= len(beginning)
            if left == 0:
                break
