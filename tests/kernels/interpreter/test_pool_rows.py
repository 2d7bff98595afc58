"""The kernel that pools logits by buckets, against the plain formula: buckets of every kind across its blocks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vikhr_kernels import dispatch
from vikhr_kernels.buckets import Partition
from vikhr_kernels.gpu.pool_rows import pool_rows

SIZES = [(2, 37), (1, 1), (1, 0), (1, -1), (0, 2), (0, 1)]  # blocks, and pieces beyond
KINDS = ["one for all", "one for each", "one huge, before", "one huge, behind", "over two blocks", "over three blocks"]
gate = pytest.mark.gate


def block() -> int:
    return dispatch.choose("pool_rows_kernel", torch.float32, torch.device("cpu"), 1 << 30, loops=True).block


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def partition(vocabulary: int, kind: str) -> Partition:
    """Where each bucket begins in the order of buckets decides; the ids of their pieces are random."""
    begins = {
        "one for all": [],
        "one for each": range(1, vocabulary),
        "one huge, before": range(vocabulary - 7, vocabulary),
        "one huge, behind": range(1, 8),
        "over two blocks": [3, block() - 5, block() + 4, block() + 5],
        "over three blocks": [block() - 2, 2 * block() + 3],
    }[kind]
    within = [begin for begin in begins if 0 < begin < vocabulary]
    bucket = torch.bucketize(torch.arange(vocabulary), torch.tensor(within, dtype=torch.int64), right=True)
    return Partition.of(bucket[torch.randperm(vocabulary, generator=generator(1))], len(within) + 1)


def plain(logits: Tensor, by: Partition) -> Tensor:
    return torch.stack([logits[:, by.bucket == k].logsumexp(-1) for k in range(len(by.bounds) - 1)], 1)


@pytest.mark.parametrize(
    ("blocks", "more", "kind"),
    [
        pytest.param(blocks, more, kind, marks=[gate] if (blocks, more) in ((0, 2), (2, 37)) else [])
        for blocks, more in SIZES
        for kind in KINDS
    ],
)
def test_as_right_as_plain_pytorch(blocks: int, more: int, kind: str, assert_as_right: Callable, slack: float) -> None:
    vocabulary = blocks * block() + more
    by = partition(vocabulary, kind)
    logits = torch.randn(3, vocabulary, generator=generator(0)) * torch.tensor([[1e-3], [1.0], [30.0]])
    ours, truth = pool_rows(logits, by), plain(logits.double(), by)
    for row in range(3):  # each has a scale of its own
        assert_as_right((ours[row],), (plain(logits, by)[row],), (truth[row],))
    torch.testing.assert_close(ours.double(), truth, rtol=slack * 2**-22, atol=slack * 2**-21)


@pytest.mark.parametrize("kind", ["one huge, behind", "over three blocks"])
def test_values_that_stand_for_infinity(kind: str, slack: float) -> None:
    by = partition(2 * block() + 37, kind)
    values = torch.tensor([-3.4e38, -3e38, -1e38, -1e4, 1e30])
    logits = values[torch.randint(5, (1, 2 * block() + 37), generator=generator(0))]
    logits[:, by.bucket == 1] = logits[:, by.bucket == 1].clamp(max=-3e38)
    torch.testing.assert_close(pool_rows(logits, by).double(), plain(logits.double(), by), rtol=slack * 2**-22, atol=0)


@gate
def test_a_bucket_s_bits_depend_on_its_own_pieces_alone() -> None:
    by = partition(block() + 70, "over two blocks")
    logits = torch.randn(3, block() + 70, generator=generator(0))
    pooled = pool_rows(logits, by)
    assert torch.equal(pool_rows(logits, by), pooled)
    assert torch.equal(pool_rows(logits[[1, 2, 2]], by), pooled[[1, 2, 2]])
    logits[:, by.order[by.bounds[2:4]]] = torch.nan  # a piece in the block before its bucket's end, and one by itself
    spoilt = pool_rows(logits, by)
    assert spoilt[:, 2:4].isnan().all()
    spoilt[:, 2:4] = pooled[:, 2:4]
    assert torch.equal(spoilt, pooled)
