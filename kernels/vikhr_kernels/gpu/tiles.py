# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
"""Triton: tiles of rows, which attention loads, multiplies and stores, whole or as halves of their columns.

Tiles come through tensor descriptors (the copy engine of Hopper) or through pointers (Ampere); only `load_tile` knows
which. A product with 128 columns whole makes Triton share them out among the warps, so that every warp loads all rows
of the other operand and probabilities go through shared memory; with halves of 64 every warp keeps rows of its own. A
tile in PARTS is a tuple of one or two tiles, side by side.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from vikhr_kernels.attention_dispatch import AttentionConfiguration


@triton.jit
def load_tile(
    source, row, column, T, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BOUNDED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """[ROWS, COLUMNS] of a [T, ...] tensor from a row and column on; rows from T on are zero where BOUNDED."""
    if DESCRIPTORS:
        b_tile = source.load([row, column])
    else:
        o_row = tl.arange(0, ROWS)
        p_row = source + tl.cast(row, tl.int64) * stride + column
        p_tile = p_row + o_row[:, None] * stride + tl.arange(0, COLUMNS)[None, :]
        if BOUNDED:
            b_tile = tl.load(p_tile, mask=(row + o_row < T)[:, None], other=0.0)
        else:
            b_tile = tl.load(p_tile)
    return b_tile


@triton.jit
def load_parts(
    source, row, column, T, stride, ROWS: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr, BOUNDED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """`load_tile` of D columns in PARTS."""
    if PARTS == 1:
        parts = (load_tile(source, row, column, T, stride, ROWS, D, BOUNDED, DESCRIPTORS),)
    else:
        b_left = load_tile(source, row, column, T, stride, ROWS, D // 2, BOUNDED, DESCRIPTORS)
        b_right = load_tile(source, row, column + D // 2, T, stride, ROWS, D // 2, BOUNDED, DESCRIPTORS)
        parts = (b_left, b_right)
    return parts


@triton.jit
def zero_parts(ROWS: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr):
    """[ROWS, D] float32 in PARTS."""
    b_zeros = tl.zeros([ROWS, D // PARTS], dtype=tl.float32)
    if PARTS == 1:
        parts = (b_zeros,)
    else:
        parts = (b_zeros, b_zeros)
    return parts


@triton.jit
def store_parts(p_rows, m_row, parts, factor, D: tl.constexpr, PARTS: tl.constexpr):
    """Writes the parts times a factor to rows of D elements, rounded once."""
    for i in tl.static_range(PARTS):
        p_tile = p_rows[:, None] + i * (D // PARTS) + tl.arange(0, D // PARTS)[None, :]
        tl.store(p_tile, (parts[i] * factor).to(p_rows.dtype.element_ty), mask=m_row[:, None])


@triton.jit
def scale_parts(parts, b_factor, PARTS: tl.constexpr):
    """The parts times a factor a row."""
    if PARTS == 1:
        scaled = (parts[0] * b_factor[:, None],)
    else:
        scaled = (parts[0] * b_factor[:, None], parts[1] * b_factor[:, None])
    return scaled


@triton.jit
def multiply_parts(left, right, b_start, PARTS: tl.constexpr):
    """b_start [M, N] float32 plus left [M, D] in PARTS times right [N, D] transposed."""
    b_product = tl.dot(left[0], tl.trans(right[0]), b_start, input_precision="ieee")
    if PARTS == 2:
        b_product = tl.dot(left[1], tl.trans(right[1]), b_product, input_precision="ieee")
    return b_product


@triton.jit
def add_product(sums, b_left, right, PARTS: tl.constexpr):
    """sums [M, D] in PARTS plus b_left [M, N], rounded to the dtype of `right`, times right [N, D] in PARTS."""
    b_left = b_left.to(right[0].dtype)
    if PARTS == 1:
        added = (tl.dot(b_left, right[0], sums[0], input_precision="ieee"),)
    else:
        b_first = tl.dot(b_left, right[0], sums[0], input_precision="ieee")
        added = (b_first, tl.dot(b_left, right[1], sums[1], input_precision="ieee"))
    return added


def tiled(x: Tensor) -> Tensor:
    """[T, H, D] as tiles can be loaded from it: heads side by side in a row, rows that don't overlap, all aligned.

    Descriptors want steps of 16 bytes and even a single row longer than what is in it; Triton loads more than one
    element at once where it knows that steps are multiples of 16 elements.
    """
    _, heads, size = x.shape
    token, head, element = x.stride()
    apart = token >= (heads - 1) * head + size
    aligned = token % 16 == 0 and head % 16 == 0 and x.data_ptr() % 16 == 0
    if element == 1 and apart and aligned and (heads < 2 or head >= size):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def source(x: Tensor, rows: int, configuration: AttentionConfiguration) -> Tensor | TensorDescriptor:
    """What `load_tile` reads tiles of so many rows and one head, or a part of it, from."""
    if not configuration.descriptors:
        return x
    tokens, heads, size = x.shape
    columns = (heads - 1) * x.stride(1) + size
    return TensorDescriptor(x, [tokens, columns], [x.stride(0), 1], [rows, size // configuration.parts])
