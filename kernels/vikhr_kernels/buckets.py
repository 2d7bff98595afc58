"""Buckets: what the pieces of two vocabularies are compared by, where these differ.

A bucket holds pieces of both. A distribution over a vocabulary becomes one over buckets by summing what each holds; as
logits, by the log-sum-exp of theirs, which leaves the partition function as it was.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vikhr_kernels.arguments import require


class Partition(NamedTuple):
    """The V pieces of a vocabulary by their buckets, of which there are K."""

    bucket: Tensor  # [V] int32, of each piece
    order: Tensor  # [V] int32, the pieces by bucket, by id in each
    sorted_bucket: Tensor  # [V] int32, theirs
    bounds: Tensor  # [K + 1] int64, where each bucket's begin in this order, and the end

    @classmethod
    def of(cls, bucket: Tensor, count: int) -> "Partition":
        """By the bucket of each piece, [V] integers from 0 to `count` - 1."""
        order = bucket.argsort(stable=True)
        bounds = torch.bincount(bucket, minlength=count).cumsum(0)
        return cls(bucket.int(), order.int(), bucket[order].int(), torch.cat((bounds.new_zeros(1), bounds)))

    def pool(self, logits: Tensor) -> Tensor:
        """Logits [n, K] of the buckets, of those of the pieces [n, V]: added up in the order of ids."""
        by_bucket = logits.T[self.order]  # [V, n]
        largest = torch.segment_reduce(by_bucket, "max", offsets=self.bounds, axis=0)
        terms = by_bucket.sub_(largest[self.sorted_bucket]).exp_()
        return torch.segment_reduce(terms, "sum", offsets=self.bounds, axis=0).log_().add_(largest).T.contiguous()


class Buckets(NamedTuple):
    """The same K buckets in two vocabularies, made by `of`."""

    own: Partition  # the model's
    ref: Partition  # the reference's

    @classmethod
    def of(cls, own: Tensor, ref: Tensor) -> "Buckets":
        """By the bucket of each piece of the model, [V] integers, and of the reference, [V'].

        Raises:
            ValueError: they aren't such, or a bucket has no piece in one of the vocabularies: its probability there
                would be 0, and the divergence infinite.
        """
        for name, bucket in (("own", own), ("ref", ref)):
            require(
                bucket.dim() == 1 and bucket.numel() > 0 and bucket.dtype == torch.int64,
                f"buckets: {name} must be int64, one of each piece, not {bucket.dtype} {list(bucket.shape)}",
            )
        count = int(torch.maximum(own.max(), ref.max())) + 1
        for name, bucket in (("own", own), ("ref", ref)):
            require(bool((bucket >= 0).all()), f"buckets: {name} has a bucket below 0")
            held = torch.bincount(bucket, minlength=count)
            require(bool((held > 0).all()), f"buckets: {name} has no piece in bucket {int(held.argmin())}")
        return cls(Partition.of(own, count), Partition.of(ref, count))

    @property
    def size(self) -> int:
        """K."""
        return len(self.own.bounds) - 1

    def to(self, device: torch.device) -> "Buckets":
        """The same on another device."""
        return Buckets(*(Partition(*(tensor.to(device) for tensor in partition)) for partition in self))
