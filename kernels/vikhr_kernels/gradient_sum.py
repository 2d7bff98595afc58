"""Sums of gradients over the micro-batches of a step, beside the parameter and in float32 (float64 for float64)."""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from vikhr_kernels.layout import stacked
from vikhr_kernels.scale import scale_into


class GradientSum:
    """Where the gradients of a parameter on one GPU or CPU are added up: Megatron's `main_grad`.

    `linear`, `embedding` and `linear_ce_kl` add to it in backward, where they make the gradient, and give autograd
    none. What autograd gives to the parameter all the same, of its other uses, whoever made the sum has to `add`.

    Args:
        total: shaped as the parameter, float32, or float64 for a parameter in that; never read before it is written.
    """

    def __init__(self, total: Tensor) -> None:
        self._total = total
        self.is_empty = True
        """Whether nothing was added since `clear`."""

    def attach(self, parameter: Tensor) -> None:
        """Makes this the parameter's sum.

        Raises:
            RuntimeError: it has one, which would miss gradients from now on.
        """
        if hasattr(parameter, "_gradient_sum"):
            raise RuntimeError("the parameter's gradients are summed elsewhere already")
        parameter._gradient_sum = self  # type: ignore[attr-defined]

    @staticmethod
    def of(parameter: Tensor) -> Optional["GradientSum"]:
        """The sum of a parameter that wants a gradient, if it has one."""
        return getattr(parameter, "_gradient_sum", None) if parameter.requires_grad else None

    @property
    def total(self) -> Tensor:
        """The sum; zeros are written where nothing was added."""
        if self.is_empty:
            self._total.zero_()
            self.is_empty = False
        return self._total

    def clear(self) -> None:
        """Forgets the sum; nothing is written: what is added next replaces it."""
        self.is_empty = True

    @torch.no_grad()
    def add(self, gradient: Tensor) -> None:
        """Adds a gradient of any floating-point dtype."""
        self._total.copy_(gradient) if self.is_empty else self._total.add_(gradient)
        self.is_empty = False

    @torch.no_grad()
    def add_scaled(self, gradient: Tensor, factor: Tensor) -> None:
        """Adds a gradient in the sum's dtype, times a factor []."""
        scale_into(self._total, gradient, factor, accumulate=not self.is_empty)
        self.is_empty = False

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

    @staticmethod
    def add_product(sums: Sequence["GradientSum"], a: Tensor, b: Tensor) -> None:
        """Adds the rows of a @ b, one sum's after another's: by one product where the sums lie so in memory.

        Args:
            sums: of [N_i, C].
            a: [ΣN_i, T].
            b: [T, C].
        """
        whole = stacked([one._total for one in sums])
        if whole is not None and len({one.is_empty for one in sums}) == 1:
            multiply_into(whole, a, b, beta=0 if sums[0].is_empty else 1)
        else:
            for one, rows in zip(sums, a.split([len(one._total) for one in sums]), strict=True):
                multiply_into(one._total, rows, b, beta=0 if one.is_empty else 1)
        for one in sums:
            one.is_empty = False


def multiply_into(out: Tensor, a: Tensor, b: Tensor, beta: int = 0) -> None:
    """out = a @ b + beta · out, summed and stored in the dtype of `out`, to which narrower operands are widened."""
    if a.dtype == out.dtype:
        torch.addmm(out, a, b, beta=beta, out=out)
    elif a.is_cuda:
        torch.addmm(out, a, b, out.dtype, beta=beta, out=out)  # 16-bit operands, float32 result: one GEMM
    else:
        torch.addmm(out, a.to(out.dtype), b.to(out.dtype), beta=beta, out=out)
