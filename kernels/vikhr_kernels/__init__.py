"""The kernels of a Mistral training step, usable without the trainer; `reference` is their specification."""

from vikhr_kernels import reference
from vikhr_kernels.linear_ce_kl import linear_ce_kl

__all__ = ["linear_ce_kl", "reference"]
