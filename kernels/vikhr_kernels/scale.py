"""Scaling as a registered operation: one pass over memory from one dtype to another, or onto what is there."""

from torch import Tensor

from vikhr_kernels import reference
from vikhr_kernels.arguments import require, require_floating, require_shape
from vikhr_kernels.dispatch import custom_op, runs_on_triton
from vikhr_kernels.reference import accumulation_dtype


def scale_into(out: Tensor, x: Tensor, factor: Tensor, *, accumulate: bool) -> None:
    """`reference.scale_into` with its arguments, in one kernel that reads `x` once and makes no temporary.

    Tensors are contiguous.

    Raises:
        ValueError: an argument's shape, dtype, device or layout doesn't fit; it is named.
    """
    require_floating("scale_into", "x", x)
    require_floating("scale_into", "out", out)
    require_shape("scale_into", "out", out, x.shape)
    require_shape("scale_into", "factor", factor, ())
    wide = accumulation_dtype(x.dtype)
    require(factor.dtype == wide, f"scale_into: factor is {factor.dtype}; for x {x.dtype} it must be {wide}")
    if accumulate:
        require(
            out.dtype == x.dtype == wide, f"scale_into: out is {out.dtype}, x {x.dtype}; sums are float32 or float64"
        )
    narrower = out.dtype.itemsize < x.dtype.itemsize
    require(out.dtype == x.dtype or narrower, f"scale_into: out is {out.dtype}, not narrower than x, {x.dtype}")
    for name, tensor in (("out", out), ("factor", factor)):
        require(tensor.device == x.device, f"scale_into: {name} is on {tensor.device}, x on {x.device}")
    for name, tensor in (("out", out), ("x", x)):
        require(tensor.is_contiguous(), f"scale_into: {name} is not contiguous")
    _scale_into(out, x, factor, accumulate)


@custom_op("vikhr::scale_into", mutates_args=("out",))
def _scale_into(out: Tensor, x: Tensor, factor: Tensor, accumulate: bool) -> None:
    if runs_on_triton(x):
        from vikhr_kernels.gpu import scale as gpu

        gpu.scale_into(out, x, factor, accumulate)
        return
    reference.scale_into(out, x, factor, accumulate=accumulate)


@_scale_into.register_fake
def _(*_: object) -> None:
    return None
