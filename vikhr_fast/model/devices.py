"""Where a single process computes."""

from typing import Literal

import torch

from vikhr_fast.errors import InputError

Device = Literal["auto", "cpu", "cuda"]


def device_of(name: Device) -> tuple[torch.device, torch.dtype]:
    """The device of `auto`, `cpu` or `cuda`, and what to compute in there; InputError where there is no GPU."""
    is_cuda = torch.cuda.is_available() if name == "auto" else name == "cuda"
    if is_cuda and not torch.cuda.is_available():
        raise InputError("device cuda: PyTorch finds no GPU; take auto or cpu")
    return (torch.device("cuda"), torch.bfloat16) if is_cuda else (torch.device("cpu"), torch.float32)
