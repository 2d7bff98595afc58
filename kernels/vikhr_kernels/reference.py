"""The specification: every operation in the plainest PyTorch that is right in float64.

Kernels are tested against these functions, benchmarks compare with them, and the model runs on them
where there is no GPU. Statistics (means, softmax) are computed in float32, or in float64 for float64 inputs.
"""

import itertools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation (Zhang & Sennrich 2019), `x / sqrt(mean(x²) + eps) * weight`.

    Args:
        x: [..., H].
        weight: [H].
        eps: added to the mean square.

    Returns:
        [..., H] in the dtype of `x`; the normalised value is rounded to it before the weight, as Mistral does.
    """
    wide = x.to(_accumulation_dtype(x.dtype))
    normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normalised.to(x.dtype)


def rope(q: Tensor, k: Tensor, positions: Tensor, theta: float) -> tuple[Tensor, Tensor]:
    """Rotary position embedding (Su et al. 2021) in the half-split layout of Llama and Mistral.

    Args:
        q: [T, Hq, D] queries.
        k: [T, Hkv, D] keys.
        positions: [T] integer position of each token inside its document.
        theta: base of the geometric progression of wavelengths.

    Returns:
        The rotated q and k, shapes and dtypes kept.
    """
    half = q.shape[-1] // 2
    wide = _accumulation_dtype(q.dtype)
    exponents = torch.arange(half, dtype=wide, device=q.device) / half
    angles = positions.to(wide)[:, None] * (1 / theta**exponents)  # [T, D/2], rounded as transformers does
    cos, sin = (f(angles).to(q.dtype)[:, None, :] for f in (torch.cos, torch.sin))  # [T, 1, D/2]

    def rotate(x: Tensor) -> Tensor:
        first, second = x[..., :half], x[..., half:]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    return rotate(q), rotate(k)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up` (Shazeer 2020), elementwise over equal shapes."""
    return F.silu(gate) * up


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    window: int | None = None,
    softmax_scale: float | None = None,
) -> Tensor:
    """Causal grouped-query attention over packed documents, with an optional sliding window.

    Token i sees token j of its own document when `0 <= i - j < window`.

    Args:
        q: [T, Hq, D] packed queries, or [B, S, Hq, D] with one document a row.
        k: [T, Hkv, D] or [B, S, Hkv, D]; Hkv divides Hq, consecutive query heads share a key/value head.
        v: as k.
        cu_seqlens: [documents + 1] int32 cumulative lengths of packed documents, from 0 to T; None is one document.
        window: number of visible positions, the token itself included; None is unlimited.
        softmax_scale: None is 1 / sqrt(D).

    Returns:
        The attended values, in the shape of q.
    """
    if q.dim() == 4:
        return torch.stack(
            [flash_attention(*row, window=window, softmax_scale=softmax_scale) for row in zip(q, k, v, strict=True)]
        )
    scale = 1 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale
    group = q.shape[1] // k.shape[1]
    bounds = [0, q.shape[0]] if cu_seqlens is None else cu_seqlens.tolist()
    outputs = []
    for start, end in itertools.pairwise(bounds):
        queries = q[start:end].transpose(0, 1)  # [Hq, L, D]
        keys, values = (x[start:end].transpose(0, 1).repeat_interleave(group, dim=0) for x in (k, v))
        distance = torch.arange(end - start, device=q.device)
        distance = distance[:, None] - distance[None, :]  # [L, L], i - j
        visible = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        scores = (queries @ keys.transpose(1, 2)).to(_accumulation_dtype(q.dtype)) * scale
        probabilities = scores.masked_fill(~visible, -torch.inf).softmax(-1).to(q.dtype)
        outputs.append((probabilities @ values).transpose(0, 1))
    return torch.cat(outputs)


def linear_ce_kl(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ref_hidden: Tensor | None = None,
    ref_weight: Tensor | None = None,
    *,
    ce_weight: float | Tensor = 1.0,
    kl_weight: float | Tensor = 1.0,
    kl_direction: Literal["reverse", "forward"] = "reverse",
    kl_support: Tensor | None = None,
    token_weights: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Literal["sum", "mean", "none"] = "mean",
    num_tokens: int | Tensor | None = None,
    z_loss: float = 0.0,
    chunk_tokens: int | None = None,  # noqa: ARG001  the chunked kernel's; the result doesn't depend on it
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy plus KL divergence to a reference model, from hidden states (equation 1 of the paper).

    With logits z = hidden · weightᵀ, reference logits r, p = softmax(z), q = softmax(r), token t costs
    `token_weights[t] · (ce_weight · CE + kl_weight · KL + z_loss · logsumexp(z)²)`, nothing where it is ignored.

    Args:
        hidden: [N, H] student hidden states.
        weight: [V, H] student LM head.
        targets: [N] int64 ids in [0, V), or `ignore_index`.
        ref_hidden: [N, H'] reference hidden states; None leaves the KL out.
        ref_weight: [V, H'] reference LM head.
        ce_weight: factor of the cross-entropy: a number, or a tensor of shape [] or [N].
        kl_weight: factor of the KL divergence, likewise.
        kl_direction: "reverse" is KL(p‖q), the paper's; "forward" is KL(q‖p).
        kl_support: [V] bool; both distributions are restricted to it and renormalised. None is the whole vocabulary.
        token_weights: [N] further factor of each token.
        ignore_index: target of the tokens that don't count.
        reduction: "sum"; "mean" over `num_tokens`; "none" for the [N] costs.
        num_tokens: divisor of "mean", the global count under gradient accumulation or several ranks;
            None counts the tokens of this call that aren't ignored.
        z_loss: factor of the squared log-partition function.
        chunk_tokens: tokens whose logits exist at once in the kernel.

    Returns:
        The loss ([] or, for "none", [N]), and the detached, unweighted CE and KL of each token ([N], 0 where
        ignored), in float32 or, for float64 inputs, in float64.
    """
    wide = _accumulation_dtype(hidden.dtype)
    kept = targets != ignore_index
    log_p = (hidden @ weight.T).to(wide)
    log_partition = log_p.logsumexp(-1)
    ce = (log_partition - log_p.gather(-1, targets.where(kept, 0)[:, None]).squeeze(-1)).where(kept, 0)
    kl = torch.zeros_like(ce)
    if ref_hidden is not None and ref_weight is not None:
        log_q = (ref_hidden @ ref_weight.T).to(wide)
        if kl_support is not None:
            log_p, log_q = log_p[:, kl_support], log_q[:, kl_support]
        log_p, log_q = log_p.log_softmax(-1), log_q.log_softmax(-1)
        if kl_direction == "forward":
            log_p, log_q = log_q, log_p
        kl = (log_p.exp() * (log_p - log_q)).sum(-1).where(kept, 0)
    loss = ce_weight * ce + kl_weight * kl + z_loss * log_partition.square().where(kept, 0)
    if token_weights is not None:
        loss = loss * token_weights
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        loss = loss / (kept.sum().clamp(min=1) if num_tokens is None else num_tokens)
    return loss, ce.detach(), kl.detach()
