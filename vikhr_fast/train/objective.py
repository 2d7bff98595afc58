"""What is minimised: cross-entropy plus the KL divergence to a frozen reference (paper, equation 1).

Over the trained tokens t of a whole optimiser step, all micro-batches and ranks together:

    L = 1/N · Σ_t [ w_ce · CE_t + w_kl · f_t · s_t · KL_t ]

N is their number, s_t a weight of token t's source, f_t the factor of its sequence under `kl.fraction`. `combine =
"sum"` has w_ce = 1 and w_kl = kl.weight; `combine = "slerp"` interpolates spherically between the vectors (CE_t)_t and
(s_t · KL_t)_t of the previous step.

With `kl.fraction` f each step draws that share of its sequences: f_t is 1/f on their tokens and 0 on the others. Every
sum over KL_t takes the factor, so that its expectation is the sum over all tokens; the weights of "slerp", which aren't
linear in such sums, are a little off for shares of few sequences.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.profiler import record_function

from vikhr_fast.config import KLConfig
from vikhr_fast.data.packing import Batch, Reading
from vikhr_fast.model.mistral import Mistral
from vikhr_kernels import Buckets, Length
from vikhr_kernels.reference import masked_product

_PARALLEL = 1e-6  # sin Ω under which spherical weights are replaced by their limit, the linear ones


class Losses(NamedTuple):
    """The sums over some tokens that a step is reported by, and that the next step's slerp weights come from."""

    ce: Tensor  # [] Σ CE
    kl: Tensor  # [] Σ f·KL
    ce_ce: Tensor  # [] Σ CE²
    kl_kl: Tensor  # [] Σ f·(s·KL)²
    ce_kl: Tensor  # [] Σ f·CE·s·KL


