"""The kernels of a Mistral training step, usable without the trainer; `reference` is their specification."""

from vikhr_kernels import cpu, reference
from vikhr_kernels.adamw import adamw
from vikhr_kernels.attention_dispatch import Length, length_of, seen_pairs
from vikhr_kernels.buckets import Buckets
from vikhr_kernels.dispatch import allow_triton
from vikhr_kernels.embedding import embedding
from vikhr_kernels.flash_attention import flash_attention
from vikhr_kernels.gradient_sum import GradientSum
from vikhr_kernels.layout import stack
from vikhr_kernels.linear import linear
from vikhr_kernels.linear_ce_kl import linear_ce_kl
from vikhr_kernels.packed_documents import PackedDocuments
from vikhr_kernels.reference import join_master, split_master
from vikhr_kernels.rms_norm import rms_norm
from vikhr_kernels.rope import rope
from vikhr_kernels.scale import scale_into
from vikhr_kernels.swiglu import swiglu

__all__ = [
    "Buckets",
    "GradientSum",
    "Length",
    "PackedDocuments",
    "adamw",
    "allow_triton",
    "cpu",
    "embedding",
    "flash_attention",
    "join_master",
    "length_of",
    "linear",
    "linear_ce_kl",
    "reference",
    "rms_norm",
    "rope",
    "scale_into",
    "seen_pairs",
    "split_master",
    "stack",
    "swiglu",
]
