# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: the row step of the loss head, from logits to losses and their gradient.

The first pass over a row gathers both softmaxes' statistics, the second makes the gradient and sums the KL. It walks
backwards, over what the first pass left in the cache, and writes the gradient over the logits' own memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vikhr_kernels import dispatch
from vikhr_kernels.buckets import Buckets
from vikhr_kernels.gpu.pool_rows import LOWEST, pool_rows

_SERIES_LIMIT = tl.constexpr(1.0)


@triton.jit
def _observe(b_x, b_largest, b_sum):
    """Takes x into running sums of exp(x - largest): new largest, factor of what was summed so far, term of x.

    One of factor and term is 1, the other is the one exponential: half of what rescaling at each step costs.
    """
    b_exponential = tl.exp(-tl.abs(b_x - b_largest))
    grows = b_x > b_largest
    b_factor = tl.where(grows, b_exponential, 1.0)
    b_term = tl.where(grows, 1.0, b_exponential)
    return tl.maximum(b_x, b_largest), b_factor, b_term, b_sum * b_factor + b_term


@triton.jit
def _exponential_remainder(b_x):
    """exp(-x) - 1 + x for |x| < 1 by its series (Taylor's, to x¹²): no cancellation, so it keeps a small x's digits."""
    b_sum = 1 / 479001600 - b_x * (1 / 6227020800)
    b_sum = 1 / 39916800 - b_x * b_sum
    b_sum = 1 / 3628800 - b_x * b_sum
    b_sum = 1 / 362880 - b_x * b_sum
    b_sum = 1 / 40320 - b_x * b_sum
    b_sum = 1 / 5040 - b_x * b_sum
    b_sum = 1 / 720 - b_x * b_sum
    b_sum = 1 / 120 - b_x * b_sum
    b_sum = 1 / 24 - b_x * b_sum
    b_sum = 1 / 6 - b_x * b_sum
    b_sum = 1 / 2 - b_x * b_sum
    return b_x * b_x * b_sum


@triton.jit
def _masked_product(factor, x):
    """factor * x, but 0 where the factor is 0: infinity or NaN times 0 would be NaN."""
    return tl.where(factor != 0, factor * x, 0.0)


@triton.jit
def _load_logits(p_logits, o_v, m_v):
    return tl.load(p_logits + o_v, mask=m_v, other=LOWEST)


