"""From token shards to packed batches, as a pure function of the seed and the sequence's number."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vikhr_fast import _native
from vikhr_fast.data.token_shards import TokenShards
from vikhr_kernels import seen_pairs

IGNORED = -100
_PACKING_BLOCK = 1 << 16  # documents packed together: enough to fill sequences, few enough to mix lengths
_IntArray = npt.NDArray[np.int64]


class Window(NamedTuple):
    """Consecutive positions of one document; `source` counts the corpus's sources."""

    source: int
    document: int
    start: int
    length: int


class _Packed:
    """Documents one after another."""

    cu_seqlens: Tensor

    def seen_pairs(self, window: int | None) -> int:
        """How many pairs of a query and a key see each other: causal, inside documents and the window."""
        return sum(seen_pairs(length, window) for length in self.cu_seqlens.diff().tolist())


@dataclass(frozen=True)
class Reading(_Packed):
    """What a reference with another vocabulary reads of a micro-batch: the same texts in T' tokens of its own."""

    tokens: Tensor  # [T'] int64
    cu_seqlens: Tensor  # [texts + 1] int32, the padding's among them
    rows: Tensor  # [T] int64: the reference's token that ends where the batch's does; -1 where there is none
    num_tokens: int  # without padding
    num_cut: int  # tokens that it had no positions for
    num_apart: int  # rows at which the two tokens that follow are in different buckets
    num_unspelt: int  # texts that it can't spell to their end, and reads as far as it can

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Reading":
        """With another form of each tensor."""
        tokens, cu_seqlens, rows = map(change, (self.tokens, self.cu_seqlens, self.rows))
        return replace(self, tokens=tokens, cu_seqlens=cu_seqlens, rows=rows)


@dataclass(frozen=True)
class Batch(_Packed):
    """One micro-batch of T packed tokens."""

    tokens: Tensor  # [T] int64
    targets: Tensor  # [T] int64, IGNORED where nothing is predicted
    cu_seqlens: Tensor  # [documents + 1] int32
    sources: Tensor  # [T] int64, 0 on padding
    kl_factor: float | Tensor = 1.0
    """Of the KL: the inverse of `kl.fraction` where the KL counts, else 0; [T] float64 where that isn't everywhere."""
    reading: Reading | None = None
    """Where the reference has another vocabulary."""

    @property
    def has_kl(self) -> bool:
        """Whether the KL is asked for: the same on all ranks, as a forward of the reference is made by all of them."""
        return isinstance(self.kl_factor, Tensor) or self.kl_factor > 0

    @property
    def trained_tokens(self) -> int:
        """How many positions have a target."""
        return int((self.targets != IGNORED).sum())

    @property
    def compared_tokens(self) -> int:
        """How many of these take the KL."""
        return int(((self.targets != IGNORED) & torch.as_tensor(self.kl_factor > 0)).sum())

    def pinned(self) -> "Batch":
        """The batch in memory that a GPU copies from without anybody waiting."""
        return self._mapped(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device; from pinned memory, without waiting for it."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **values, reading=self.reading and self.reading.mapped(change))


@dataclass(frozen=True)
class _EpochPacking:
    documents: _IntArray  # [windows] document of each window, counted over all sources
    starts: _IntArray  # [windows]
    lengths: _IntArray  # [windows]
    offsets: _IntArray  # [sequences + 1] the windows of packed sequence i are offsets[i] to offsets[i + 1]
    order: _IntArray  # [sequences] which packed sequence comes n-th


class PackedCorpus:
    """Documents of several sources as fixed-length sequences, every document once an epoch.

    A document of n tokens has n - 1 positions, each with the next token as its target; one longer than a sequence
    is cut into consecutive windows, so that no target is lost. Sequence i depends on (seed, i) alone, never on
    ranks or workers.

    Args:
        sources: shards by name; all with the same tokenizer.
        sequence_length: positions a sequence.
        epochs: passes over the documents.
        seed: of the order.
    """

    def __init__(self, sources: Mapping[str, TokenShards], sequence_length: int, epochs: int, seed: int) -> None:
        self.sequence_length, self.seed, self._epochs = sequence_length, seed, epochs
        self._shards = list(sources.values())
        self._first_document = np.cumsum([0, *(shards.num_documents for shards in self._shards)])

    @cached_property
    def _packings(self) -> list[_EpochPacking]:
        positions = np.concatenate([shards.lengths - 1 for shards in self._shards])
        return [self._pack(epoch, positions) for epoch in range(self._epochs)]

    def _pack(self, epoch: int, positions: _IntArray) -> _EpochPacking:
        random = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        order = random.permutation(len(positions))
        packed = _native.pack_windows(positions[order], self.sequence_length, _PACKING_BLOCK)
        documents, starts, lengths, offsets = packed
        return _EpochPacking(order[documents], starts, lengths, offsets, random.permutation(len(offsets) - 1))

    @cached_property
    def _first_sequence(self) -> _IntArray:
        return np.cumsum([0, *(len(packing.order) for packing in self._packings)])

    @property
    def num_sequences(self) -> int:
        """Sequences over all epochs."""
        return int(self._first_sequence[-1])

    def mean_pairs(self, window: int | None) -> float:
        """How many keys a query sees on average, inside its window of a document."""
        positions = np.concatenate([shards.lengths - 1 for shards in self._shards])
        whole, rest = np.divmod(positions, self.sequence_length)
        counts = {int(n): int(count) for n, count in zip(*np.unique(rest, return_counts=True), strict=True)}
        counts[self.sequence_length] = int(whole.sum())
        return sum(n * seen_pairs(length, window) for length, n in counts.items()) / max(int(positions.sum()), 1)

    def require_unchanged(self) -> None:
        """As `TokenShards.require_unchanged`, for every source."""
        for shards in self._shards:
            shards.require_unchanged()

    def windows(self, index: int) -> list[Window]:
        """The pieces of documents in sequence `index`, in order; none past the last sequence."""
        if index >= self.num_sequences:
            return []
        epoch = int(np.searchsorted(self._first_sequence, index, side="right")) - 1
        packing = self._packings[epoch]
        sequence = packing.order[index - self._first_sequence[epoch]]
        windows = []
        for window in range(packing.offsets[sequence], packing.offsets[sequence + 1]):
            document = int(packing.documents[window])
            source = int(np.searchsorted(self._first_document, document, side="right")) - 1
            local = document - int(self._first_document[source])
            windows.append(Window(source, local, int(packing.starts[window]), int(packing.lengths[window])))
        return windows

    def batch(self, indices: list[int], kl_factor: float | Sequence[float] = 1.0) -> Batch:
        """The given sequences one after another, then padding (documents without targets) to the full length.

        Args:
            indices: of the sequences; those past the last one are empty.
            kl_factor: of all sequences' KL, or of each.
        """
        size = self.sequence_length * len(indices)
        tokens, sources = torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64)
        targets = torch.full((size,), IGNORED, dtype=torch.int64)
        bounds, ends = [0], [0]  # of documents, of sequences
        for index in indices:
            for source, document, start, length in self.windows(index):
                shards, window = self._shards[source], slice(start, start + length + 1)
                rows = slice(bounds[-1], bounds[-1] + length)
                piece = torch.from_numpy(shards.document(document)[window].astype(np.int64))
                tokens[rows], targets[rows], sources[rows] = piece[:-1], piece[1:], source
                if (trained := shards.trained(document)) is not None:
                    targets[rows][torch.from_numpy(~trained[window][1:])] = IGNORED
                bounds.append(rows.stop)
            ends.append(bounds[-1])
        while bounds[-1] < size:  # no longer than a sequence: attention's work grows with the square
            bounds.append(min(bounds[-1] + self.sequence_length, size))
        cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
        if isinstance(kl_factor, float):
            return Batch(tokens, targets, cu_seqlens, sources, kl_factor)
        lengths = torch.tensor([*ends, size]).diff()  # of the padding, too
        factors = torch.tensor([*kl_factor, 0.0], dtype=torch.float64).repeat_interleave(lengths)
        return Batch(tokens, targets, cu_seqlens, sources, factors)


