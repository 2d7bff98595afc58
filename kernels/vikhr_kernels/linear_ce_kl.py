"""The loss head: CE + KL over chunks of tokens, so that [N, V] logits never exist at once.

Per chunk two GEMMs make the logits, one row step turns them into losses and their gradient, and two GEMMs make
dHidden and add into dWeight. Gradients are thus complete when the forward pass ends; backward only scales them.
V/H is about 10 here: recomputing logits would cost more than a chunk's memory is worth.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vikhr_kernels.arguments import require, require_like, require_shape
from vikhr_kernels.buckets import Buckets, Partition
from vikhr_kernels.dispatch import custom_op, runs_on_triton
from vikhr_kernels.gradient_sum import GradientSum, multiply_into
from vikhr_kernels.reference import accumulation_dtype, loss_factors, masked_product
from vikhr_kernels.scale import scale_into

# Both models' logits of a default chunk, at most. On a GPU they are all that the kernels hold beyond inputs and
# gradients; 8,192 tokens and 40,000 pieces fit, which took 17.7 ms in one chunk, 18.5 in two, and 19.8 in 3,072, 3,072
# and 2,048 tokens (H200). The eager row step makes several more tensors of that size.
_CHUNK_BYTES = {"cuda": 2560 << 20, "cpu": 320 << 20}
# Of the logits that the eager row step looks at at once: to stay in a CPU's cache, to take little of a GPU's memory.
_BLOCK_BYTES = {"cuda": 256 << 20, "cpu": 2 << 20}


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
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.linear_ce_kl` with its arguments and results, in chunks and with a handwritten backward.

    "sum" and "mean" compute the gradients in the forward pass; "none" recomputes in the backward pass, where its
    upstream gradient is known. `chunk_tokens=None` takes `default_chunk`.

    Gradients reach `hidden` and `weight` alone, never the reference or any factor.

    Raises:
        ValueError: an argument's shape, dtype or device doesn't fit, or (on a CPU) a target is outside the vocabulary;
            it is named. On a GPU such a target fails an assertion there: looking at it here would wait for the GPU.
    """
    _check(hidden, weight, targets, ref_hidden, ref_weight, kl_support, kl_buckets, token_weights, ignore_index)
    _check_factors(hidden, ce_weight=ce_weight, kl_weight=kl_weight, num_tokens=num_tokens)
    require(kl_direction in ("reverse", "forward"), f"linear_ce_kl: kl_direction is {kl_direction!r}")
    require(reduction in ("sum", "mean", "none"), f"linear_ce_kl: reduction is {reduction!r}")
    require(chunk_tokens is None or chunk_tokens > 0, f"linear_ce_kl: chunk_tokens is {chunk_tokens}")
    wide = accumulation_dtype(hidden.dtype)
    kept = targets != ignore_index
    weights = (ce_weight, kl_weight, z_loss)
    coefficients = loss_factors(kept, weights, token_weights, reduction, num_tokens, wide)
    if chunk_tokens is None:
        pieces = weight.shape[0] + (0 if ref_weight is None else ref_weight.shape[0])
        pieces += 0 if kl_buckets is None else 2 * kl_buckets.size
        chunk_tokens = default_chunk(hidden.shape[0], pieces * wide.itemsize, on_gpu=hidden.is_cuda)
    wants_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    total, losses, ce, kl, _, _ = _chunked_loss(
        hidden,
        weight,
        targets.where(kept, 0),
        None if ref_hidden is None else ref_hidden.detach(),
        None if ref_weight is None else ref_weight.detach(),
        *(coefficient.detach() for coefficient in coefficients),
        None if kl_support is None else kl_support.contiguous(),
        [] if kl_buckets is None else [*kl_buckets.own, *kl_buckets.ref],
        kl_forward=kl_direction == "forward",
        chunk_tokens=chunk_tokens,
        with_gradient=wants_gradient and reduction != "none",
    )
    return losses if reduction == "none" else total, ce.detach().where(kept, 0), kl.detach().where(kept, 0)


