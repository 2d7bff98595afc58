"""The loss head: CE + KL over chunks of tokens, so that [N, V] logits never exist at once.

Per chunk two GEMMs make the logits, one row step turns them into losses and their gradient, and two GEMMs make
dHidden and add into dWeight. Gradients are thus complete when the forward pass ends; backward only scales them.
V/H is about 10 here: recomputing logits would cost more than a chunk's memory is worth.
"""

from typing import Any, Literal

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 2048 * 40960  # logits of a default chunk: 320 MiB in float32
_SERIES_LIMIT = 1.0  # |log p - log q| under which p - q is taken by expm1


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
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.linear_ce_kl` with its arguments and results, in chunks and with a handwritten backward.

    "sum" and "mean" compute the gradients in the forward pass; "none" recomputes in the backward pass, where its
    upstream gradient is known. `chunk_tokens=None` bounds a chunk's logits to 320 MiB in float32.

    Raises:
        ValueError: an argument's shape or dtype doesn't fit, or (on a CPU) a target is outside the vocabulary.
    """
    _check(hidden, weight, targets, ref_hidden, ref_weight, kl_support, ignore_index)
    wide = _accumulation_dtype(hidden)
    kept = targets != ignore_index
    coefficient = kept.to(wide) if token_weights is None else kept * token_weights.to(wide)  # [N]
    if reduction == "mean":
        coefficient = coefficient / (kept.sum().clamp(min=1) if num_tokens is None else num_tokens)
    ce_coefficient, kl_coefficient, z_coefficient = ((coefficient * w).to(wide) for w in (ce_weight, kl_weight, z_loss))
    if chunk_tokens is None:
        chunk_tokens = max(128, _CHUNK_ELEMENTS // weight.shape[0] // 128 * 128)
    wants_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    total, losses, ce, kl, _, _ = _chunked_loss(
        hidden,
        weight,
        targets.where(kept, 0),
        ref_hidden,
        ref_weight,
        ce_coefficient,
        kl_coefficient,
        z_coefficient,
        kl_support,
        kl_forward=kl_direction == "forward",
        chunk_tokens=chunk_tokens,
        with_gradient=wants_gradient and reduction != "none",
    )
    return losses if reduction == "none" else total, ce.detach() * kept, kl.detach() * kept


def _accumulation_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _check(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ref_hidden: Tensor | None,
    ref_weight: Tensor | None,
    kl_support: Tensor | None,
    ignore_index: int,
) -> None:
    def require(condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(f"linear_ce_kl: {message}")

    require(hidden.dim() == 2, f"hidden must be [N, H], not {list(hidden.shape)}")
    require(
        weight.dim() == 2 and weight.shape[1] == hidden.shape[1],
        f"weight must be [V, {hidden.shape[1]}] to fit hidden, not {list(weight.shape)}",
    )
    require(weight.dtype == hidden.dtype, f"weight is {weight.dtype}, hidden is {hidden.dtype}")
    require(
        targets.shape == hidden.shape[:1] and targets.dtype == torch.int64,
        f"targets must be int64 [{hidden.shape[0]}], not {targets.dtype} {list(targets.shape)}",
    )
    require((ref_hidden is None) == (ref_weight is None), "ref_hidden and ref_weight go together")
    if ref_hidden is not None and ref_weight is not None:
        require(
            ref_hidden.dim() == 2 and ref_hidden.shape[0] == hidden.shape[0],
            f"ref_hidden must be [{hidden.shape[0]}, H'], not {list(ref_hidden.shape)}",
        )
        require(
            ref_weight.shape == (weight.shape[0], ref_hidden.shape[1]),
            f"ref_weight must be {[weight.shape[0], ref_hidden.shape[1]]}, not {list(ref_weight.shape)}",
        )
        require(
            ref_hidden.dtype == ref_weight.dtype == hidden.dtype,
            f"ref_hidden is {ref_hidden.dtype}, ref_weight {ref_weight.dtype}, hidden {hidden.dtype}",
        )
    if kl_support is not None:
        require(
            kl_support.shape == weight.shape[:1] and kl_support.dtype == torch.bool,
            f"kl_support must be bool [{weight.shape[0]}], not {kl_support.dtype} {list(kl_support.shape)}",
        )
    if not targets.is_cuda and targets.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = ((targets < 0) | (targets >= weight.shape[0])) & (targets != ignore_index)
        if outside.any():
            position = int(outside.nonzero()[0])
            require(False, f"targets[{position}] is {int(targets[position])}, outside [0, {weight.shape[0]})")


def eager_row_step(
    logits: Tensor,
    ref_logits: Tensor | None,
    targets: Tensor,
    ce_coefficient: Tensor,
    kl_coefficient: Tensor,
    z_coefficient: Tensor,
    kl_support: Tensor | None,
    kl_forward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses of a chunk of tokens and the gradient of their weighted sum by the logits.

    Args:
        logits: [n, V] student logits, float32 or float64; overwritten.
        ref_logits: [n, V] reference logits, or None.
        targets: [n] ids.
        ce_coefficient: [n] factor of each token's CE in the weighted sum.
        kl_coefficient: [n] factor of its KL.
        z_coefficient: [n] factor of its squared log-partition function.
        kl_support: [V] bool or None.
        kl_forward: KL(q‖p) instead of KL(p‖q).

    Returns:
        CE [n], KL [n], log-partition function [n], gradient [n, V].
    """
    largest, log_sum = _log_partition(logits)
    log_partition = largest + log_sum  # [n, 1]
    ce = (largest - logits.gather(-1, targets[:, None])) + log_sum  # [n, 1]
    kl = torch.zeros_like(ce)
    if ref_logits is not None:
        kl, kl_gradient = _divergence(logits, ref_logits, kl_support, kl_forward)
    gradient = logits.sub_(largest).sub_(log_sum).exp_()  # p
    gradient.mul_(ce_coefficient[:, None] + 2 * z_coefficient[:, None] * log_partition)
    if ref_logits is not None:
        gradient.addcmul_(kl_gradient, kl_coefficient[:, None])
    gradient.scatter_add_(-1, targets[:, None], -ce_coefficient[:, None])
    return ce.squeeze(-1), kl.squeeze(-1), log_partition.squeeze(-1), gradient


def _log_partition(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The log of a softmax's denominator as two summands [n, 1]: their sum would lose the smaller one's digits."""
    largest = logits.amax(-1, keepdim=True)
    return largest, (logits - largest).exp_().sum(-1, keepdim=True).log_()


def _divergence(logits: Tensor, ref_logits: Tensor, support: Tensor | None, forward: bool) -> tuple[Tensor, Tensor]:
    """The KL divergence [n, 1] of each token and its gradient [n, V] by the logits.

    With d = log p - log q, the reverse KL is summed as p·d - (p - q): the same value, because both distributions sum
    to 1, but every summand is non-negative and of second order in d. A rounding error of a log-partition function
    shifts all d alike; here it cancels, in the plain sum of p·d it would drown a small KL.
    """
    if support is not None:
        logits, ref_logits = (x.masked_fill(~support, -torch.inf) for x in (logits, ref_logits))
    largest, log_sum = _log_partition(logits)
    ref_largest, ref_log_sum = _log_partition(ref_logits)
    log_ratio = (logits - ref_logits).sub_((largest - ref_largest) + (log_sum - ref_log_sum))  # d
    if support is not None:
        log_ratio.masked_fill_(~support, 0)  # where -inf - -inf made NaN
    p = (logits - largest).sub_(log_sum).exp_()
    q = (ref_logits - ref_largest).sub_(ref_log_sum).exp_()
    excess = torch.where(log_ratio.abs() < _SERIES_LIMIT, -p * torch.expm1(-log_ratio), p - q)  # p - q, no cancellation
    if forward:
        return (-q * log_ratio).add_(excess).sum(-1, keepdim=True), excess
    weighted = p * log_ratio
    mean_log_ratio = weighted.sum(-1, keepdim=True)  # makes the gradient sum to 0
    return weighted.sub_(excess).sum(-1, keepdim=True), p.mul_(log_ratio.sub_(mean_log_ratio))


def _gemm_wide(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b`, accumulated and returned in the accumulation dtype."""
    wide = _accumulation_dtype(a)
    if a.dtype == wide:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=wide)
    return a.to(wide) @ b.to(wide)


@torch.library.custom_op("vikhr::linear_ce_kl", mutates_args=())
def _chunked_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ref_hidden: Tensor | None,
    ref_weight: Tensor | None,
    ce_coefficient: Tensor,
    kl_coefficient: Tensor,
    z_coefficient: Tensor,
    kl_support: Tensor | None,
    kl_forward: bool,
    chunk_tokens: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Total weighted loss [], weighted losses [N], CE [N], KL [N], and the total's dHidden and dWeight (or empty)."""
    count, wide = hidden.shape[0], _accumulation_dtype(hidden)
    losses, ce, kl = (torch.zeros(count, dtype=wide, device=hidden.device) for _ in range(3))
    d_hidden = torch.empty_like(hidden if with_gradient else hidden[:0])
    d_weight = torch.zeros_like(weight if with_gradient else weight[:0], dtype=wide)
    for start in range(0, count, chunk_tokens):
        rows = slice(start, min(start + chunk_tokens, count))
        logits = _gemm_wide(hidden[rows], weight.T)  # [n, V]
        ref_logits = None
        if ref_hidden is not None and ref_weight is not None:
            ref_logits = _gemm_wide(ref_hidden[rows], ref_weight.T)
        coefficients = (ce_coefficient[rows], kl_coefficient[rows], z_coefficient[rows])
        ce[rows], kl[rows], log_partition, gradient = eager_row_step(
            logits, ref_logits, targets[rows], *coefficients, kl_support, kl_forward
        )
        values = (ce[rows], kl[rows], log_partition.square())
        losses[rows] = sum(factor * value for factor, value in zip(coefficients, values, strict=True))
        if with_gradient:
            gradient = gradient.to(hidden.dtype)
            torch.mm(gradient, weight, out=d_hidden[rows])
            d_weight += _gemm_wide(gradient.T, hidden[rows])  # a sum in bf16 would lose small contributions
    return losses.sum(), losses, ce, kl, d_hidden, d_weight


