"""The KL over buckets of two vocabularies, against dictionaries of strings and their probabilities."""

import math
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vikhr_kernels import Buckets, linear_ce_kl, reference
from vikhr_kernels.buckets import Partition

HIDDEN, REF_HIDDEN = 4, 3
IMPLEMENTATIONS = {"chunked": linear_ce_kl, "reference": reference.linear_ce_kl}
for_each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
few_examples = settings(max_examples=60, deadline=None)


@dataclass
class Case:
    """Both heads over vocabularies of their own. All single letters are in both, so that every piece has a bucket."""

    own: list[bytes]
    ref: list[bytes]
    hidden: Tensor
    weight: Tensor
    targets: Tensor
    ref_hidden: Tensor
    ref_weight: Tensor

    @property
    def shared(self) -> list[bytes]:
        return sorted({*self.own} & {*self.ref})

    @property
    def buckets(self) -> Buckets:
        ids = {string: index for index, string in enumerate(self.shared)}
        return Buckets.of(*(torch.tensor([ids[longest(s, ids)] for s in pieces]) for pieces in (self.own, self.ref)))

    def run(self, head: Callable, upstream: Tensor, buckets: Buckets | None, **options: object) -> tuple[Tensor, ...]:
        """Costs, CE, KL, and the gradients of the costs times `upstream`."""
        hidden, weight = (x.clone().requires_grad_() for x in (self.hidden, self.weight))
        given = (hidden, weight, self.targets, self.ref_hidden, self.ref_weight)
        loss, ce, kl = head(*given, kl_buckets=buckets, **options)
        return loss.detach(), ce, kl, *torch.autograd.grad((loss * upstream).sum(), (hidden, weight))


def longest(piece: bytes, shared: object) -> bytes:
    """Its longest prefix that both vocabularies have."""
    return next(piece[:end] for end in range(len(piece), 0, -1) if piece[:end] in shared)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    def vocabulary() -> list[bytes]:
        pieces = draw(st.sets(st.text("abc", min_size=1, max_size=4), max_size=14)) | {*"abc"}
        return [piece.encode() for piece in draw(st.permutations(sorted(pieces)))]

    own, ref, tokens = vocabulary(), vocabulary(), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    scale = draw(st.sampled_from([0.01, 1.0, 4.0]))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    targets = torch.randint(len(own), (tokens,), generator=generator)
    targets[1::3] = -100
    heads = normal(len(own), HIDDEN), normal(len(ref), REF_HIDDEN)
    return Case(own, ref, normal(tokens, HIDDEN) * scale, heads[0], targets, normal(tokens, REF_HIDDEN), heads[1])


def probabilities(hidden: list[float], pieces: list[bytes], weight: list[list[float]]) -> dict[bytes, float]:
    logits = [sum(h * w for h, w in zip(hidden, row, strict=True)) for row in weight]
    terms = [math.exp(logit - max(logits)) for logit in logits]
    return {piece: term / sum(terms) for piece, term in zip(pieces, terms, strict=True)}


def pooled(by_piece: dict[bytes, float], shared: list[bytes]) -> dict[bytes, float]:
    by_bucket: dict[bytes, float] = defaultdict(float)
    for piece, probability in by_piece.items():
        by_bucket[longest(piece, shared)] += probability
    return by_bucket


def expected_of(case: Case, factors: list[float], kl_weight: float, forward: bool) -> tuple[Tensor, ...]:
    """Costs of each token times its factor, CE, KL, and the gradients of their sum."""
    costs, all_ce, all_kl, d_logits = [], [], [], []
    for token, target in enumerate(case.targets.tolist()):
        p = probabilities(case.hidden[token].tolist(), case.own, case.weight.tolist())
        q = probabilities(case.ref_hidden[token].tolist(), case.ref, case.ref_weight.tolist())
        p_of, q_of = pooled(p, case.shared), pooled(q, case.shared)
        ratio = {bucket: math.log(p_of[bucket] / q_of[bucket]) for bucket in case.shared}
        reverse_kl = sum(p_of[bucket] * ratio[bucket] for bucket in case.shared)
        forward_kl = -sum(q_of[bucket] * ratio[bucket] for bucket in case.shared)
        kept = target >= 0
        ce, kl = (-math.log(p[case.own[target]]), forward_kl if forward else reverse_kl) if kept else (0.0, 0.0)
        row = []
        for index, (piece, share) in enumerate(p.items()):
            bucket = longest(piece, case.shared)
            slope = 1 - q_of[bucket] / p_of[bucket] if forward else ratio[bucket] - reverse_kl
            row.append(factors[token] * (share - (index == target) + kl_weight * share * slope))
        costs.append(factors[token] * (ce + kl_weight * kl))
        all_ce.append(ce)
        all_kl.append(kl)
        d_logits.append(row)
    gradient = torch.tensor(d_logits, dtype=torch.float64)
    vectors = (torch.tensor(values, dtype=torch.float64) for values in (costs, all_ce, all_kl))
    return *vectors, gradient @ case.weight, gradient.T @ case.hidden


