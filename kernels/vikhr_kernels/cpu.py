"""The operations of a model on a CPU: the reference's, and attention by PyTorch's own kernel."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from vikhr_kernels.reference import rms_norm, rope, swiglu, visible

__all__ = ["flash_attention", "rms_norm", "rope", "swiglu"]


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens: Tensor | None = None, window: int | None = None
) -> Tensor:
    """`reference.flash_attention` of packed documents, each by `scaled_dot_product_attention`: no scores are kept."""
    bounds = [0, len(q)] if cu_seqlens is None else cu_seqlens.tolist()
    outputs = []
    for start, end in itertools.pairwise(bounds):
        queries, keys, values = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))  # [1, heads, L, D]
        mask = visible(end - start, window, q.device) if window is not None and window < end - start else None
        attended = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        outputs.append(attended[0].transpose(0, 1))
    return torch.cat(outputs)
