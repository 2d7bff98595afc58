"""The specification: every operation in the plainest PyTorch that is right in float64.

Kernels are tested against these functions, benchmarks compare with them, and the model runs on them
where there is no GPU. Statistics (means, softmax) are computed in float32, or in float64 for float64 inputs.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from vikhr_kernels.buckets import Buckets, Partition
from vikhr_kernels.packed_documents import PackedDocuments


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that statistics of tensors of `dtype` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@overload
def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: None = None) -> Tensor: ...
@overload
def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> tuple[Tensor, Tensor]: ...
def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """Root-mean-square normalisation (Zhang & Sennrich 2019), `x / sqrt(mean(x²) + eps) * weight`.

    Args:
        x: [..., H].
        weight: [H].
        eps: added to the mean square.
        residual: [..., H] added to `x` before it is normalised.

    Returns:
        [..., H] in the dtype of `x`; the normalised value is rounded to it before the weight, as Mistral does.
        With a residual: that, and the sum `x + residual` that was normalised.
    """
    summed = x if residual is None else x + residual
    wide = summed.to(accumulation_dtype(x.dtype))
    normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normalised = weight * normalised.to(x.dtype)
    return normalised if residual is None else (normalised, summed)


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
    wide = accumulation_dtype(q.dtype)
    exponents = torch.arange(half, dtype=wide, device=q.device) / half
    angles = positions.to(wide)[:, None] * (1 / theta**exponents)  # [T, D/2], rounded as transformers does
    cos, sin = (f(angles).to(q.dtype)[:, None, :] for f in (torch.cos, torch.sin))  # [T, 1, D/2]

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    return rotate(q), rotate(k)


def linear(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """x [..., C] times each weight [N_i, C] transposed: [..., N_i]."""
    return tuple(F.linear(x, weight) for weight in weights)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up` (Shazeer 2020), elementwise over equal shapes [..., F]."""
    return F.silu(gate) * up


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    window: int | None = None,
    documents: PackedDocuments | None = None,
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
        documents: both of these at once, in their place.
        softmax_scale: None is 1 / sqrt(D).

    Returns:
        The attended values, in the shape of q.
    """
    if documents is not None:
        documents.require_fit(q, cu_seqlens, window)
        cu_seqlens, window = documents.cu_seqlens, documents.window
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
        scores = (queries @ keys.transpose(1, 2)).to(accumulation_dtype(q.dtype)) * scale
        hidden = ~visible(end - start, window, q.device)
        probabilities = scores.masked_fill(hidden, -torch.inf).softmax(-1).to(q.dtype)
        outputs.append((probabilities @ values).transpose(0, 1))
    return torch.cat(outputs)


def visible(length: int, window: int | None, device: torch.device) -> Tensor:
    """Which of a document's tokens see which: [L, L] bool, true where 0 <= i - j < window."""
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


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
    kl_buckets: Buckets | None = None,
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

    What is multiplied by 0 is left out, whatever it is: an ignored token, one of weight 0, a KL of weight 0 has no
    influence on the loss and the gradients, even where its hidden states hold infinity or NaN; an ignored token's own
    weights may be NaN, too. Elsewhere such values, of a weight as well, make the loss infinite or NaN; a negative
    weight subtracts.

    Args:
        hidden: [N, H] student hidden states.
        weight: [V, H] student LM head.
        targets: [N] int64 ids in [0, V), or `ignore_index`.
        ref_hidden: [N, H'] reference hidden states; None leaves the KL out.
        ref_weight: [V, H'] reference LM head; [V', H'] with buckets.
        ce_weight: factor of the cross-entropy: a number, or a tensor of shape [] or [N].
        kl_weight: factor of the KL divergence, likewise.
        kl_direction: "reverse" is KL(p‖q), the paper's; "forward" is KL(q‖p).
        kl_support: [V] bool; both distributions are restricted to it and renormalised. None is the whole vocabulary.
        kl_buckets: of the V pieces and of a reference's V' others; both distributions are summed over each, and their
            sums compared. They go without a support.
        token_weights: [N] further factor of each token.
        ignore_index: target of the tokens that don't count.
        reduction: "sum"; "mean" over `num_tokens`; "none" for the [N] costs.
        num_tokens: divisor of "mean", the global count under gradient accumulation or several ranks; None counts the
            tokens of this call that aren't ignored. Where it is 0, so are the loss and the gradients.
        z_loss: factor of the squared log-partition function.
        chunk_tokens: tokens whose logits exist at once in the kernel.

    Returns:
        The loss ([] or, for "none", [N]), and the detached, unweighted CE and KL of each token ([N], 0 where
        ignored), in float32 or, for float64 inputs, in float64.
    """
    wide = accumulation_dtype(hidden.dtype)
    kept = targets != ignore_index
    weights = (ce_weight, kl_weight, z_loss)
    ce_factor, kl_factor, z_factor = loss_factors(kept, weights, token_weights, reduction, num_tokens, wide)
    counted = ((ce_factor != 0) | (kl_factor != 0) | (z_factor != 0))[:, None]
    # Autograd multiplies a 0, too: rows that don't count give it nothing to multiply.
    logits = (hidden.where(counted, 0) @ weight.T).where(counted, (hidden @ weight.T).detach()).to(wide)
    log_partition = logits.logsumexp(-1)
    ce = (log_partition - logits.gather(-1, targets.where(kept, 0)[:, None]).squeeze(-1)).where(kept, 0)
    kl = torch.zeros_like(ce)
    if ref_hidden is not None and ref_weight is not None:
        log_p = logits.where((kl_factor != 0)[:, None], logits.detach())
        log_q = (ref_hidden @ ref_weight.T).to(wide)
        if kl_support is not None:
            log_p, log_q = log_p[:, kl_support], log_q[:, kl_support]
        if kl_buckets is not None:
            log_p, log_q = pooled(log_p, kl_buckets.own), pooled(log_q, kl_buckets.ref)
        log_p, log_q = log_p.log_softmax(-1), log_q.log_softmax(-1)
        if kl_direction == "forward":
            log_p, log_q = log_q, log_p
        kl = (log_p.exp() * (log_p - log_q)).sum(-1).where(kept, 0)
    z_term = masked_product(masked_product(z_factor, log_partition), log_partition)  # where a square could overflow
    losses = masked_product(ce_factor, ce) + masked_product(kl_factor, kl) + z_term
    return losses if reduction == "none" else losses.sum(), ce.detach(), kl.detach()


def pooled(logits: Tensor, partition: Partition) -> Tensor:
    """The log-sum-exp [n, K] of the logits [n, V] of each bucket's pieces."""
    bucket = partition.bucket.long()
    rows = logits.new_full((len(logits), len(partition.bounds) - 1), -torch.inf)
    largest = rows.scatter_reduce(1, bucket.expand_as(logits), logits.detach(), "amax")
    return largest + torch.zeros_like(rows).index_add(1, bucket, (logits - largest[:, bucket]).exp()).log()


def loss_factors(
    kept: Tensor,
    weights: Sequence[float | Tensor],
    token_weights: Tensor | None,
    reduction: str,
    num_tokens: int | Tensor | None,
    dtype: torch.dtype,
) -> list[Tensor]:
    """What each term of each token is multiplied by in `linear_ce_kl`, [N] in `dtype` for each of `weights`.

    0 where a token isn't kept or the number of tokens is 0, whatever the weights are there.
    """
    factor = kept.to(dtype) if token_weights is None else token_weights.to(dtype)
    if reduction == "mean":
        divisor = kept.sum().clamp(min=1) if num_tokens is None else num_tokens
        kept, factor = kept & (divisor != 0), factor / divisor
    return [(factor * weight).to(dtype).where(kept, 0) for weight in weights]


def masked_product(factor: Tensor, x: Tensor) -> Tensor:
    """`factor * x`, but 0 where the factor is 0: infinity or NaN times 0 would be NaN."""
    return (factor * x).where(factor != 0, 0)


@torch.no_grad()
def scale_into(out: Tensor, x: Tensor, factor: Tensor, *, accumulate: bool) -> None:
    """`x * factor` rounded once into `out`, or added to it, in place.

    Args:
        out: in the dtype of `x` or a narrower one; to be added to, float32 or float64 as `x`.
        x: of the same shape and any floating dtype; multiplied in float32 or, if float64, in float64.
        factor: [] in that dtype.
        accumulate: add to what `out` holds.
    """
    if accumulate:
        out.addcmul_(x, factor)
    else:
        torch.mul(x.to(factor.dtype), factor, out=out)


_QUIET_NAN = 0x7FC00000  # its upper half is a NaN too; other NaNs could round to another bf16


def split_master(master: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 tensor as bf16 (nearest, ties away from zero) and the signed 16-bit difference of their bits.

    `join_master` gives back the same bits, for denormals and infinities too; every NaN becomes the quiet one.
    """
    bits = master.view(torch.int32).where(master == master, _QUIET_NAN)
    upper = (bits + 0x8000) >> 16
    return upper.to(torch.int16).view(torch.bfloat16), (bits - (upper << 16)).to(torch.int16)


def join_master(parameter: Tensor, remainder: Tensor) -> Tensor:
    """The float32 tensor that `split_master` took apart."""
    return ((parameter.view(torch.int16).to(torch.int32) << 16) + remainder.to(torch.int32)).view(torch.float32)


def random_bits(count: int, tensor: int, seed: int, device: torch.device) -> Tensor:
    """32 random bits an element, [count] int64: a hash of its index, the tensor's number in a list, and a seed."""
    mask = 0xFFFFFFFF

    def mixed(x: Tensor) -> Tensor:  # every bit of 32 depends on every one (the constants are from hash-prospector)
        x = (x ^ (x >> 16)) * 0x7FEB352D & mask
        x = (x ^ (x >> 15)) * 0x846CA68B & mask
        return x ^ (x >> 16)

    key = mixed(torch.full((), (seed + tensor * 0x9E3779B9) & mask, dtype=torch.int64, device=device))
    return mixed((torch.arange(count, device=device) ^ key) & mask)


def round_stochastically(x: Tensor, random: Tensor) -> Tensor:
    """Float32 to one of the two bf16 around it, to the nearer one as much more often; right on average.

    Args:
        x: float32 of any shape.
        random: integers from 0 to 65535 of that shape.
    """
    bits = x.view(torch.int32).where(x == x, _QUIET_NAN)
    return ((bits + random.to(torch.int32)) >> 16).to(torch.int16).view(torch.bfloat16)


def adamw_factors(step: int, learning_rate: float, betas: tuple[float, float], weight_decay: float) -> dict[str, float]:
    """The numbers of one AdamW step that are the same for all elements, in Python's float64."""
    beta1, beta2 = betas
    return {
        "decay": 1 - learning_rate * weight_decay,
        "first_rate": 1 - beta1,
        "second_decay": beta2,
        "second_rate": 1 - beta2,
        "second_correction": (1 - beta2**step) ** 0.5,
        "step_size": -(learning_rate / (1 - beta1**step)),
    }


@torch.no_grad()
def adamw(
    parameters: Sequence[Tensor],
    remainders: Sequence[Tensor] | None,
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    *,
    step: int,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    gradient_scale: float | Tensor = 1.0,
    rounding_seed: int = 0,
) -> None:
    """One AdamW step (Loshchilov & Hutter 2019) in place, with the operations of `torch.optim.AdamW` in their order.

    Every operation is rounded by itself; PyTorch's own fuse some multiplications with the addition after them, on a
    CPU and on a GPU not the same ones.

    Args:
        parameters: bf16 halves of the masters; without remainders, the float32 or float64 masters themselves.
        remainders: int16 halves of the masters, see `split_master`; or None.
        gradients: of any floating dtype.
        first_moments: running means of the gradients, in the masters' dtype; or in bf16, rounded stochastically: a
            mean that changes by less than half a unit would stand still.
        second_moments: running means of their squares, likewise.
        step: number of this step, from 1.
        learning_rate: of this step.
        betas: decay of the first and the second moments.
        eps: added to the root of the second moment.
        weight_decay: share of a parameter taken off it a unit of learning rate.
        gradient_scale: factor of the gradients (clipping), a number or a scalar tensor in the masters' dtype.
        rounding_seed: of bf16 moments' rounding, from 0 to 2^31 - 1; another one each step, each shard.
    """
    factors = adamw_factors(step, learning_rate, betas, weight_decay)
    for i, (parameter, gradient, first_moment, second_moment) in enumerate(
        zip(parameters, gradients, first_moments, second_moments, strict=True)
    ):
        master = parameter if remainders is None else join_master(parameter, remainders[i])
        scaled = gradient.to(master.dtype) * gradient_scale
        first, second = first_moment.to(master.dtype), second_moment.to(master.dtype)
        first = first + (scaled - first) * factors["first_rate"]
        second = second * factors["second_decay"] + scaled * factors["second_rate"] * scaled
        # A tensor on the device: PyTorch divides by a number by multiplying with its rounded inverse on a GPU.
        correction = torch.full((), factors["second_correction"], dtype=master.dtype, device=master.device)
        # By way of float64 the root is correctly rounded: on a CPU, vector libraries' float32 roots aren't.
        root = second.double().sqrt().to(master.dtype) / correction + eps
        master = master * factors["decay"] + first * factors["step_size"] / root
        if remainders is None:
            parameter.copy_(master)
        else:
            upper, remainder = split_master(master)
            parameter.copy_(upper)
            remainders[i].copy_(remainder)
        if first_moment.dtype != master.dtype:
            random = random_bits(master.numel(), i, rounding_seed, master.device).view(master.shape)
            first = round_stochastically(first, random & 0xFFFF)
            second = round_stochastically(second, random >> 16)
        first_moment.copy_(first)
        second_moment.copy_(second)