@for_each_implementation
@given(cases(), st.sampled_from(["sum", "mean", "none"]), st.booleans(), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_equals_sums_of_probabilities_by_string(
    implementation: str, case: Case, reduction: str, forward: bool, chunk_tokens: int
) -> None:
    kept = [float(target >= 0) for target in case.targets]
    factors = [factor / sum(kept) for factor in kept] if reduction == "mean" else kept
    upstream = torch.arange(1, len(kept) + 1).double() if reduction == "none" else torch.ones((), dtype=torch.float64)
    factors_above = [u * f for u, f in zip(upstream.expand(len(kept)).tolist(), factors, strict=True)]
    found = case.run(
        IMPLEMENTATIONS[implementation], upstream, case.buckets, kl_weight=1.3, reduction=reduction,
        kl_direction="forward" if forward else "reverse", chunk_tokens=chunk_tokens,
    )  # fmt: skip
    costs, ce, kl, _, _ = expected_of(case, factors, 1.3, forward)
    *_, d_hidden, d_weight = expected_of(case, factors_above, 1.3, forward)
    expected = (costs if reduction == "none" else costs.sum(), ce, kl, d_hidden, d_weight)
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12)


ONE = torch.ones((), dtype=torch.float64)


@for_each_implementation
@given(cases(), st.randoms(use_true_random=False), st.sampled_from(["reverse", "forward"]))
@few_examples
def test_the_order_of_ids_changes_nothing(implementation: str, case: Case, random: object, direction: str) -> None:
    own, ref = (random.sample(range(len(pieces)), len(pieces)) for pieces in (case.own, case.ref))
    targets = torch.tensor([own.index(target) if target >= 0 else target for target in case.targets.tolist()])
    pieces = [case.own[index] for index in own], [case.ref[index] for index in ref]
    heads = (case.hidden, case.weight[own], targets, case.ref_hidden, case.ref_weight[ref])
    other, head = Case(*pieces, *heads), IMPLEMENTATIONS[implementation]
    *values, d_weight = case.run(head, ONE, case.buckets, kl_direction=direction)
    expected = *values, d_weight[own]
    for a, e in zip(other.run(head, ONE, other.buckets, kl_direction=direction), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@given(cases())
@few_examples
def test_the_buckets_have_all_of_the_mass(case: Case) -> None:
    for x, head, by in zip((case.hidden, case.ref_hidden), (case.weight, case.ref_weight), case.buckets, strict=True):
        logits = x @ head.T
        for pool in (Partition.pool, lambda by, logits: reference.pooled(logits, by)):
            probabilities = pool(by, logits.log_softmax(-1)).exp()
            torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(x), dtype=torch.float64))
            torch.testing.assert_close(pool(by, logits).logsumexp(-1), logits.logsumexp(-1), rtol=1e-12, atol=1e-12)


@dataclass
class Equal:
    """Two models of one vocabulary."""

    case: Case
    pieces: int = 29

    @classmethod
    def of(cls, seed: int) -> "Equal":
        generator = torch.Generator().manual_seed(seed)
        shapes = ((5, HIDDEN), (cls.pieces, HIDDEN), (5, REF_HIDDEN), (cls.pieces, REF_HIDDEN))
        made = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
        return cls(Case([], [], *made[:2], torch.tensor([0, -100, 28, 3, 3]), *made[2:]))