@_chunked_loss.register_fake
def _(hidden: Tensor, weight: Tensor, *rest: object) -> tuple[Tensor, ...]:
    with_gradient = rest[-1]
    each = hidden.new_empty(hidden.shape[:1], dtype=_accumulation_dtype(hidden))
    d_hidden = torch.empty_like(hidden if with_gradient else hidden[:0])
    d_weight = torch.empty_like(weight if with_gradient else weight[:0], dtype=each.dtype)
    return each.new_empty(()), each, torch.empty_like(each), torch.empty_like(each), d_hidden, d_weight


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.deferred = not inputs[-1]
    if ctx.deferred:
        ctx.save_for_backward(*inputs[:9])
        ctx.settings = inputs[9:-1]
    else:
        ctx.weight_dtype = inputs[1].dtype
        ctx.save_for_backward(*output[4:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_total: Tensor | None, d_losses: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    without_gradient = [None] * 10
    if not ctx.deferred:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * d_total, (d_weight * d_total).to(ctx.weight_dtype), *without_gradient
    *head, ce_coefficient, kl_coefficient, z_coefficient, support = ctx.saved_tensors
    coefficients = (c * d_losses for c in (ce_coefficient, kl_coefficient, z_coefficient))
    *_, d_hidden, d_weight = _chunked_loss(*head, *coefficients, support, *ctx.settings, True)
    return d_hidden, d_weight.to(head[1].dtype), *without_gradient


_chunked_loss.register_autograd(_backward, setup_context=_setup_context)