class Objective:
    """The loss of a micro-batch.

    Args:
        config: the KL term.
        model: the model in training.
        reference: the frozen model, None where `config.weight` is 0 under "sum".
        sources: names of the training sources, in the order of `Batch.sources`.
        support: [V] bool, the pieces the KL is restricted to, None for all.
        buckets: of both vocabularies, where the reference has another.
        chunk_tokens: tokens whose logits exist at once; None lets the loss head choose.
        length: of documents, see `vikhr_kernels.PackedDocuments`.
    """

    def __init__(
        self,
        config: KLConfig,
        model: Mistral,
        reference: Mistral | None,
        *,
        sources: Sequence[str],
        support: Tensor | None = None,
        buckets: Buckets | None = None,
        chunk_tokens: int | None = None,
        length: Length = "short",
    ) -> None:
        self._config, self._model, self._reference = config, model, reference
        self._support, self._buckets, self._chunk_tokens, self._length = support, buckets, chunk_tokens, length
        weights = [config.source_weights.get(name, 1.0) for name in sources]
        device = next(model.parameters()).device
        self._source_weights = torch.tensor(weights, dtype=torch.float64, device=device)

    def weights(self, previous: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """w_ce and w_kl.

        Args:
            previous: [5] the `Losses` of the previous optimiser step over all ranks, zeros before the first.
        """
        if self._config.combine == "sum":
            return 1.0, self._config.weight
        return slerp_weights(self._config.slerp_factor, *previous[2:])

    def __call__(
        self,
        batch: Batch,
        reference: "ReferenceOutput | None",
        *,
        num_tokens: Tensor,
        weights: tuple[float | Tensor, float | Tensor],
    ) -> tuple[Tensor, Losses]:
        """The micro-batch's share of L, ready for `backward`, and its sums.

        Args:
            batch: the micro-batch.
            reference: what the frozen model made of it, see `with_reference`; without, there is no KL.
            num_tokens: [] N, over the whole step.
            weights: w_ce and w_kl.
        """
        source_weights = self._source_weights[batch.sources]  # [T]
        kl_factor = batch.kl_factor * torch.ones_like(source_weights)  # [T]
        hidden = self._model(batch.tokens, cu_seqlens=batch.cu_seqlens, length=self._length)
        loss, ce, kl = self._model.head(
            hidden,
            targets=batch.targets,
            **({} if reference is None else reference._asdict()),
            ce_weight=weights[0],
            kl_weight=weights[1] * kl_factor * source_weights,
            kl_direction=self._config.direction,
            kl_support=self._support,
            kl_buckets=None if reference is None else self._buckets,
            num_tokens=num_tokens,
            chunk_tokens=self._chunk_tokens,
        )
        counted, weighted = masked_product(kl_factor, kl), masked_product(source_weights, kl)
        return loss, Losses(
            ce=ce.sum(),
            kl=counted.sum(),
            ce_ce=ce.square().sum(),
            kl_kl=masked_product(kl_factor, weighted.square()).sum(),
            ce_kl=(ce * masked_product(source_weights, counted)).sum(),
        )

    def with_reference(
        self, batches: Sequence[Batch], together: int = 1
    ) -> Iterator[tuple[Batch, "ReferenceOutput | None"]]:
        """Each micro-batch on the model's device, and what the frozen model makes of it where the KL is asked for.

        Its forward takes so many micro-batches at once. Its head stays gathered until the last of them has been used:
        what is yielded is valid until the next is asked for.
        """
        for compares, group in _groups(batches, together):
            group = [batch.to(self._source_weights.device) for batch in group]
            if self._reference is None or not compares:
                yield from ((batch, None) for batch in group)
                continue
            read = [batch.reading or batch for batch in group]
            with torch.no_grad(), record_function("reference"):
                tokens, cu_seqlens = _joined(read)
                hidden = self._reference(tokens, cu_seqlens=cu_seqlens, length=self._length)
            head = self._reference.head_module
            with gathered(head):
                weight = head.weight.detach()
                for batch, rows in zip(group, hidden.split([len(b.tokens) for b in read]), strict=True):
                    if batch.reading is not None:  # where nothing is compared any row will do: its KL has the factor 0
                        rows = rows[batch.reading.rows.clamp(min=0)]
                    yield batch, ReferenceOutput(rows, weight)


class ReferenceOutput(NamedTuple):
    """What the loss head needs of the frozen model."""

    ref_hidden: Tensor  # [T, H']
    ref_weight: Tensor  # [V, H']; [V', H'] of another vocabulary


def _groups(batches: Sequence[Batch], together: int) -> Iterator[tuple[bool, Sequence[Batch]]]:
    """Runs of micro-batches that are alike in whether the KL is asked for, at most so many in each."""
    for has_kl, run in groupby(batches, key=lambda batch: batch.has_kl):
        alike = list(run)
        for start in range(0, len(alike), together):
            yield has_kl, alike[start : start + together]


def _joined(batches: Sequence[Batch | Reading]) -> tuple[Tensor, Tensor]:
    """The tokens of several micro-batches and the bounds of their documents, one after another."""
    starts = accumulate((len(batch.tokens) for batch in batches[:-1]), initial=0)
    bounds = [batch.cu_seqlens[1:] + start for batch, start in zip(batches, starts, strict=True)]
    return torch.cat([batch.tokens for batch in batches]), torch.cat([batches[0].cu_seqlens[:1], *bounds])


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """While its context lasts, a module's weight can be read outside its forward, sharded or not."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def slerp_weights(factor: float, ce_ce: Tensor, kl_kl: Tensor, ce_kl: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the spherical interpolation between two vectors, sin((1-t)Ω)/sin Ω and sin(tΩ)/sin Ω.

    Linear weights 1 - t and t, their limit, while either vector is zero or both are nearly parallel.

    Args:
        factor: t, 0 gives the first vector alone and 1 the second.
        ce_ce: [] squared length of the first vector.
        kl_kl: [] squared length of the second.
        ce_kl: [] their product.
    """
    lengths = (ce_ce * kl_kl).sqrt()
    cosine = torch.where(lengths > 0, ce_kl / lengths.clamp(min=torch.finfo(lengths.dtype).tiny), 1.0).clamp(-1, 1)
    angle = cosine.acos()
    sine = angle.sin()
    spherical = sine > _PARALLEL
    divisor = torch.where(spherical, sine, 1.0)
    first = torch.where(spherical, ((1 - factor) * angle).sin() / divisor, 1 - factor)
    second = torch.where(spherical, (factor * angle).sin() / divisor, factor)
    return first, second