@for_each_implementation
@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("seed", range(3))
def test_a_bucket_for_each_piece_is_the_kl_without_buckets(implementation: str, direction: str, seed: int) -> None:
    equal, head = Equal.of(seed), IMPLEMENTATIONS[implementation]
    bucket = torch.randperm(equal.pieces, generator=torch.Generator().manual_seed(seed))
    found = equal.case.run(head, ONE, Buckets.of(bucket, bucket), kl_direction=direction)
    for a, e in zip(found, equal.case.run(head, ONE, None, kl_direction=direction), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@for_each_implementation
@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_one_bucket_for_all_has_no_kl(implementation: str, direction: str) -> None:
    equal = Equal.of(0)
    buckets = Buckets.of(*torch.zeros(2, equal.pieces, dtype=torch.int64))
    head = IMPLEMENTATIONS[implementation]
    loss, _, kl, *gradients = equal.case.run(head, ONE, buckets, kl_direction=direction, ce_weight=0.0)
    for value in (loss, kl, *gradients):
        torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-14)


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("extreme", [200.0, -200.0])
@pytest.mark.parametrize("where", ["a tail", "a bucket"])
def test_extreme_logits_in_float32(direction: str, extreme: float, where: str) -> None:
    """The error is at most twice that of plain PyTorch, or a few roundings."""
    generator = torch.Generator().manual_seed(0)
    hidden, ref_hidden = (torch.cat((torch.randn(9, 3, generator=generator), torch.ones(9, 1)), 1) for _ in range(2))
    own, ref = torch.randperm(40, generator=generator) % 7, torch.randperm(31, generator=generator) % 7
    weights = []
    for bucket in (own, ref):
        weight = torch.randn(len(bucket), 4, generator=generator)
        weight[:, 3] = extreme * (bucket == 3)
        if where == "a tail":
            weight[int((bucket == 3).nonzero()[0]), 3] = 0  # beside the others of its bucket
        weights.append(weight)
    case = Case([], [], hidden, weights[0], torch.randint(40, (9,), generator=generator), ref_hidden, weights[1])
    wide = Case([], [], *(x.double() if x.is_floating_point() else x for x in list(vars(case).values())[2:]))
    options = {"buckets": Buckets.of(own, ref), "kl_direction": direction, "reduction": "sum"}
    found, plain = (case.run(head, torch.ones(()), **options) for head in IMPLEMENTATIONS.values())
    truth = wide.run(reference.linear_ce_kl, ONE, **options)
    for a, p, e in zip(found, plain, truth, strict=True):
        assert a.isfinite().all()
        errors = [float((x.double() - e).norm() / e.norm()) for x in (a, p)]
        assert errors[0] <= max(2 * errors[1], 5e-6), errors


def test_chunks_leave_room_for_the_buckets_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def chunk(tokens: int, token_bytes: int, *, on_gpu: bool) -> int:
        asked.append((tokens, token_bytes, on_gpu))
        return 2

    monkeypatch.setattr(sys.modules["vikhr_kernels.linear_ce_kl"], "default_chunk", chunk)
    equal = Equal.of(0)
    equal.case.run(linear_ce_kl, ONE, Buckets.of(*(torch.arange(equal.pieces) % 5).expand(2, -1)))
    assert asked == [(5, (2 * equal.pieces + 2 * 5) * 8, False)]


@pytest.mark.parametrize(
    ("own", "ref", "message"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), r"own must be int64, one of each piece, not torch.float32"),
        (torch.tensor([0]), torch.zeros(2, 2, dtype=torch.int64), r"ref must be int64, .* not torch.int64 \[2, 2\]"),
        (torch.tensor([0]), torch.tensor([0], dtype=torch.int32), "ref must be int64, .* not torch.int32"),
        (torch.zeros(0, dtype=torch.int64), torch.tensor([0]), r"own must be int64, .* \[0\]"),
        (torch.tensor([0, -1]), torch.tensor([0]), "own has a bucket below 0"),
        (torch.tensor([0]), torch.tensor([0, -7]), "ref has a bucket below 0"),
        (torch.tensor([-1]), torch.tensor([-1]), "own has a bucket below 0"),
        (torch.tensor([0, 2]), torch.tensor([0, 1, 2]), "own has no piece in bucket 1"),
        (torch.tensor([0]), torch.tensor([0, 1]), "own has no piece in bucket 1"),
        (torch.tensor([0, 1, 2]), torch.tensor([1, 0]), "ref has no piece in bucket 2"),
    ],
)
def test_wrong_buckets_are_named(own: Tensor, ref: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"buckets: {message}"):
        Buckets.of(own, ref)


BUCKETS = Buckets.of(torch.arange(6) % 2, torch.arange(4) % 2)
HEADS = {
    "hidden": torch.ones(3, 2), "weight": torch.ones(6, 2), "targets": torch.zeros(3, dtype=torch.int64),
    "ref_hidden": torch.ones(3, 2), "ref_weight": torch.ones(4, 2), "kl_buckets": BUCKETS,
}  # fmt: skip


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("kl_buckets and kl_support exclude each other", {"kl_support": torch.ones(6, dtype=torch.bool)}),
        ("kl_buckets go with ref_hidden and ref_weight", {"ref_hidden": None, "ref_weight": None}),
        (
            r"kl_buckets.own.bucket must be \[6\], not \[5\]",
            {"kl_buckets": Buckets.of(torch.arange(5) % 2, BUCKETS.ref.bucket.long())},
        ),
        (r"ref_weight must be \[4, 2\], not \[6, 2\]", {"ref_weight": torch.ones(6, 2)}),
        ("kl_buckets are on meta, hidden on cpu", {"kl_buckets": BUCKETS.to(torch.device("meta"))}),
    ],
)
def test_wrong_arguments_of_the_head_are_named(message: str, changes: dict[str, object]) -> None:
    linear_ce_kl(**HEADS)
    with pytest.raises(ValueError, match=f"linear_ce_kl: {message}"):
        linear_ce_kl(**{**HEADS, **changes})
