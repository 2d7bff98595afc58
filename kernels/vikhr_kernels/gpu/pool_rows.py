# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: logits of buckets, each the log-sum-exp of its pieces' logits, added up in one order whatever runs beside it.

A program walks over a row's pieces bucket by bucket. A scan adds them up and starts anew where a bucket begins.
"""

import triton
import triton.language as tl
from torch import Tensor

from vikhr_kernels import dispatch
from vikhr_kernels.buckets import Partition

LOWEST = tl.constexpr(-3.0e38)  # stands for -inf: differences of two of them are 0, not NaN


@triton.jit
def _join(b_begins, b_largest, b_sum, b_begins_after, b_largest_after, b_sum_after):
    """What two stretches of pieces, one after the other, come to: whether a bucket begins there, and its sum so far.

    The sum is of exp(x - largest). One of both is multiplied by 1, the other by the one exponential.
    """
    b_exponential = tl.exp(-tl.abs(b_largest - b_largest_after))
    grows = b_largest_after > b_largest
    b_joined = tl.where(grows, b_sum * b_exponential + b_sum_after, b_sum + b_sum_after * b_exponential)
    begins = b_begins_after != 0
    b_largest = tl.where(begins, b_largest_after, tl.maximum(b_largest, b_largest_after))
    return b_begins | b_begins_after, b_largest, tl.where(begins, b_sum_after, b_joined)


@triton.jit
def pool_rows_kernel(p_logits, p_order, p_bucket, p_pooled, V, K, BLOCK: tl.constexpr):
    """One row of V logits a program, to one of K. `p_bucket` has the buckets in the order of `p_order`."""
    i_row = tl.program_id(0).to(tl.int64)
    p_logits += i_row * V
    p_pooled += i_row * K
    o_block = tl.arange(0, BLOCK)
    carried_largest, carried_sum = LOWEST, 0.0  # of the bucket that the block before ended in
    for i_block in range(tl.cdiv(V, BLOCK)):
        o_v = i_block * BLOCK + o_block
        m_v = o_v < V
        b_bucket = tl.load(p_bucket + o_v, mask=m_v, other=K)
        b_previous = tl.load(p_bucket + o_v - 1, mask=m_v & (o_v > 0), other=-1)
        b_next = tl.load(p_bucket + o_v + 1, mask=o_v + 1 < V, other=K)
        b_x = tl.load(p_logits + tl.load(p_order + o_v, mask=m_v, other=0), mask=m_v, other=LOWEST)
        b_begins = (b_bucket != b_previous).to(tl.int32)
        b_begins, b_largest, b_sum = tl.associative_scan((b_begins, b_x, tl.full([BLOCK], 1.0, tl.float32)), 0, _join)
        b_zeros = tl.zeros([BLOCK], tl.float32)
        _, b_largest, b_sum = _join(0, b_zeros + carried_largest, b_zeros + carried_sum, b_begins, b_largest, b_sum)
        m_number = b_sum == b_sum  # of NaN the logarithm is computed apart, and a barrier follows for all threads
        b_pooled = tl.where(m_number, b_largest + tl.log(tl.where(m_number, b_sum, 1.0)), b_sum)
        tl.store(p_pooled + b_bucket, b_pooled, mask=m_v & (b_bucket != b_next))
        is_last = o_block == BLOCK - 1
        carried_largest = tl.max(tl.where(is_last, b_largest, LOWEST), 0)
        carried_sum = tl.sum(tl.where(is_last, b_sum, 0.0), 0)


def pool_rows(logits: Tensor, partition: Partition) -> Tensor:
    """The kernel's `Partition.pool`: logits [n, K] of the buckets, of [n, V] float32, contiguous."""
    rows, vocabulary = logits.shape
    pooled = logits.new_empty(rows, len(partition.bounds) - 1)
    chosen = dispatch.choose("pool_rows_kernel", logits.dtype, logits.device, vocabulary, loops=True)
    pool_rows_kernel[(rows,)](
        logits,
        partition.order,
        partition.sorted_bucket,
        pooled,
        vocabulary,
        pooled.shape[1],
        **chosen.constants,
    )
    return pooled