@triton.jit
def loss_rows_kernel(
    p_logits,
    p_ref_logits,
    p_gradient,
    p_support,
    p_targets,
    p_ce_coefficient,
    p_kl_coefficient,
    p_z_coefficient,
    p_losses,
    p_ce,
    p_kl,
    p_bucket,
    p_pooled,
    p_pooled_gradient,
    stride_gradient,
    V,
    K,
    HAS_REFERENCE: tl.constexpr,
    HAS_SUPPORT: tl.constexpr,
    HAS_BUCKETS: tl.constexpr,
    KL_FORWARD: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of V logits a program. `p_gradient` may lie over the logits: at their place or in their upper half.

    z are the student's logits, r the reference's, p and q their softmaxes (over the support where one is given) and
    d = log p - log q. With buckets, the KL's gradient by their K logits is given instead of a reference, times its
    coefficient, and each piece takes its share. Statistics are kept for each position of the block and joined at the
    end of the pass. What is multiplied by a coefficient of 0 may be NaN: it is selected away.
    """
    i_row = tl.program_id(0).to(tl.int64)
    p_logits += i_row * V
    p_ref_logits += i_row * V
    p_gradient += i_row * stride_gradient
    p_pooled += i_row * K
    p_pooled_gradient += i_row * K
    o_block = tl.arange(0, BLOCK)
    blocks = tl.cdiv(V, BLOCK)

    b_largest = tl.full([BLOCK], LOWEST, tl.float32)  # of z, over the whole vocabulary
    b_sum = tl.zeros([BLOCK], tl.float32)
    b_p_largest = tl.full([BLOCK], LOWEST, tl.float32)  # of z, over the support
    b_p_sum = tl.zeros([BLOCK], tl.float32)
    b_q_largest = tl.full([BLOCK], LOWEST, tl.float32)  # of r, over the support
    b_q_sum = tl.zeros([BLOCK], tl.float32)
    b_weighted = tl.zeros([BLOCK], tl.float32)  # of exp(z) * (z - r), over the support
    if ONE_BLOCK:  # the row stays in registers from the first pass to the second
        b_z = _load_logits(p_logits, o_block, o_block < V)
        if HAS_REFERENCE:
            b_r = _load_logits(p_ref_logits, o_block, o_block < V)
    for i_block in range(blocks):
        o_v = i_block * BLOCK + o_block
        m_v = o_v < V
        if not ONE_BLOCK:
            b_z = _load_logits(p_logits, o_v, m_v)
            if HAS_REFERENCE:
                b_r = _load_logits(p_ref_logits, o_v, m_v)
        if HAS_REFERENCE:
            b_kept_z, b_kept_r = b_z, b_r
            if HAS_SUPPORT:
                b_largest, _, _, b_sum = _observe(b_z, b_largest, b_sum)
                m_support = tl.load(p_support + o_v, mask=m_v, other=0) != 0
                b_kept_z, b_kept_r = tl.where(m_support, b_z, LOWEST), tl.where(m_support, b_r, LOWEST)
            b_p_largest, b_factor, b_term, b_p_sum = _observe(b_kept_z, b_p_largest, b_p_sum)
            b_weighted = b_weighted * b_factor + b_term * (b_kept_z - b_kept_r)
            b_q_largest, _, _, b_q_sum = _observe(b_kept_r, b_q_largest, b_q_sum)
        else:
            b_largest, _, _, b_sum = _observe(b_z, b_largest, b_sum)

    # A log-partition function stays two summands, largest and logarithm: their sum would lose the latter's digits.
    mean_difference = 0.0  # of z - r under p
    if HAS_REFERENCE:
        p_largest = tl.max(b_p_largest, 0)
        b_scale = tl.exp(b_p_largest - p_largest)
        p_sum = tl.sum(b_p_sum * b_scale, 0)
        mean_difference = tl.sum(b_weighted * b_scale, 0) / p_sum
        q_largest = tl.max(b_q_largest, 0)
        q_sum = tl.sum(b_q_sum * tl.exp(b_q_largest - q_largest), 0)
        p_share, q_share = 1 / p_sum, 1 / q_sum
        shift = (p_largest - q_largest) + (tl.log(p_sum) - tl.log(q_sum))  # z - r - d
    if HAS_REFERENCE and not HAS_SUPPORT:
        largest = p_largest
        total = p_sum
    else:
        largest = tl.max(b_largest, 0)
        total = tl.sum(b_sum * tl.exp(b_largest - largest), 0)

    target = tl.load(p_targets + i_row)
    ce_coefficient = tl.load(p_ce_coefficient + i_row)
    kl_coefficient = tl.load(p_kl_coefficient + i_row)
    z_coefficient = tl.load(p_z_coefficient + i_row)
    log_partition = largest + tl.log(total)
    ce = (largest - tl.load(p_logits + target)) + tl.log(total)
    z_slope = _masked_product(2 * z_coefficient, log_partition)
    share = 1 / total
    has_kl = kl_coefficient != 0
    counts = (ce_coefficient != 0) | has_kl | (z_coefficient != 0)

    b_kl = tl.zeros([BLOCK], tl.float32)
    if HAS_REFERENCE or WITH_GRADIENT:
        for i_step in range(blocks):
            o_v = (blocks - 1 - i_step) * BLOCK + o_block
            m_v = o_v < V
            if not ONE_BLOCK:
                b_z = _load_logits(p_logits, o_v, m_v)
                if HAS_REFERENCE:
                    b_r = _load_logits(p_ref_logits, o_v, m_v)
            b_softmax = tl.exp(b_z - largest) * share
            # The target's p - 1 first, in float32: it would drown in what else a narrow dtype stores there.
            b_gradient = tl.where(o_v == target, b_softmax - 1, b_softmax) * ce_coefficient + b_softmax * z_slope
            if HAS_REFERENCE:
                m_support = m_v
                if HAS_SUPPORT:
                    m_support = tl.load(p_support + o_v, mask=m_v, other=0) != 0
                b_p = tl.where(m_support, tl.exp(b_z - p_largest) * p_share, 0.0)
                b_q = tl.where(m_support, tl.exp(b_r - q_largest) * q_share, 0.0)
                b_difference = tl.where(m_support, b_z - b_r, shift)
                b_log_ratio = b_difference - shift  # d
                # KL(p‖q) as the sum of p * d - (p - q), every summand of which is >= 0 and of second order in d: an
                # error of `shift`, common to all d, cancels instead of drowning a small KL.
                if KL_FORWARD:
                    b_log_ratio = -b_log_ratio
                    b_p, b_q = b_q, b_p
                small = tl.abs(b_log_ratio) < _SERIES_LIMIT
                b_remainder = b_p * _exponential_remainder(tl.where(small, b_log_ratio, 0.0))
                b_kl += tl.where(small, b_remainder, b_p * (b_log_ratio - 1) + b_q)
                if KL_FORWARD:
                    # p - q: here b_p holds q, and b_remainder q * (exp(d) - 1 - d)
                    b_kl_gradient = tl.where(small, b_remainder - b_p * b_log_ratio, b_q - b_p)
                else:
                    b_kl_gradient = b_p * (b_difference - mean_difference)
                b_gradient = tl.where(has_kl, b_gradient + kl_coefficient * b_kl_gradient, b_gradient)
            if HAS_BUCKETS and has_kl:
                o_k = tl.load(p_bucket + o_v, mask=m_v, other=0)
                b_share = tl.exp(b_z - tl.load(p_pooled + o_k))
                b_gradient += b_share * tl.load(p_pooled_gradient + o_k)
            if WITH_GRADIENT:
                b_gradient = tl.where(counts, b_gradient, 0.0)
                tl.debug_barrier()  # every warp has read this block, and the target's logit, before one overwrites it
                tl.store(p_gradient + o_v, b_gradient.to(p_gradient.dtype.element_ty), mask=m_v)

    kl = tl.sum(b_kl, 0)
    tl.store(p_ce + i_row, ce)
    tl.store(p_kl + i_row, kl)
    loss = _masked_product(ce_coefficient, ce) + _masked_product(kl_coefficient, kl)
    tl.store(p_losses + i_row, loss + _masked_product(z_slope, log_partition) / 2)


def loss_rows(
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
    """The kernel's `eager_row_step`: fills losses, ce and kl [n], and returns the gradient [n, V].

    Args:
        logits: [n, V] float32, contiguous; its memory becomes the gradient's.
        ref_logits: likewise, kept; [n, V'] with buckets; or None.
        targets: [n] int64 ids.
        ce_coefficient: [n] float32 factor of each token's CE.
        kl_coefficient: of its KL.
        z_coefficient: of its squared log-partition function.
        kl_support: [V] bool or None.
        buckets: of both vocabularies, or None.
        kl_forward: KL(q‖p) instead of KL(p‖q).
        losses: [n] float32, the weighted sums.
        ce: [n] float32.
        kl: [n] float32.
        gradient_dtype: dtype of the gradient; None leaves it out, and what is returned means nothing.
    """
    coefficients = (ce_coefficient, kl_coefficient, z_coefficient)
    vocabulary = logits.shape[1]
    # A narrower gradient takes the upper half of its row: there the backward walk has read before it writes.
    gradient = logits.view(gradient_dtype or logits.dtype)[:, -vocabulary:]
    settings = {"kl_forward": kl_forward, "with_gradient": gradient_dtype is not None}
    if ref_logits is None or buckets is None:
        _launch(logits, ref_logits, gradient, targets, coefficients, kl_support, None, (losses, ce, kl), **settings)
        return gradient
    # The KL of the buckets is that of a vocabulary of them, whose logits they have.
    pooled, ref_pooled = pool_rows(logits, buckets.own), pool_rows(ref_logits, buckets.ref)
    nothing, losses_of_kl, unused = torch.zeros_like(kl), torch.empty_like(kl), torch.empty_like(kl)
    pooled_gradient = ref_pooled  # which it may lie over as over the logits
    _launch(
        pooled, ref_pooled, pooled_gradient, torch.zeros_like(targets), (nothing, kl_coefficient, nothing),
        None, None, (losses_of_kl, unused, kl), **settings,
    )  # fmt: skip
    given = (buckets.own.bucket, pooled, pooled_gradient)
    _launch(logits, None, gradient, targets, coefficients, None, given, (losses, ce, unused), **settings)
    losses.add_(losses_of_kl)
    return gradient


def _launch(
    logits: Tensor,
    ref_logits: Tensor | None,
    gradient: Tensor,
    targets: Tensor,
    coefficients: tuple[Tensor, Tensor, Tensor],
    support: Tensor | None,
    buckets: tuple[Tensor, Tensor, Tensor] | None,
    results: tuple[Tensor, Tensor, Tensor],
    *,
    kl_forward: bool,
    with_gradient: bool,
) -> None:
    """The kernel over all rows; `buckets` are that of each piece, their logits and the KL's gradient by these."""
    rows, vocabulary = logits.shape
    dtype = gradient.dtype if with_gradient else torch.float32
    chosen = dispatch.choose("loss_rows_kernel", dtype, logits.device, vocabulary, loops=True)
    bucket, pooled, pooled_gradient = buckets or (targets, logits, logits)
    loss_rows_kernel[(rows,)](
        logits,
        logits if ref_logits is None else ref_logits,
        gradient,
        targets if support is None else support,
        targets,
        *coefficients,
        *results,
        bucket,
        pooled,
        pooled_gradient,
        gradient.stride(0),
        vocabulary,
        pooled.shape[1],
        HAS_REFERENCE=ref_logits is not None,
        HAS_SUPPORT=support is not None,
        HAS_BUCKETS=buckets is not None and with_gradient,
        KL_FORWARD=kl_forward and ref_logits is not None,
        WITH_GRADIENT=with_gradient,
        ONE_BLOCK=vocabulary <= chosen.block,
        BLOCK=chosen.block,
        num_warps=chosen.num_warps,
    )
