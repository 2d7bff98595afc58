"""Registered operations return what their fake kernels say: by the kernel and eagerly, with autocast and without."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vikhr_kernels import Buckets, PackedDocuments, allow_triton, dispatch
from vikhr_kernels.reference import accumulation_dtype

Make = Callable[..., Tensor]


def _attention(normal: Make, tokens: int) -> tuple[list[Tensor], list[Any]]:
    documents = PackedDocuments.of(torch.tensor([0, tokens // 2, tokens], dtype=torch.int32), tokens)
    queries, keys, values = normal(tokens, 4, 64), normal(tokens, 2, 64), normal(tokens, 2, 64)
    ranges = [documents.cu_seqlens, *documents.ranges, documents.order]
    return [queries, keys, values, *ranges], [documents.positions_seen, "short", 0.4]


def _attention_backward(normal: Make, tokens: int) -> tuple[Any, ...]:
    tensors, settings = _attention(normal, tokens)
    return normal(tokens, 4, 64), *tensors, *torch.ops.vikhr.flash_attention(*tensors, *settings), *settings


def _head(normal: Make, tokens: int, with_gradient: bool) -> tuple[Any, ...]:
    wide = accumulation_dtype(normal(1).dtype)
    coefficients = (torch.ones(tokens, dtype=wide) for _ in range(3))
    ids, support = torch.arange(tokens) % 11, torch.arange(11) < 6
    models = normal(tokens, 4), normal(11, 4), ids, normal(tokens, 3), normal(11, 3)
    return *models, *coefficients, support, [], False, 2, with_gradient


def _head_with_buckets(normal: Make, tokens: int, with_gradient: bool) -> tuple[Any, ...]:
    *models, ref_weight = _head(normal, tokens, with_gradient)[:5]
    coefficients = _head(normal, tokens, with_gradient)[5:8]
    buckets = Buckets.of(torch.arange(11) % 4, torch.arange(7) % 4)
    return *models, ref_weight[:7], *coefficients, None, [*buckets.own, *buckets.ref], True, 2, with_gradient


def _adamw(normal: Make, tokens: int) -> tuple[Any, ...]:
    masters = [torch.ones(tokens)], [torch.zeros(tokens)], [torch.zeros(tokens)]
    return masters[0], [], [normal(tokens)], *masters[1:], torch.ones(()), 1, 1e-3, 0.9, 0.95, 1e-8, 0.1, 0


def _scale(normal: Make, tokens: int) -> tuple[Any, ...]:
    x = normal(tokens, 8)
    return torch.empty_like(x), x, torch.ones((), dtype=accumulation_dtype(x.dtype)), False


def _wide(normal: Make, tokens: int) -> Tensor:
    x = normal(tokens)
    return x.to(accumulation_dtype(x.dtype))


# name: the operations' arguments, given a maker of tensors and a number of tokens
ARGUMENTS: dict[str, Callable[[Make, int], tuple[Any, ...]]] = {
    "rms_norm": lambda normal, n: (normal(n, 8), normal(8), 1e-5, None),
    "rms_norm residual": lambda normal, n: (normal(n, 8), normal(8), 1e-5, normal(n, 8)),
    "rms_norm_backward": lambda normal, n: (normal(n, 8), None, normal(n, 8), normal(8), _wide(normal, n)),
    "rms_norm_backward residual": lambda normal, n: (
        normal(n, 8), normal(n, 8), normal(n, 8), normal(8), _wide(normal, n),
    ),
    "rope": lambda normal, n: (normal(n, 4, 6), normal(n, 2, 6), torch.arange(n), 50.0, False),
    "swiglu_rows": lambda normal, n: (normal(n, 7), normal(n, 7)),
    "swiglu_backward": lambda normal, n: (normal(n, 7), normal(n, 7), normal(n, 7)),
    "flash_attention": lambda normal, n: sum(map(tuple, _attention(normal, n)), ()),
    "flash_attention_backward": _attention_backward,
    "linear_ce_kl": lambda normal, n: _head(normal, n, False),
    "linear_ce_kl gradient": lambda normal, n: _head(normal, n, True),
    "linear_ce_kl buckets": lambda normal, n: _head_with_buckets(normal, n, False),
    "linear_ce_kl buckets gradient": lambda normal, n: _head_with_buckets(normal, n, True),
    "scale_into": _scale,
    "adamw": _adamw,
}  # fmt: skip


@pytest.fixture(params=["kernel", "eager"])
def _implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    allow_triton(request.param == "kernel")
    yield
    allow_triton(True)


def layouts(result: object) -> list[tuple[object, ...]]:
    return [(x.shape, x.dtype, x.stride()) for x in tree_leaves(result) if isinstance(x, Tensor)]


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("tokens", [5, 1, 0])
def test_results_are_what_the_fake_kernel_says(name: str, dtype: torch.dtype, sliced: bool, tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        whole = torch.randn(*shape[:-1], shape[-1] * (1 + sliced), generator=generator).to(dtype)
        return whole[..., : shape[-1]] if len(shape) > 1 and name not in ("scale_into", "adamw") else whole[: shape[0]]

    operation = getattr(torch.ops.vikhr, name.split()[0])
    given = ARGUMENTS[name](normal, tokens)
    mode = FakeTensorMode()
    fakes = tree_map_only(Tensor, mode.from_tensor, given)
    for autocast in (contextlib.nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        with autocast:
            real = layouts(operation(*given))
            with mode:
                assert layouts(operation(*fakes)) == real


def test_all_operations_are_looked_at() -> None:
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("vikhr::")}
    assert {f"vikhr::{name.split()[0]}" for name in ARGUMENTS} == registered


def test_no_device_s_autocast_reaches_into_an_operation() -> None:
    @dispatch.custom_op("vikhr_test::probe")
    def probe(x: Tensor) -> Tensor:
        keys = (getattr(torch._C.DispatchKey, f"Autocast{device}") for device in ("CPU", "CUDA"))
        assert all(torch._C._dispatch_tls_is_dispatch_key_excluded(key) for key in keys)
        return x @ x

    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert probe(x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