def default_chunk(tokens: int, token_bytes: int, *, on_gpu: bool) -> int:
    """Tokens of a chunk: a multiple of 128, in as few and as equal chunks as memory allows.

    Args:
        tokens: of all chunks together.
        token_bytes: of a token's logits, both models' and those of buckets.
        on_gpu: the logits of a chunk take at most 2.5 GiB, elsewhere 320 MiB; those of 128 tokens are always allowed.
    """
    most = max(128, _CHUNK_BYTES["cuda" if on_gpu else "cpu"] // token_bytes // 128 * 128)
    chunks = max(1, -(-tokens // most))
    return max(128, -(-tokens // chunks // 128) * 128)


def _check(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ref_hidden: Tensor | None,
    ref_weight: Tensor | None,
    kl_support: Tensor | None,
    kl_buckets: Buckets | None,
    token_weights: Tensor | None,
    ignore_index: int,
) -> None:
    op = "linear_ce_kl"
    require(hidden.dim() == 2, f"{op}: hidden must be [N, H], not {list(hidden.shape)}")
    count, size = hidden.shape
    require(
        weight.dim() == 2 and weight.shape[1] == size,
        f"{op}: weight must be [V, {size}] to fit hidden, not {list(weight.shape)}",
    )
    require_like(op, "weight", weight, "hidden", hidden)
    require(
        targets.shape == (count,) and targets.dtype == torch.int64 and targets.device == hidden.device,
        f"{op}: targets must be int64 [{count}] on {hidden.device}, "
        f"not {targets.dtype} {list(targets.shape)} on {targets.device}",
    )
    require((ref_hidden is None) == (ref_weight is None), f"{op}: ref_hidden and ref_weight go together")
    if ref_hidden is not None and ref_weight is not None:
        require(
            ref_hidden.dim() == 2 and ref_hidden.shape[0] == count,
            f"{op}: ref_hidden must be [{count}, H'], not {list(ref_hidden.shape)}",
        )
        ref_pieces = weight.shape[0] if kl_buckets is None else len(kl_buckets.ref.bucket)
        require_shape(op, "ref_weight", ref_weight, (ref_pieces, ref_hidden.shape[1]))
        require_like(op, "ref_hidden", ref_hidden, "hidden", hidden)
        require_like(op, "ref_weight", ref_weight, "hidden", hidden)
    if kl_support is not None:
        require(
            kl_support.shape == weight.shape[:1] and kl_support.dtype == torch.bool,
            f"{op}: kl_support must be bool [{weight.shape[0]}], not {kl_support.dtype} {list(kl_support.shape)}",
        )
        if kl_support.device.type == "cpu" and not torch.compiler.is_compiling():
            require(bool(kl_support.any()), f"{op}: kl_support holds no piece")
    if kl_buckets is not None:
        require(kl_support is None, f"{op}: kl_buckets and kl_support exclude each other")
        require(ref_hidden is not None, f"{op}: kl_buckets go with ref_hidden and ref_weight")
        require_shape(op, "kl_buckets.own.bucket", kl_buckets.own.bucket, weight.shape[:1])
        device = kl_buckets.own.bucket.device
        require(device == hidden.device, f"{op}: kl_buckets are on {device}, hidden on {hidden.device}")
    if token_weights is not None:
        require_shape(op, "token_weights", token_weights, (count,))
    for name, tensor in (("kl_support", kl_support), ("token_weights", token_weights)):
        if tensor is not None:
            require(tensor.device == hidden.device, f"{op}: {name} is on {tensor.device}, hidden on {hidden.device}")
    if targets.is_cuda:
        inside = ((targets >= 0) & (targets < weight.shape[0])) | (targets == ignore_index)
        torch._assert_async(inside.all(), f"{op}: targets has an id outside [0, {weight.shape[0]})")
    elif targets.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = ((targets < 0) | (targets >= weight.shape[0])) & (targets != ignore_index)
        if outside.any():
            position = int(outside.nonzero()[0])
            require(False, f"{op}: targets[{position}] is {int(targets[position])}, outside [0, {weight.shape[0]})")


def _check_factors(hidden: Tensor, **factors: float | Tensor | None) -> None:
    """Other shapes would broadcast the factors to [N, N], which the kernels read as if it were [N]."""
    for name, factor in factors.items():
        if isinstance(factor, Tensor):
            shapes = [()] if name == "num_tokens" else [(), hidden.shape[:1]]
            require(
                factor.shape in shapes,
                f"linear_ce_kl: {name} must be {' or '.join(str(list(s)) for s in shapes)}, not {list(factor.shape)}",
            )
            require(  # a number on the CPU is read without waiting for a GPU
                factor.device == hidden.device or (factor.dim() == 0 and factor.device.type == "cpu"),
                f"linear_ce_kl: {name} is on {factor.device}, hidden on {hidden.device}",
            )


def eager_row_step(
    logits: Tensor,
    ref_logits: Tensor | None,
    targets: Tensor,
    ce_coefficient: Tensor,
    kl_coefficient: Tensor,
    z_coefficient: Tensor,
    kl_support: Tensor | None,
    buckets: Buckets | None,
    kl_forward: bool,
    losses: Tensor,
    ce: Tensor,
    kl: Tensor,
    gradient_dtype: torch.dtype | None,
) -> Tensor:
    """Losses of a chunk of tokens and the gradient of their weighted sum by the logits.

    A term with a factor of 0 is left out of both, whatever it is: 0 times NaN would be NaN.

    Args:
        logits: [n, V] student logits, float32 or float64; overwritten.
        ref_logits: [n, V] reference logits, [n, V'] with buckets, or None.
        targets: [n] ids.
        ce_coefficient: [n] factor of each token's CE in the weighted sum.
        kl_coefficient: [n] factor of its KL.
        z_coefficient: [n] factor of its squared log-partition function.
        kl_support: [V] bool or None.
        buckets: of both vocabularies, or None.
        kl_forward: KL(q‖p) instead of KL(p‖q).
        losses: [n], filled with each token's weighted sum.
        ce: [n], filled with its CE.
        kl: [n], filled with its KL, 0 without a reference.
        gradient_dtype: dtype of the gradient; None where it isn't wanted.

    Returns:
        The gradient [n, V]; without a `gradient_dtype` what is returned means nothing.
    """
    p, largest, log_sum = _softmax(logits)
    log_partition = (largest + log_sum).squeeze(-1)
    ce.copy_(((largest - logits.gather(-1, targets[:, None])) + log_sum).squeeze(-1))
    kl.zero_()
    if ref_logits is not None and buckets is not None:
        pooled = buckets.own.pool(logits)
        divergence, pooled_gradient = _divergence(pooled, buckets.ref.pool(ref_logits), None, None, kl_forward)
        bucket = buckets.own.bucket
        kl_gradient = (logits - pooled[:, bucket]).exp_().mul_(pooled_gradient[:, bucket])  # a piece's share of its own
    elif ref_logits is not None:
        softmax = (p, largest, log_sum) if kl_support is None else None
        divergence, kl_gradient = _divergence(logits, ref_logits, softmax, kl_support, kl_forward)
    if ref_logits is not None:
        kl.copy_(divergence.squeeze(-1))
    z_slope = masked_product(2 * z_coefficient, log_partition)
    losses.copy_(masked_product(ce_coefficient, ce) + masked_product(kl_coefficient, kl))
    losses.add_(masked_product(z_slope, log_partition), alpha=0.5)  # not z · x², whose square could overflow
    if gradient_dtype is None:
        return logits
    gradient = torch.mul(p, (ce_coefficient + z_slope)[:, None], out=logits)
    if ref_logits is not None:
        _clear_rows(kl_gradient, kl_coefficient == 0)
        gradient.addcmul_(kl_gradient, kl_coefficient[:, None])
    gradient.scatter_add_(-1, targets[:, None], -ce_coefficient[:, None])
    _clear_rows(gradient, (ce_coefficient == 0) & (kl_coefficient == 0) & (z_coefficient == 0))
    return gradient.to(gradient_dtype)


def _clear_rows(x: Tensor, rows: Tensor) -> None:
    """Zeros rows [n] of x [n, V], looking at no other, for which a mask would cost three passes; a GPU waits here."""
    x.index_fill_(0, rows.nonzero().squeeze(-1), 0)


def _eager_row_steps(logits: Tensor, *arguments: Any) -> Tensor:
    """`eager_row_step` with its arguments, block by block."""
    *given, kl_support, buckets, kl_forward, losses, ce, kl, gradient_dtype = arguments
    count, row_bytes = len(logits), logits.shape[1] * logits.itemsize
    rows = max(1, _BLOCK_BYTES["cuda" if logits.is_cuda else "cpu"] // row_bytes)
    in_place = gradient_dtype in (None, logits.dtype)
    gradient = logits if in_place else torch.empty_like(logits, dtype=gradient_dtype)
    for block in (slice(start, start + rows) for start in range(0, count, rows)):
        of_block: list[Any] = [None if x is None else x[block] for x in (logits, *given)]
        of_block += [kl_support, buckets, kl_forward, losses[block], ce[block], kl[block], gradient_dtype]
        made = eager_row_step(*of_block)
        if not in_place:
            gradient[block] = made
    return gradient


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities [n, V], and the log of their denominator as two summands [n, 1], whose sum would lose digits."""
    largest = logits.amax(-1, keepdim=True)
    p = (logits - largest).exp_()
    denominator = p.sum(-1, keepdim=True)
    return p.div_(denominator), largest, denominator.log_()


def _divergence(
    logits: Tensor,
    ref_logits: Tensor,
    softmax: tuple[Tensor, Tensor, Tensor] | None,
    support: Tensor | None,
    forward: bool,
) -> tuple[Tensor, Tensor]:
    """The KL divergence [n, 1] of each token and its gradient [n, V] by the logits; `softmax` is theirs, where known.

    With d = log p - log q, the reverse KL is summed as p·d - (p - q): the same value, because both distributions sum
    to 1, but every summand is non-negative and of second order in d. A rounding error of a log-partition function
    shifts all d alike; here it cancels, in the plain sum of p·d it would drown a small KL.
    """
    if support is not None:
        logits, ref_logits = (x.masked_fill(~support, -torch.inf) for x in (logits, ref_logits))
    p, largest, log_sum = softmax or _softmax(logits)
    q, ref_largest, ref_log_sum = _softmax(ref_logits)
    log_ratio = (logits - ref_logits).sub_((largest - ref_largest) + (log_sum - ref_log_sum))  # d
    if support is not None:
        log_ratio.masked_fill_(~support, 0)  # where -inf - -inf made NaN
    # p - q without cancellation: the larger one's relative excess, with d's sign.
    excess = log_ratio.abs().neg_().expm1_().mul_(torch.maximum(p, q)).copysign_(log_ratio)
    if forward:
        return (-q * log_ratio).add_(excess).sum(-1, keepdim=True), excess
    weighted = p * log_ratio
    mean_log_ratio = weighted.sum(-1, keepdim=True)  # makes the gradient sum to 0
    return weighted.sub_(excess).sum(-1, keepdim=True), log_ratio.sub_(mean_log_ratio).mul_(p)


@custom_op("vikhr::linear_ce_kl")
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
    buckets: Sequence[Tensor],
    kl_forward: bool,
    chunk_tokens: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Total weighted loss [], weighted losses [N], CE [N], KL [N], and the total's dHidden and dWeight (or empty).

    Rows whose three coefficients are 0 have no influence but on their own CE and KL, whatever they hold. `buckets` are
    the tensors of both partitions, or none.
    """
    both = Buckets(Partition(*buckets[:4]), Partition(*buckets[4:])) if buckets else None
    count, vocabulary, wide = hidden.shape[0], weight.shape[0], accumulation_dtype(hidden.dtype)
    losses, ce, kl = (hidden.new_empty(count, dtype=wide) for _ in range(3))
    d_hidden = torch.empty(hidden.shape if with_gradient else (0, 0), dtype=hidden.dtype, device=hidden.device)
    d_weight = torch.empty(weight.shape if with_gradient else (0, 0), dtype=wide, device=hidden.device)
    if count == 0:
        return losses.sum(), losses, ce, kl, d_hidden, d_weight.zero_()
    # Made once: a chunk's results never wait beside the next one's.
    longest = min(chunk_tokens, count)
    logits_memory = hidden.new_empty(longest, vocabulary, dtype=wide)
    ref_logits_memory = None if ref_weight is None else logits_memory.new_empty(longest, ref_weight.shape[0])
    counted = ((ce_coefficient != 0) | (kl_coefficient != 0) | (z_coefficient != 0))[:, None]
    zero = hidden.new_zeros(())
    for start in range(0, count, chunk_tokens):
        rows = slice(start, min(start + chunk_tokens, count))
        logits = logits_memory[: rows.stop - start]  # [n, V]
        multiply_into(logits, hidden[rows], weight.T)
        ref_logits = None
        if ref_hidden is not None and ref_weight is not None and ref_logits_memory is not None:
            ref_logits = ref_logits_memory[: rows.stop - start]
            multiply_into(ref_logits, ref_hidden[rows], ref_weight.T)
        coefficients = (ce_coefficient[rows], kl_coefficient[rows], z_coefficient[rows])
        results = (losses[rows], ce[rows], kl[rows])
        row_step = _triton_row_step if runs_on_triton(hidden) else _eager_row_steps
        gradient = row_step(
            logits, ref_logits, targets[rows], *coefficients, kl_support, both, kl_forward, *results,
            hidden.dtype if with_gradient else None,
        )  # fmt: skip
        if with_gradient:
            # Gradients of 0 times hidden states of NaN would make all of dWeight NaN. Such rows are 0 in a copy, which
            # lies where dHidden comes next: n · H narrow elements read and written. The logits of both models, written
            # once and read twice, wide, are 60 times as many bytes where V is 10 H. To look for NaN first would read as
            # much, and wait for the GPU.
            trained = torch.where(counted[rows], hidden[rows], zero, out=d_hidden[rows])
            # In the hidden states' dtype, sums over chunks would lose small contributions.
            multiply_into(d_weight, gradient.T, trained, beta=int(start > 0))
            torch.mm(gradient, weight, out=d_hidden[rows])
    return losses.sum(), losses, ce, kl, d_hidden, d_weight


def _triton_row_step(*arguments: Any) -> Tensor:
    from vikhr_kernels.gpu.loss_rows import loss_rows

    return loss_rows(*arguments)


@_chunked_loss.register_fake
def _(hidden: Tensor, weight: Tensor, *rest: object) -> tuple[Tensor, ...]:
    with_gradient = rest[-1]
    each = hidden.new_empty(hidden.shape[:1], dtype=accumulation_dtype(hidden.dtype))
    d_hidden = hidden.new_empty(hidden.shape if with_gradient else (0, 0))
    d_weight = weight.new_empty(weight.shape if with_gradient else (0, 0), dtype=each.dtype)
    return each.new_empty(()), each, torch.empty_like(each), torch.empty_like(each), d_hidden, d_weight


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.deferred = not inputs[-1]
    ctx.sum = GradientSum.of(inputs[1])
    ctx.settings = inputs[9:-1]  # buckets among them, which no gradient reaches
    if ctx.deferred:
        ctx.save_for_backward(*inputs[:9])
    else:
        ctx.dtype = inputs[1].dtype
        ctx.save_for_backward(*output[4:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_total: Any, d_losses: Any, *_: None) -> tuple[Tensor | list[None] | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError("linear_ce_kl: its gradients can't be differentiated again (create_graph)")
    without_gradient = [*[None] * 7, [None] * len(ctx.settings[0]), *[None] * 3]
    if not ctx.deferred:
        d_hidden, d_weight = ctx.saved_tensors
        d_hidden = _scaled(d_hidden, d_total, ctx.dtype)
        if ctx.sum is not None:
            ctx.sum.add_scaled(d_weight, d_total)
            return d_hidden, None, *without_gradient
        return d_hidden, _scaled(d_weight, d_total, ctx.dtype), *without_gradient
    *head, ce_coefficient, kl_coefficient, z_coefficient, support = ctx.saved_tensors
    coefficients = (masked_product(c, d_losses) for c in (ce_coefficient, kl_coefficient, z_coefficient))
    *_, d_hidden, d_weight = _chunked_loss(*head, *coefficients, support, *ctx.settings, True)
    if ctx.sum is not None:
        ctx.sum.add(d_weight)
        return d_hidden, None, *without_gradient
    return d_hidden, d_weight.to(head[1].dtype), *without_gradient


def _scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """`x * factor` rounded once to `dtype`."""
    scaled = torch.empty_like(x, dtype=dtype)
    scale_into(scaled, x, factor, accumulate=False)
    return scaled


_chunked_loss.register_autograd(_backward, setup_context=_setup_context)
