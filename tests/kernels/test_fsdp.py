"""The operations under FSDP2 on two ranks: gradients equal an unsharded model's, one gather and one scatter a head."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from vikhr_kernels import linear_ce_kl, rms_norm, rope, swiglu

pytestmark = pytest.mark.slow

TOKENS, HIDDEN, VOCABULARY, RANKS = 12, 8, 30, 2


class Layer(nn.Module):
    """Every operation but the head, once."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(HIDDEN))
        self.mix = nn.Parameter(torch.randn(3 * HIDDEN, HIDDEN) * 0.3)

    def forward(self, x: Tensor, residual: Tensor, positions: Tensor) -> Tensor:
        normalised, summed = rms_norm(x, self.scale, 1e-5, residual)
        q, gate, up = (normalised @ self.mix.T).chunk(3, dim=-1)
        heads = q.unflatten(-1, (2, -1))
        rotated, _ = rope(heads, heads, positions, 100.0)
        return summed + rotated.flatten(1) + swiglu(gate, up)


class Head(nn.Module):
    """The head, alone in its module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(VOCABULARY, HIDDEN))

    def forward(self, hidden: Tensor, targets: Tensor, reference: Tensor) -> Tensor:
        arguments = {"num_tokens": TOKENS, "chunk_tokens": 2}
        return linear_ce_kl(hidden, self.weight, targets, hidden.detach() * 0.9, reference, **arguments)[0]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = Layer(), Head()

    def forward(self, x: Tensor, targets: Tensor, positions: Tensor) -> Tensor:
        reference = torch.linspace(-1, 1, VOCABULARY * HIDDEN).view(VOCABULARY, HIDDEN)
        return self.head(self.layer(x, x * 0.5, positions), targets, reference)


def rank_main(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    torch.manual_seed(1)
    batch = torch.randn(TOKENS, HIDDEN), torch.randint(VOCABULARY, (TOKENS,)), torch.arange(TOKENS)
    whole, sharded = Model(), Model()
    whole(*batch).backward()
    for module in (sharded.layer, sharded.head, sharded):
        fully_shard(module)
    mine = slice(rank * TOKENS // RANKS, (rank + 1) * TOKENS // RANKS)
    with CommDebugMode() as communication:
        (RANKS * sharded(*(x[mine] for x in batch))).backward()  # FSDP averages over the ranks
    for (name, expected), actual in zip(whole.named_parameters(), sharded.parameters(), strict=True):
        assert isinstance(actual.grad, DTensor)
        torch.testing.assert_close(actual.grad.full_tensor(), expected.grad, msg=lambda text, name=name: name + text)
    # A rank has 3 chunks: one gather forward and at most one more backward a module, one scatter, and no more a chunk.
    counts = {str(kind): count for kind, count in communication.get_comm_counts().items()}
    gathers = sum(count for kind, count in counts.items() if "allgather" in kind.replace("_", ""))
    scatters = sum(count for kind, count in counts.items() if "reduce_scatter" in kind)
    assert gathers in (3, 4), counts
    assert scatters == 2, counts
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    command = [sys.executable, __file__]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(RANKS)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * RANKS, "\n".join(outputs)


if __name__ == "__main__":
    rank_main(int(sys.argv[1]), sys.argv[2])
