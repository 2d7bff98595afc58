"""What is minimised: cross-entropy plus the KL divergence to a frozen reference (paper, equation 1).

Over the trained tokens t of a whole optimiser step, all micro-batches and ranks together:

    L = 1/N · Σ_t [ w_ce · CE_t + w_kl · s_t · KL_t ]

N is their number, s_t a weight of token t's source. `combine = "sum"` has w_ce = 1 and w_kl = kl.weight;
`combine = "slerp"` interpolates spherically between the vectors (CE_t)_t and (s_t · KL_t)_t of the previous step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from vikhr_fast.config import KLConfig
from vikhr_fast.model import Head, Mistral
from vikhr_kernels import Length

_PARALLEL = 1e-6  # sin Ω under which spherical weights are replaced by their limit, the linear ones


class Losses(NamedTuple):
    """The sums over some tokens that a step is reported by, and that the next step's slerp weights come from."""

    ce: Tensor  # [] Σ CE
    kl: Tensor  # [] Σ KL
    ce_ce: Tensor  # [] Σ CE²
    kl_kl: Tensor  # [] Σ (s·KL)²
    ce_kl: Tensor  # [] Σ CE · s·KL


class Objective:
    """The loss of a micro-batch.

    Args:
        config: the KL term.
        model: the model in training.
        reference: the frozen model, None where `config.weight` is 0 under "sum".
        sources: names of the training sources, in the order of `Batch.sources`.
        support: [V] bool, the pieces the KL is restricted to, None for all.
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
        chunk_tokens: int | None = None,
        length: Length = "short",
    ) -> None:
        self._config = config
        self._model = model
        self._reference = reference
        self._support = support
        self._chunk_tokens = chunk_tokens
        self._length = length
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
        tokens: Tensor,
        targets: Tensor,
        cu_seqlens: Tensor,
        sources: Tensor,
        *,
        num_tokens: Tensor,
        weights: tuple[float | Tensor, float | Tensor],
    ) -> tuple[Tensor, Losses]:
        """The micro-batch's share of L, ready for `backward`, and its sums.

        Args:
            tokens: [T] int64.
            targets: [T] int64, -100 where nothing is predicted.
            cu_seqlens: [documents + 1] int32.
            sources: [T] int64, which source a token is from.
            num_tokens: [] N, over the whole step.
            weights: w_ce and w_kl.
        """
        ce_weight, kl_weight = weights
        source_weights = self._source_weights[sources]  # [T]
        hidden = self._model(tokens, cu_seqlens=cu_seqlens, length=self._length)
        with self._reference_inputs(tokens, cu_seqlens) as reference_inputs:
            loss, ce, kl = self._model.lm_head(
                hidden,
                targets=targets,
                **reference_inputs,
                ce_weight=ce_weight,
                kl_weight=kl_weight * source_weights,
                kl_direction=self._config.direction,
                kl_support=self._support,
                num_tokens=num_tokens,
                chunk_tokens=self._chunk_tokens,
            )
        weighted = source_weights * kl
        return loss, Losses(ce.sum(), kl.sum(), ce.square().sum(), weighted.square().sum(), (ce * weighted).sum())

    @contextmanager
    def _reference_inputs(self, tokens: Tensor, cu_seqlens: Tensor) -> Iterator[dict[str, Tensor]]:
        """The reference's hidden states and, gathered for as long as the block lasts, its head."""
        if self._reference is None:
            yield {}
            return
        with torch.no_grad():
            hidden = self._reference(tokens, cu_seqlens=cu_seqlens, length=self._length)
        with gathered(self._reference.lm_head) as head:
            yield {"ref_hidden": hidden, "ref_weight": head.weight.detach()}


@contextmanager
def gathered(head: Head) -> Iterator[Head]:
    """A head whose weight can be read outside its forward, sharded or not."""
    if not isinstance(head, FSDPModule):
        yield head
        return
    head.unshard()
    try:
        yield head
    finally:
        head.reshard()


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
