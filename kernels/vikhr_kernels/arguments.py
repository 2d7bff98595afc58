"""Checks of arguments shared by the operations: a wrong one is a ValueError that names it."""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def require(condition: bool, message: str) -> None:
    """Raises ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_floating(operation: str, name: str, tensor: Tensor) -> None:
    """Raises ValueError unless the tensor's dtype is one that the operations compute in."""
    require(tensor.dtype in FLOATING, f"{operation}: {name} is {tensor.dtype}, not a floating-point tensor")


def require_like(operation: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises ValueError unless `tensor` has the dtype and device of `other`."""
    for what, mine, wanted in (("", tensor.dtype, other.dtype), ("on ", tensor.device, other.device)):
        require(mine == wanted, f"{operation}: {name} is {what}{mine}, {other_name} {what}{wanted}")


def require_shape(operation: str, name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Raises ValueError unless the tensor has this shape."""
    require(tuple(tensor.shape) == tuple(shape), f"{operation}: {name} must be {list(shape)}, not {list(tensor.shape)}")