class StepLoader:
    """Makes each rank's micro-batches, step by step.

    Args:
        corpus: the sequences.
        sequences_per_step: over all ranks.
        micro_batch: sequences a micro-batch; with the ranks it divides `sequences_per_step`.
        rank: of this process.
        ranks: how many there are.
        kl_fraction: share of each step's sequences that take the KL. They come first, so that all ranks make the same
            number of micro-batches with it; in the last of these there may be others, too.
    """

    def __init__(
        self,
        corpus: PackedCorpus,
        *,
        sequences_per_step: int,
        micro_batch: int,
        rank: int = 0,
        ranks: int = 1,
        kl_fraction: float = 1.0,
    ) -> None:
        self._corpus, self._kl_fraction = corpus, kl_fraction
        self._sequences_per_step, self._micro_batch = sequences_per_step, micro_batch
        self._rank, self._ranks = rank, ranks

    def steps(self, first: int, end: int) -> Iterator[tuple[int, list[Batch]]]:
        """Yields (step, micro-batches) for steps `first` to `end` - 1, counted from 0.

        Raises:
            InputError: a shard changed or vanished meanwhile.
        """
        for step in range(first, end):
            yield step, self._step(step)

    def _step(self, step: int) -> list[Batch]:
        self._corpus.require_unchanged()
        together = self._micro_batch * self._ranks  # all ranks need the same number of micro-batches
        start, end = step * self._sequences_per_step, (step + 1) * self._sequences_per_step
        sequences = range(start, min(end, self._corpus.num_sequences))
        drawn = draw(self._corpus.seed, sequences, self._kl_fraction)
        order = sorted(sequences, key=lambda sequence: sequence not in drawn)
        order += range(sequences.stop, min(end, -(-sequences.stop // together) * together))  # none of padding alone
        factors = [len(sequences) / len(drawn)] * len(drawn) + [0.0] * (len(order) - len(drawn))
        batches = []
        for first in range(0, len(order), together):
            mine = slice(first + self._rank * self._micro_batch, first + (self._rank + 1) * self._micro_batch)
            are_alike = len(set(factors[first : first + together])) == 1  # on all ranks
            batches.append(self._corpus.batch(order[mine], factors[first] if are_alike else factors[mine]))
        return batches


def num_drawn(fraction: float, sequences: int) -> int:
    """How many of a step's sequences take the KL: rounded up where, as in the last step, the share isn't whole."""
    return math.ceil(fraction * sequences - 1e-9)


def draw(seed: int, sequences: Sequence[int], fraction: float) -> set[int]:
    """That share of the sequences: each is equally likely to be among them.

    Every sequence has a number that follows from (seed, sequence); those with the smallest are taken.
    """
    count = num_drawn(fraction, len(sequences))

    def number(sequence: int) -> int:
        return int(np.random.SeedSequence(seed, spawn_key=(sequence,)).generate_state(1, np.uint64)[0])

    return set(sorted(sequences, key=number)[:count]) if count < len(sequences) else set(sequences)
