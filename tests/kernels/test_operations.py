"""The registered operations as PyTorch sees them: autograd, fake tensors, torch.compile, checkpointing, errors.

On a CPU they compute by the eager reference, so all of this holds without a GPU; the kernels behind them on a GPU
are tested in interpreter/ and in test_gpu.py.
"""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from vikhr_kernels import (
    Buckets,
    PackedDocuments,
    adamw,
    dispatch,
    flash_attention,
    linear,
    linear_ce_kl,
    reference,
    rms_norm,
    rope,
    scale_into,
    split_master,
    swiglu,
)

POSITIONS = torch.tensor([0, 1, 2, 0, 1])
DOCUMENTS = torch.tensor([0, 3, 5], dtype=torch.int32)
TARGETS = torch.tensor([3, -100, 0, 10, 7])
BUCKETS = Buckets.of(torch.arange(11) % 4, torch.arange(7) % 4)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss(operations: object, reduction: str, **options: object) -> Callable:
    ref = (normal(5, 3, seed=2), normal(7, 3, seed=3)) if options else ()

    def run(*inputs: Tensor) -> Tensor:
        of_dtype = (x.to(inputs[0].dtype) for x in ref)
        return operations.linear_ce_kl(*inputs, TARGETS, *of_dtype, reduction=reduction, **options)[0]

    return run


class Operations:
    rms_norm, rope, swiglu, linear, linear_ce_kl, flash_attention = map(
        staticmethod, (rms_norm, rope, swiglu, linear, linear_ce_kl, flash_attention)
    )


# name: (the operation of an implementation, its differentiable inputs)
OPERATIONS: dict[str, tuple[Callable, tuple[Tensor, ...]]] = {
    "rms_norm": (lambda ops: lambda x, w: ops.rms_norm(x, w, 1e-5), (normal(2, 5, 8), normal(8, seed=1))),
    "rms_norm_residual": (
        lambda ops: lambda x, w, r: ops.rms_norm(x, w, 1e-5, r),
        (normal(5, 8), normal(8, seed=1), normal(5, 8, seed=2)),
    ),
    "rope": (lambda ops: lambda q, k: ops.rope(q, k, POSITIONS, 50.0), (normal(5, 4, 6), normal(5, 2, 6, seed=1))),
    "swiglu": (lambda ops: ops.swiglu, (normal(3, 7), normal(3, 7, seed=1))),
    "flash_attention": (
        lambda ops: lambda q, k, v: ops.flash_attention(q, k, v, cu_seqlens=DOCUMENTS, window=2),
        (normal(5, 4, 6), normal(5, 2, 6, seed=1), normal(5, 2, 6, seed=2)),
    ),
    "flash_attention_documents": (
        lambda ops: lambda q, k, v: ops.flash_attention(q, k, v, documents=PackedDocuments.of(DOCUMENTS, 5, 2, "long")),
        (normal(5, 4, 6), normal(5, 2, 6, seed=1), normal(5, 2, 6, seed=2)),
    ),
    "flash_attention_batch": (
        lambda ops: lambda q, k, v: ops.flash_attention(q, k, v, softmax_scale=0.3),
        (normal(2, 4, 3, 6), normal(2, 4, 1, 6, seed=1), normal(2, 4, 1, 6, seed=2)),
    ),
    "linear": (lambda ops: ops.linear, (normal(5, 4), normal(3, 4, seed=1), normal(2, 4, seed=2))),
    "linear_ce_kl": (lambda ops: loss(ops, "mean"), (normal(5, 4), normal(11, 4, seed=1))),
    "linear_ce_kl_none": (lambda ops: loss(ops, "none"), (normal(5, 4), normal(11, 4, seed=1))),
    "linear_ce_kl_buckets": (
        lambda ops: loss(ops, "mean", kl_buckets=BUCKETS),
        (normal(5, 4), normal(11, 4, seed=1)),
    ),
    "linear_ce_kl_buckets_none": (
        lambda ops: loss(ops, "none", kl_buckets=BUCKETS),
        (normal(5, 4), normal(11, 4, seed=1)),
    ),
}


