# ruff: noqa: N803, N806
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: AdamW over many tensors a launch, on float32 masters or on their split into bf16 and a 16-bit remainder.

Compiled without fused multiply-adds, with division and square root correctly rounded: every operation rounds as the
reference's does, so the bits are equal. bf16 is taken apart as an integer: no rounding of the hardware's is involved.
"""

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vikhr_kernels import dispatch

_BLOCKS_PER_CHUNK = 8  # blocks a program walks over once it has looked its tensor up


@triton.jit
def _pointer(p_addresses, i_tensor, tensors, LIST: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    p_tensor = tl.load(p_addresses + LIST * tensors + i_tensor).to(tl.pointer_type(TYPE))
    if ALIGNED:
        p_tensor = tl.multiple_of(p_tensor, 16)
    return p_tensor


@triton.jit
def _mixed(b_x):
    """`reference.random_bits`' hash of 32 bits, of uint32."""
    b_x = (b_x ^ (b_x >> 16)) * 0x7FEB352D
    b_x = (b_x ^ (b_x >> 15)) * 0x846CA68B
    return b_x ^ (b_x >> 16)


@triton.jit
def _bf16_to_float32(b_bits):
    return (b_bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _rounded_stochastically(b_x, b_random):
    b_bits = tl.where(b_x == b_x, b_x.to(tl.int32, bitcast=True), 0x7FC00000)
    return ((b_bits + b_random.to(tl.int32)) >> 16).to(tl.int16)


@triton.jit
def _step(
    p_parameter,
    p_remainder,
    p_gradient,
    p_first,
    p_second,
    o_x,
    m_x,
    key,
    gradient_scale,
    decay,
    first_rate,
    second_decay,
    second_rate,
    second_correction,
    eps,
    step_size,
    SPLIT: tl.constexpr,
    GRADIENT_IS_BF16: tl.constexpr,
    MOMENTS_ARE_BF16: tl.constexpr,
):
    """One block; `m_x` is None where the whole block lies inside the tensor."""
    b_gradient = tl.load(p_gradient + o_x, mask=m_x)
    if GRADIENT_IS_BF16:
        b_gradient = _bf16_to_float32(b_gradient)
    b_gradient = b_gradient.to(tl.float32) * gradient_scale
    b_master = tl.load(p_parameter + o_x, mask=m_x)
    if SPLIT:
        b_bits = (b_master.to(tl.int32) << 16) + tl.load(p_remainder + o_x, mask=m_x).to(tl.int32)
        b_master = b_bits.to(tl.float32, bitcast=True)
    b_first = tl.load(p_first + o_x, mask=m_x)
    b_second = tl.load(p_second + o_x, mask=m_x)
    if MOMENTS_ARE_BF16:
        b_first, b_second = _bf16_to_float32(b_first), _bf16_to_float32(b_second)

    b_first = b_first + (b_gradient - b_first) * first_rate
    b_second = b_second * second_decay + b_gradient * second_rate * b_gradient
    b_root = tl.math.div_rn(tl.sqrt_rn(b_second), second_correction) + eps
    b_master = b_master * decay + tl.math.div_rn(b_first * step_size, b_root)

    if MOMENTS_ARE_BF16:
        b_random = _mixed(o_x.to(tl.uint32) ^ key)
        b_first = _rounded_stochastically(b_first, b_random & 0xFFFF)
        b_second = _rounded_stochastically(b_second, b_random >> 16)
    tl.store(p_first + o_x, b_first, mask=m_x)
    tl.store(p_second + o_x, b_second, mask=m_x)
    if SPLIT:
        b_bits = b_master.to(tl.int32, bitcast=True)
        b_bits = tl.where(b_master == b_master, b_bits, 0x7FC00000)  # this NaN's upper half is a NaN too
        b_upper = (b_bits + 0x8000) >> 16
        tl.store(p_parameter + o_x, b_upper.to(tl.int16), mask=m_x)
        tl.store(p_remainder + o_x, (b_bits - (b_upper << 16)).to(tl.int16), mask=m_x)
    else:
        tl.store(p_parameter + o_x, b_master, mask=m_x)


@triton.jit(do_not_specialize=["rounding_seed"])
def adamw_kernel(
    p_addresses,
    p_sizes,
    p_chunk_tensors,
    p_chunk_starts,
    p_gradient_scale,
    tensors,
    rounding_seed,
    decay,
    first_rate,
    second_decay,
    second_rate,
    second_correction,
    eps,
    step_size,
    SPLIT: tl.constexpr,
    GRADIENT: tl.constexpr,
    GRADIENT_IS_BF16: tl.constexpr,
    MOMENTS_ARE_BF16: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A chunk of one tensor a program: row LIST of the addresses is that list's, of `tensors` addresses each."""
    i_chunk = tl.program_id(0)
    i_tensor = tl.load(p_chunk_tensors + i_chunk)
    size = tl.load(p_sizes + i_tensor)
    gradient_scale = tl.load(p_gradient_scale)
    MASTER: tl.constexpr = tl.int16 if SPLIT else tl.float32
    p_parameter = _pointer(p_addresses, i_tensor, tensors, 0, MASTER, ALIGNED)
    p_remainder = _pointer(p_addresses, i_tensor, tensors, 1, tl.int16, ALIGNED)
    p_gradient = _pointer(p_addresses, i_tensor, tensors, 2, GRADIENT, ALIGNED)
    MOMENT: tl.constexpr = tl.int16 if MOMENTS_ARE_BF16 else tl.float32
    p_first = _pointer(p_addresses, i_tensor, tensors, 3, MOMENT, ALIGNED)
    p_second = _pointer(p_addresses, i_tensor, tensors, 4, MOMENT, ALIGNED)
    key = _mixed(rounding_seed.to(tl.uint32) + i_tensor.to(tl.uint32) * 0x9E3779B9)
    start = tl.multiple_of(tl.load(p_chunk_starts + i_chunk), BLOCK)
    end = tl.minimum(start + BLOCKS * BLOCK, size)
    while start + BLOCK <= end:  # whole blocks need no mask, and load and store whole vectors
        _step(
            p_parameter, p_remainder, p_gradient, p_first, p_second, start + tl.arange(0, BLOCK), None,
            key, gradient_scale, decay, first_rate, second_decay, second_rate, second_correction, eps, step_size,
            SPLIT, GRADIENT_IS_BF16, MOMENTS_ARE_BF16,
        )  # fmt: skip
        start = tl.multiple_of(start + BLOCK, BLOCK)
    if start < end:
        o_x = start + tl.arange(0, BLOCK)
        _step(
            p_parameter, p_remainder, p_gradient, p_first, p_second, o_x, o_x < end,
            key, gradient_scale, decay, first_rate, second_decay, second_rate, second_correction, eps, step_size,
            SPLIT, GRADIENT_IS_BF16, MOMENTS_ARE_BF16,
        )  # fmt: skip


@functools.lru_cache(maxsize=16)
def _chunks(sizes: tuple[int, ...], chunk: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes, and the tensor and the first element of every chunk: made once, a model's shapes don't change."""
    counts = torch.tensor([triton.cdiv(size, chunk) for size in sizes])
    tensors = torch.arange(len(sizes)).repeat_interleave(counts)
    starts = (torch.arange(len(tensors)) - (counts.cumsum(0) - counts)[tensors]) * chunk
    return torch.tensor(sizes).to(device), tensors.to(torch.int32).to(device), starts.to(device)


def step(
    parameters: Sequence[Tensor],
    remainders: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    gradient_scale: Tensor,
    *,
    rounding_seed: int,
    decay: float,
    first_rate: float,
    second_decay: float,
    second_rate: float,
    second_correction: float,
    eps: float,
    step_size: float,
) -> None:
    """Steps contiguous tensors in place; no remainders: the parameters are float32 masters."""
    split = len(remainders) > 0
    lists = (parameters, remainders if split else parameters, gradients, first_moments, second_moments)
    addresses = [tensor.data_ptr() for tensors in lists for tensor in tensors]
    device, dtype = parameters[0].device, gradients[0].dtype
    chosen = dispatch.choose("adamw_kernel", dtype, device, 0, loops=True)
    table = torch.tensor(addresses, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    sizes, chunk_tensors, chunk_starts = _chunks(
        tuple(parameter.numel() for parameter in parameters), chosen.block * _BLOCKS_PER_CHUNK, device
    )
    if len(chunk_tensors) == 0:
        return
    # bf16 gradients are read as integers
    types = {torch.bfloat16: tl.int16, torch.float16: tl.float16, torch.float32: tl.float32}
    adamw_kernel[(len(chunk_tensors),)](
        table,
        sizes,
        chunk_tensors,
        chunk_starts,
        gradient_scale,
        len(parameters),
        rounding_seed,
        decay,
        first_rate,
        second_decay,
        second_rate,
        second_correction,
        eps,
        step_size,
        SPLIT=split,
        GRADIENT=types[dtype],
        GRADIENT_IS_BF16=dtype == torch.bfloat16,
        MOMENTS_ARE_BF16=first_moments[0].dtype == torch.bfloat16,
        ALIGNED=all(address % 16 == 0 for address in addresses),
        BLOCKS=_BLOCKS_PER_CHUNK,
        BLOCK=chosen.block,
        num_warps=chosen.num_warps,
        enable_fp_fusion=False,
    )
