"""Sums of gradients over the micro-batches of a step, beside the parameter and in float32 or wider."""

import torch
from torch import Tensor

from vikhr_kernels.scale import scale_into


class GradientSum:
    """Where the gradients of a parameter on one GPU or CPU are added up: Megatron's `main_grad`.

    `linear`, `embedding` and `linear_ce_kl` add to it where they make the gradient, and then give autograd none. What
    autograd gives to such a parameter all the same, of its other uses, whoever made the sum has to `add`.

    Args:
        total: shaped as the parameter, float32 or wider; its values are never read before they are written.
    """

    def __init__(self, total: Tensor) -> None:
        self._total = total
        self._is_empty = True

    @property
    def total(self) -> Tensor:
        """The sum, zeros where nothing was added."""
        if self._is_empty:
            self._total.zero_()
            self._is_empty = False
        return self._total

    def clear(self) -> None:
        """Forgets the sum; nothing is written: what is added next replaces it."""
        self._is_empty = True

    @torch.no_grad()
    def add(self, gradient: Tensor) -> None:
        """Adds a gradient of any floating-point dtype."""
        self._total.copy_(gradient) if self._is_empty else self._total.add_(gradient)
        self._is_empty = False

    @torch.no_grad()
    def add_scaled(self, gradient: Tensor, factor: Tensor) -> None:
        """Adds a gradient in the sum's dtype, times a factor []."""
        scale_into(self._total, gradient, factor, accumulate=not self._is_empty)
        self._is_empty = False

    @torch.no_grad()
    def add_rows(self, indices: Tensor, rows: Tensor) -> None:
        """Adds to rows of a matrix [V, H], those of one index in their order.

        Args:
            indices: [N] int64, each any number of times.
            rows: [N, H].
        """
        total, rows = self.total, rows.to(self._total.dtype)
        if total.is_cuda:  # sorts; the other one adds as its threads come
            total.index_put_((indices,), rows, accumulate=True)
        else:  # in turn; the other one's threads come in any order here
            total.index_add_(0, indices, rows)


def gradient_sum(parameter: Tensor) -> GradientSum | None:
    """The sum attached to a parameter, if there is one."""
    found: GradientSum | None = getattr(parameter, "gradient_sum", None)
    return found


def add_product(sums: list[GradientSum], a: Tensor, b: Tensor) -> None:
    """Adds the rows of a @ b, one sum's after another's: one product where the sums lie so in memory.

    Args:
        sums: of [N_i, K].
        a: [ΣN_i, T].
        b: [T, K].
    """
    whole = stacked([one._total for one in sums])
    if whole is not None and len({one._is_empty for one in sums}) == 1:
        multiply_into(whole, a, b, beta=0 if sums[0]._is_empty else 1)
    else:
        for one, rows in zip(sums, a.split([len(one._total) for one in sums]), strict=True):
            multiply_into(one._total, rows, b, beta=0 if one._is_empty else 1)
    for one in sums:
        one._is_empty = False


def multiply_into(out: Tensor, a: Tensor, b: Tensor, beta: int = 0) -> None:
    """out = a @ b + beta · out, summed and stored in the dtype of `out`, to which narrower operands are widened."""
    if a.dtype == out.dtype:
        torch.addmm(out, a, b, beta=beta, out=out)
    elif a.is_cuda:
        torch.addmm(out, a, b, out.dtype, beta=beta, out=out)  # 16-bit operands, float32 result: one GEMM
    else:
        torch.addmm(out, a.to(out.dtype), b.to(out.dtype), beta=beta, out=out)


def stacked(matrices: list[Tensor]) -> Tensor | None:
    """Contiguous matrices [N_i, K] as one [ΣN_i, K] without a copy; None where they don't lie one after another."""
    first, end = matrices[0], matrices[0].data_ptr()
    storage = first.untyped_storage().data_ptr()
    for matrix in matrices:
        follows = matrix.data_ptr() == end and matrix.untyped_storage().data_ptr() == storage
        if not follows or not matrix.is_contiguous() or matrix.shape[1:] != first.shape[1:]:
            return None
        end += matrix.nbytes
    return first.as_strided((sum(map(len, matrices)), *first.shape[1:]), first.stride())