def by_name(name: str, operations: object = Operations) -> tuple[Callable, list[Tensor]]:
    operation, inputs = OPERATIONS[name]
    return operation(operations), [x.clone().requires_grad_() for x in inputs]


def in_a_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def total(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return sum((y.square() * torch.arange(1, y.numel() + 1).view(y.shape)).sum() for y in in_a_tuple(outputs))


@pytest.mark.parametrize("name", OPERATIONS)
def test_equals_the_reference_in_float64(name: str) -> None:
    operation, inputs = by_name(name)
    expected_operation, expected_inputs = by_name(name, reference)
    value, expected = total(operation(*inputs)), total(expected_operation(*expected_inputs))
    torch.testing.assert_close(value, expected)
    for a, e in zip(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, expected_inputs), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("narrow", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_scaling_rounds_once_or_adds(narrow: torch.dtype) -> None:
    x, factor = normal(3, 7), torch.tensor(1 / 3, dtype=torch.float64)
    out, added = torch.full((3, 7), torch.nan, dtype=narrow), normal(3, 7, seed=2)
    expected = added + x * factor
    scale_into(out, x, factor, accumulate=False)
    assert torch.equal(out, (x * factor).to(narrow))
    scale_into(added, x, factor, accumulate=True)
    torch.testing.assert_close(added, expected)


@pytest.mark.parametrize("name", OPERATIONS)
def test_compiles_without_a_graph_break(name: str) -> None:
    torch._dynamo.reset()  # the line below is one code object, of which it keeps a few
    operation, inputs = by_name(name)
    compiled = torch.compile(lambda *x: total(operation(*x)), fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(total(operation(*inputs)), inputs)
    for a, e in zip(torch.autograd.grad(compiled(*inputs), inputs), expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "linear"])
def test_autocast_changes_nothing(name: str) -> None:
    """An operation computes in its inputs' dtypes, which its fake kernel and its gradient rely on."""
    operation, inputs = by_name(name)
    inputs = [x.detach().float().requires_grad_() for x in inputs]
    expected = operation(*inputs)
    expected_gradients = torch.autograd.grad(total(expected), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        results = operation(*inputs)
        found = torch.autograd.grad(total(results), inputs)
    pairs = zip((*in_a_tuple(results), *found), (*in_a_tuple(expected), *expected_gradients), strict=True)
    assert all(torch.equal(a, e) and a.dtype == e.dtype for a, e in pairs)


def test_linear_is_pytorch_s_own_under_autocast() -> None:
    operation, inputs = by_name("linear")
    inputs = [x.detach().float().requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        results, expected = operation(*inputs), reference.linear(*inputs)
    assert all(torch.equal(a, e) and a.dtype == torch.bfloat16 for a, e in zip(results, expected, strict=True))
    pairs = zip(*(torch.autograd.grad(total(outputs).float(), inputs) for outputs in (results, expected)), strict=True)
    assert all(torch.equal(a, e) for a, e in pairs)


@pytest.mark.parametrize("name", OPERATIONS)
def test_activation_checkpointing(name: str) -> None:
    operation, inputs = by_name(name)
    expected = torch.autograd.grad(total(operation(*inputs)), inputs)
    value = checkpoint(lambda *x: total(operation(*x)), *inputs, use_reentrant=False)
    for a, e in zip(torch.autograd.grad(value, inputs), expected, strict=True):
        assert torch.equal(a, e)


def test_selective_checkpointing_saves_attention() -> None:
    """What is saved is not computed again: the registered operation runs once, its neighbours twice."""
    calls: Counter[object] = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            calls[func] += 1
            return func(*args, **(kwargs or {}))

    saved = [torch.ops.vikhr.flash_attention.default]
    operation, inputs = by_name("flash_attention")
    with Count():
        value = checkpoint(
            lambda *x: total(operation(*(2 * y for y in x))), *inputs, use_reentrant=False,
            context_fn=lambda: create_selective_checkpoint_contexts(saved),
        )  # fmt: skip
        gradients = torch.autograd.grad(value, inputs)
    assert calls[saved[0]] == 1
    assert calls[torch.ops.vikhr.flash_attention_backward.default] == 1
    expected = torch.autograd.grad(total(operation(*(2 * y for y in inputs))), inputs)
    assert all(torch.equal(a, e) for a, e in zip(gradients, expected, strict=True))


def differentiable(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.clone().requires_grad_() for x in tensors)


NO_RANGES = [DOCUMENTS.new_empty(0) for _ in range(3)]
OPCHECKS = {
    "rms_norm": lambda: (*differentiable(normal(5, 8), normal(8)), 1e-5, normal(5, 8, seed=2).requires_grad_()),
    "rms_norm_backward": lambda: (normal(5, 8), normal(5, 8), normal(5, 8), normal(8), normal(5)),
    "rope": lambda: (*differentiable(normal(5, 4, 6), normal(5, 2, 6)), POSITIONS, 50.0, False),
    "swiglu_rows": lambda: differentiable(normal(3, 7), normal(3, 7)),
    "flash_attention": lambda: (
        *differentiable(normal(5, 4, 6), normal(5, 2, 6), normal(5, 2, 6, seed=1)), DOCUMENTS, *NO_RANGES, 2, "short",
        0.4,
    ),
    "flash_attention_backward": lambda: (
        normal(5, 4, 6), normal(5, 4, 6), normal(5, 2, 6), normal(5, 2, 6, seed=1), DOCUMENTS, *NO_RANGES,
        normal(5, 4, 6), torch.empty(0, 0), 2, "short", 0.4,
    ),
    "swiglu_backward": lambda: (normal(3, 7), normal(3, 7), normal(3, 7)),
    "linear_ce_kl": lambda: (
        *differentiable(normal(5, 4), normal(11, 4)), TARGETS.clamp(min=0), normal(5, 3), normal(11, 3),
        *(torch.ones(5, dtype=torch.float64) for _ in range(3)), torch.arange(11) < 6, [], False, 2, True,
    ),
    "linear_ce_kl buckets": lambda: (
        *differentiable(normal(5, 4), normal(11, 4)), TARGETS.clamp(min=0), normal(5, 3), normal(7, 3),
        *(torch.ones(5, dtype=torch.float64) for _ in range(3)), None, [*BUCKETS.own, *BUCKETS.ref], False, 2, True,
    ),
    "scale_into": lambda: (torch.empty(3, 7), normal(3, 7), torch.tensor(0.3, dtype=torch.float64), False),
    "adamw": lambda: (
        [split_master(normal(6).float())[0]], [torch.zeros(6, dtype=torch.int16)], [normal(6).float()],
        [torch.zeros(6)], [torch.zeros(6)], torch.ones(()), 1, 1e-3, 0.9, 0.95, 1e-8, 0.1, 0,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OPCHECKS)
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.vikhr, name.split()[0]).default, OPCHECKS[name]())


def within_nan(x: Tensor) -> Tensor:
    """`x` as a slice of rows three times as long, of heads or elements, that are NaN elsewhere."""
    dimension = max(1, x.dim() - 2)
    around = torch.full_like(x, torch.nan)
    return torch.cat((around, x, around), dimension).narrow(dimension, x.shape[dimension], x.shape[dimension])


@pytest.mark.parametrize(
    "name", ["rope", "swiglu_rows", "swiglu_backward", "flash_attention", "flash_attention_backward"]
)
def test_opcheck_with_slices(name: str) -> None:
    given = [within_nan(x) if isinstance(x, Tensor) and x.dim() > 1 and x.numel() else x for x in OPCHECKS[name]()]
    torch.library.opcheck(getattr(torch.ops.vikhr, name).default, tuple(given))


@pytest.mark.parametrize("name", ["swiglu", "flash_attention", "flash_attention_batch"])
def test_slices_are_kept_for_backward_as_they_are(name: str) -> None:
    operation, inputs = by_name(name)
    slices = [within_nan(x.detach()).requires_grad_() for x in inputs]
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        output = operation(*slices)
    assert {x.data_ptr() for x in slices} <= set(kept)
    assert output.is_contiguous()


def test_swiglu_gradients_are_halves_of_one_tensor() -> None:
    gate, up = (x.requires_grad_() for x in within_nan(normal(5, 14)).chunk(2, 1))
    d_gate, d_up = torch.autograd.grad(swiglu(gate, up).sum(), (gate, up))
    assert d_gate.untyped_storage().data_ptr() == d_up.untyped_storage().data_ptr()
    assert [x.stride() for x in (d_gate, d_up)] == [(14, 1)] * 2
    assert [x.storage_offset() for x in (d_gate, d_up)] == [0, 7]


@pytest.mark.parametrize("layout", ["transposed", "expanded", "strided", "within NaN"])
def test_strided_inputs_and_upstream(layout: str) -> None:
    make = {
        "transposed": lambda x: x.clone().transpose(0, 1).contiguous().transpose(0, 1),
        "expanded": lambda x: x[:1].expand_as(x),
        "strided": lambda x: torch.stack((x, x), -1)[..., 0],
        "within NaN": within_nan,
    }[layout]
    for name in ("rms_norm_residual", "rope", "swiglu", "flash_attention"):
        operation, inputs = by_name(name)
        strided = [make(x.detach()).requires_grad_() if x.dim() > 1 else x for x in inputs]
        plain = [x.detach().contiguous().requires_grad_() for x in strided]
        outputs, expected = operation(*strided), operation(*plain)
        outputs, expected = ((y,) if isinstance(y, Tensor) else y for y in (outputs, expected))
        upstream = [make(normal(*y.shape, seed=9)) for y in outputs]
        pairs = zip(
            (*outputs, *torch.autograd.grad(outputs, strided, upstream)),
            (*expected, *torch.autograd.grad(expected, plain, [u.contiguous() for u in upstream])),
            strict=True,
        )
        for a, e in pairs:
            torch.testing.assert_close(a, e)


HALF = torch.float16
ADAMW = {"step": 1, "learning_rate": 1.0, "betas": (0.9, 0.9), "eps": 1e-8, "weight_decay": 0.0}
STATE = [[torch.zeros(3)] for _ in range(4)]
Q, K = torch.ones(5, 4, 6), torch.ones(5, 2, 6)
BATCH = Q[None], K[None], K[None]
FIVE = PackedDocuments.of(DOCUMENTS, 5)
ONE = torch.ones(())

ERRORS: list[tuple[str, Callable]] = [
    ("q must be", lambda: flash_attention(torch.ones(5, 6), K, K)),
    ("k must be", lambda: flash_attention(Q, torch.ones(4, 2, 6), K)),
    ("k has 3 heads, which don't divide the 4", lambda: flash_attention(Q, torch.ones(5, 3, 6), torch.ones(5, 3, 6))),
    ("v must be", lambda: flash_attention(Q, K, torch.ones(5, 1, 6))),
    ("v is torch.float16", lambda: flash_attention(Q, K, K.half())),
    ("window must be", lambda: flash_attention(Q, K, K, window=0)),
    ("softmax_scale must be", lambda: flash_attention(Q, K, K, softmax_scale=-1.0)),
    ("cu_seqlens is for packed", lambda: flash_attention(Q[None], K[None], K[None], cu_seqlens=DOCUMENTS)),
    ("cu_seqlens must be", lambda: flash_attention(Q, K, K, cu_seqlens=DOCUMENTS.long())),
    ("cu_seqlens has no document", lambda: flash_attention(Q, K, K, cu_seqlens=DOCUMENTS[:1])),
    ("cu_seqlens is on meta", lambda: flash_attention(Q, K, K, cu_seqlens=DOCUMENTS.to("meta"))),
    ("length must be short or long, not medium", lambda: PackedDocuments.of(DOCUMENTS, 5, length="medium")),
    ("documents go without", lambda: flash_attention(Q, K, K, window=3, documents=FIVE)),
    (r"q must be \[6, Hq, D\] to", lambda: flash_attention(Q, K, K, documents=PackedDocuments.of(DOCUMENTS, 6))),
    (r"q must be \[5, Hq, D\] to", lambda: flash_attention(*BATCH, documents=FIVE)),
    (
        r"q must be \[5, Hq, D\] to",
        lambda: reference.flash_attention(*BATCH, documents=PackedDocuments.of(DOCUMENTS, 5)),
    ),
    (
        "documents go without",
        lambda: reference.flash_attention(Q, K, K, window=3, documents=PackedDocuments.of(DOCUMENTS, 5)),
    ),
    ("x is torch.int64", lambda: rms_norm(torch.ones(2, 3, dtype=torch.int64), torch.ones(3), 1e-5)),
    (r"weight must be \[3\]", lambda: rms_norm(torch.ones(2, 3), torch.ones(2), 1e-5)),
    ("weight is torch.float16", lambda: rms_norm(torch.ones(2, 3), torch.ones(3, dtype=HALF), 1e-5)),
    ("weight is on meta", lambda: rms_norm(torch.ones(2, 3), torch.ones(3, device="meta"), 1e-5)),
    ("residual must be", lambda: rms_norm(torch.ones(2, 3), torch.ones(3), 1e-5, torch.ones(3))),
    ("q must be", lambda: rope(torch.ones(2, 3, 5), torch.ones(2, 1, 5), torch.zeros(2), 1e4)),
    ("k must be", lambda: rope(torch.ones(2, 3, 4), torch.ones(1, 1, 4), torch.zeros(2), 1e4)),
    ("k is torch.float16", lambda: rope(torch.ones(2, 3, 4), torch.ones(2, 1, 4, dtype=HALF), torch.zeros(2), 1e4)),
    ("positions must be int32", lambda: rope(torch.ones(2, 3, 4), torch.ones(2, 1, 4), torch.zeros(2), 1e4)),
    (r"positions must be \[2\]", lambda: rope(torch.ones(2, 3, 4), torch.ones(2, 1, 4), POSITIONS, 1e4)),
    ("gate must be", lambda: swiglu(torch.ones(()), torch.ones(()))),
    ("up must be", lambda: swiglu(torch.ones(2), torch.ones(3))),
    ("up is torch.float16", lambda: swiglu(torch.ones(2), torch.ones(2, dtype=HALF))),
    (r"out must be \[2\]", lambda: scale_into(torch.ones(3), torch.ones(2), ONE, accumulate=False)),
    (r"factor must be \[\]", lambda: scale_into(torch.ones(2), torch.ones(2), torch.ones(1), accumulate=False)),
    ("factor is torch.float32", lambda: scale_into(torch.ones(2), normal(2), ONE, accumulate=False)),
    ("out is torch.float64, not narrower", lambda: scale_into(normal(2), torch.ones(2), ONE, accumulate=False)),
    ("sums are float32", lambda: scale_into(torch.ones(2).half(), torch.ones(2), ONE, accumulate=True)),
    ("out is torch.int32", lambda: scale_into(torch.ones(2).int(), torch.ones(2), ONE, accumulate=False)),
    ("x is not contig", lambda: scale_into(torch.ones(2), torch.ones(4)[::2], ONE, accumulate=False)),
    ("factor is on meta", lambda: scale_into(torch.ones(2), torch.ones(2), ONE.to("meta"), accumulate=False)),
    ("2 gradients for 1", lambda: adamw(STATE[0], None, STATE[1] * 2, *STATE[2:], **ADAMW)),
    (r"parameters\[0\] is torch.float32, not bf", lambda: adamw(STATE[0], STATE[1], *STATE[1:], **ADAMW)),
    (r"gradients\[0\] must be", lambda: adamw(STATE[0], None, [torch.ones(4)], *STATE[2:], **ADAMW)),
    (r"second_moments\[0\] is", lambda: adamw(STATE[0], None, *STATE[1:3], [STATE[0][0].double()], **ADAMW)),
    (r"parameters\[0\] is not contig", lambda: adamw([torch.ones(3, 2).T], None, *STATE[1:], **ADAMW)),
    ("step is 0", lambda: adamw(STATE[0], None, *STATE[1:], **{**ADAMW, "step": 0})),
    ("gradient_scale", lambda: adamw(STATE[0], None, *STATE[1:], **ADAMW, gradient_scale=torch.ones(2))),
    (
        r"parameters\[1\] is on meta",
        lambda: adamw(
            [torch.ones(3), torch.ones(3, device="meta")], None, *([torch.ones(3)] * 2 for _ in "123"), **ADAMW
        ),
    ),
    (
        "gradient_scale is on meta",
        lambda: adamw(STATE[0], None, *STATE[1:], **ADAMW, gradient_scale=torch.ones((), device="meta")),
    ),
    ("kl_direction", lambda: linear_ce_kl(torch.ones(5, 2), torch.ones(11, 2), TARGETS, kl_direction="both")),
    ("reduction", lambda: linear_ce_kl(torch.ones(5, 2), torch.ones(11, 2), TARGETS, reduction="max")),
    ("chunk_tokens", lambda: linear_ce_kl(torch.ones(5, 2), torch.ones(11, 2), TARGETS, chunk_tokens=0)),
    (
        "kl_support is on meta",
        lambda: linear_ce_kl(
            torch.ones(5, 2), torch.ones(11, 2), TARGETS, kl_support=torch.ones(11, dtype=torch.bool, device="meta")
        ),
    ),
    (
        r"ce_weight must be \[\] or \[5\], not \[5, 1\]",
        lambda: linear_ce_kl(torch.ones(5, 2), torch.ones(11, 2), TARGETS, ce_weight=torch.ones(5, 1)),
    ),
    (
        r"kl_weight must be .* not \[5\]",  # one token must not become five
        lambda: linear_ce_kl(torch.ones(1, 2), torch.ones(11, 2), TARGETS[:1], kl_weight=torch.ones(5)),
    ),
    (
        r"num_tokens must be \[\], not \[5\]",
        lambda: linear_ce_kl(torch.ones(5, 2), torch.ones(11, 2), TARGETS, num_tokens=torch.ones(5)),
    ),
    (
        "ce_weight is on meta",
        lambda: linear_ce_kl(torch.ones(5, 2), torch.ones(11, 2), TARGETS, ce_weight=torch.ones(5, device="meta")),
    ),
    ("token_weights", lambda: linear_ce_kl(torch.ones(5, 2), torch.ones(11, 2), TARGETS, token_weights=torch.ones(4))),
]


@pytest.mark.parametrize(("message", "call"), ERRORS, ids=[message for message, _ in ERRORS])
def test_wrong_arguments_are_named(message: str, call: Callable) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_another_gpu_than_the_current_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_allowed", True)  # a trainer in this process may have forbidden kernels
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    second = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, device=torch.device("cuda:1"))
    with pytest.raises(ValueError, match="on cuda:1, the current device is cuda:0"):
        dispatch.runs_on_triton(second)
    assert dispatch.runs_on_triton(SimpleNamespace(**vars(second) | {"device": torch.device("cuda:0")}))
