"""The operations of a model on a CPU: the reference's, and attention by PyTorch's own kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vikhr_kernels.packed_documents import PackedDocuments
from vikhr_kernels.reference import rms_norm, rope, swiglu, visible

__all__ = ["flash_attention", "rms_norm", "rope", "swiglu"]


def flash_attention(q: Tensor, k: Tensor, v: Tensor, *, documents: PackedDocuments) -> Tensor:
    """`reference.flash_attention` of packed documents, each by `scaled_dot_product_attention`: no scores are kept."""
    lengths, window = documents.cu_seqlens.diff().tolist(), documents.window
    outputs = []
    for document in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):  # whose gradient is one concatenation
        queries, keys, values = (x.transpose(0, 1)[None] for x in document)  # [1, heads, L, D]
        length = len(document[0])
        mask = visible(length, window, q.device) if window is not None and window < length else None
        attended = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        outputs.append(attended[0].transpose(0, 1))
    return torch.cat(outputs)
