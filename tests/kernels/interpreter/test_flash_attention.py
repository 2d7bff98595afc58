"""Small tiles, so that few tokens make many of them: before, on and after the diagonal, and out of sight."""

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from vikhr_kernels import PackedDocuments, attention_dispatch, dispatch, flash_attention, reference
from vikhr_kernels.attention_dispatch import AttentionConfiguration, Length
from vikhr_kernels.gpu import flash_attention as gpu
from vikhr_kernels.gpu.tiles import tiled

# (queries, keys, descriptors, parts): tiles of queries shorter and longer than those of keys, both ways of loading
TILES = [(32, 16, True, 1), (16, 32, False, 2)]


@pytest.fixture(params=TILES, ids=str)
def tiles(request: pytest.FixtureRequest) -> Iterator[None]:
    queries, keys, descriptors, parts = request.param
    configuration = AttentionConfiguration(0, queries, keys, 4, 1, descriptors, parts)
    with contextlib.ExitStack() as stack:
        for kernel in attention_dispatch.KERNELS:
            stack.enter_context(attention_dispatch.forcing(kernel, configuration))
        yield


def inputs(tokens: int, heads: tuple[int, int], size: int, dtype: torch.dtype, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    counts = (heads[0], heads[1], heads[1])
    return [(scale * torch.randn(tokens, count, size, generator=generator)).to(dtype) for count in counts]


def bounds(*lengths: int) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def compare(
    dtype: torch.dtype, assert_as_right: Callable, differentiate: Callable, given: list[Tensor], **options: object
) -> None:
    given = [x.to(dtype) for x in given]
    ours = differentiate(lambda *x: flash_attention(*x, **options), *given)
    plain = differentiate(lambda *x: reference.flash_attention(*x, **options), *given)
    truth = differentiate(lambda *x: reference.flash_attention(*x, **options), *(x.double() for x in given))
    # A token that sees itself alone has no gradient by q and k: what is left there is the rounding of two sums.
    some = [bool(t.any()) for t in truth]
    assert all(float(a.abs().max()) < 1e-5 for a, any_ in zip(ours, some, strict=True) if not any_)
    results = (tuple(itertools.compress(results, some)) for results in (ours, plain, truth))
    assert_as_right(*results, size=score_size(*given[:2], options.get("softmax_scale")))


def score_size(q: Tensor, k: Tensor, softmax_scale: float | None) -> float:
    """The root mean square of the scaled scores."""
    queries = q.double().unflatten(-2, (k.shape[-2], -1))  # [..., Hkv, G, D]
    scores = torch.einsum("...ihgd,...jhd->...hgij", queries, k.double())
    return float(scores.square().mean().sqrt()) * (softmax_scale or q.shape[-1] ** -0.5)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(
    ("lengths", "window", "heads", "size"),
    [
        ((1,), None, (1, 1), 64),
        ((67,), None, (2, 1), 64),
        ((64,), None, (1, 1), 128),
        ((67,), 1, (1, 1), 64),
        ((67,), 20, (4, 1), 64),
        ((67,), 68, (1, 1), 64),
        ((1, 1, 1, 40, 1, 2, 23), None, (2, 2), 64),
        pytest.param((33, 0, 31, 5), 7, (2, 1), 128, marks=pytest.mark.gate),
        ((5, 53), 16, (8, 1), 64),
        ((1,) * 35, None, (8, 4), 64),
    ],
    ids=str,
)
def test_as_right_as_plain_pytorch(
    lengths: tuple[int, ...], window: int | None, heads: tuple[int, int], size: int, dtype: torch.dtype,
    assert_as_right: Callable, differentiate: Callable,
) -> None:  # fmt: skip
    given = inputs(sum(lengths), heads, size, dtype)
    compare(dtype, assert_as_right, differentiate, given, cu_seqlens=bounds(*lengths), window=window)


@pytest.mark.gate
@pytest.mark.parametrize(
    ("architecture", "size", "length"),
    [(80, 64, "short"), (80, 128, "short"), (90, 64, "long"), (90, 128, "short"), (90, 128, "long")],
)
def test_with_the_tables_own_tiles(
    architecture: int, size: int, length: Length, dtype: torch.dtype, assert_as_right: Callable, differentiate: Callable
) -> None:
    """Whatever is said of the length: a wrong word costs time alone."""
    with dispatch.compiling_for(architecture):
        given = inputs(293, (2, 1), size, dtype)
        documents = PackedDocuments.of(bounds(131, 30, 132), 293, 100, length)
        compare(dtype, assert_as_right, differentiate, given, documents=documents)


def test_kernels_are_told_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Length]] = []
    small = AttentionConfiguration(64, 16, 16, 4, 1)
    monkeypatch.setattr(attention_dispatch, "choose", lambda kernel, *_: asked.append((kernel, _[-1])) or small)
    given = [x.requires_grad_() for x in inputs(20, (1, 1), 64, torch.float32)]
    for options, length in (({}, "short"), ({"length": "long"}, "long")):
        documents = PackedDocuments.of(bounds(20), 20, **options)
        flash_attention(*given, documents=documents).sum().backward()
        assert asked == [(kernel, length) for kernel in attention_dispatch.KERNELS]
        asked.clear()


@pytest.mark.parametrize(
    ("shape", "options", "length"),
    [
        ((2, 2046), {}, "short"),
        ((2, 2047), {}, "long"),
        ((2, 4096), {"window": 1000}, "short"),
        ((4096,), {}, "long"),
        ((4096,), {"cu_seqlens": bounds(4096)}, "short"),
    ],
    ids=str,
)
def test_whole_rows_are_long_by_their_tokens_and_packed_ones_short(
    shape: tuple[int, ...], options: dict[str, object], length: Length, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(gpu, "forward", lambda *x: asked.append(x[4]) or (x[0].clone(), x[0].new_zeros(1)))
    flash_attention(*(torch.zeros(*shape, 1, 64) for _ in range(3)), **options)
    assert asked == [length]


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_flat_and_sharp_distributions(
    scale: float, dtype: torch.dtype, assert_as_right: Callable, differentiate: Callable
) -> None:
    q, k, v = inputs(45, (2, 1), 64, dtype)
    compare(dtype, assert_as_right, differentiate, [scale * q, k, v], softmax_scale=0.11)


@pytest.mark.usefixtures("tiles")
def test_batches_are_documents_of_their_own(
    dtype: torch.dtype, assert_as_right: Callable, differentiate: Callable
) -> None:
    given = [x.unflatten(0, (3, 19)) for x in inputs(57, (4, 2), 64, dtype)]
    compare(dtype, assert_as_right, differentiate, given, window=9)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("layout", ["fused", "heads first", "odd", "expanded"])
def test_strided_inputs_and_upstream(layout: str) -> None:
    fused = torch.randn(41, 8, 64, generator=torch.Generator().manual_seed(0))
    wide = torch.cat((fused, torch.full((41, 2, 64), torch.nan)), 1)  # whatever lies beyond a slice is NaN
    q, k, v = {
        "fused": lambda: (wide[:, :4], wide[:, 4:6], wide[:, 6:8]),
        "heads first": lambda: tuple(x.transpose(0, 1).contiguous().transpose(0, 1) for x in fused.split((4, 2, 2), 1)),
        "odd": lambda: (fused[:, :4], *(torch.randn(41, 2, 65)[..., 1:] for _ in range(2))),
        "expanded": lambda: (fused[:, :4], fused[:, 4:5].expand(-1, 2, -1), fused[:1, 6:].expand(41, -1, -1)),
    }[layout]()
    assert not (layout == "fused" and k.is_contiguous())
    upstream = torch.randn(41, 64, 4, generator=torch.Generator().manual_seed(1)).transpose(1, 2)
    results = []
    for given in ((q, k, v), [x.contiguous() for x in (q, k, v)]):
        leaves = [x.detach().requires_grad_() for x in given]
        out = flash_attention(*leaves, cu_seqlens=bounds(11, 30))
        results.append((out, *torch.autograd.grad(out, leaves, upstream)))
    for a, e in zip(*results, strict=True):
        assert torch.equal(a, e)


@pytest.mark.usefixtures("tiles")
def test_a_token_sees_only_its_window_of_its_document() -> None:
    """Whatever stands in a key out of sight changes no bit."""
    q, k, v = inputs(50, (2, 1), 64, torch.float32)
    options = {"cu_seqlens": bounds(21, 29), "window": 6}
    expected = flash_attention(q, k, v, **options)
    for key in (0, 14, 15, 20, 21, 33, 49):
        changed = [x.clone() for x in (k, v)]
        for x in changed:
            x[key] = 1e4
        out = flash_attention(q, *changed, **options)
        end = min(key + 6, 21 if key < 21 else 50)
        seen = torch.zeros(50, dtype=torch.bool)
        seen[key:end] = True
        assert torch.equal(out[~seen], expected[~seen])
        assert not torch.isclose(out[seen], expected[seen]).all(dim=(1, 2)).any()


@pytest.mark.parametrize(
    ("shape", "strides", "as_it_is"),
    [
        ((5, 2, 64), (192, 64, 1), True),
        ((5, 2, 64), (128, 72, 1), False),
        ((5, 2, 64), (144, 72, 1), False),
        ((5, 2, 64), (0, 64, 1), False),
        ((1, 2, 64), (0, 64, 1), False),
        ((1, 2, 64), (64, 64, 1), False),
        ((5, 2, 64), (64, 320, 1), False),
        ((5, 2, 64), (128, 1, 2), False),
    ],
)
def test_what_tiles_cannot_be_loaded_from_is_copied(
    shape: tuple[int, ...], strides: tuple[int, ...], as_it_is: bool
) -> None:
    x = torch.arange(1000.0).as_strided(shape, strides)
    loadable = tiled(x)
    assert torch.equal(loadable, x)
    assert (loadable.data_ptr() == x.data_ptr()) == as_it_is
    assert loadable.stride() == (strides if as_it_is else (128, 64, 1))


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("made", ["before", "inside"])
def test_compiles_without_a_graph_break(made: str) -> None:
    torch._dynamo.reset()
    given = [x.requires_grad_() for x in inputs(40, (2, 1), 64, torch.float32)]
    documents = PackedDocuments.of(bounds(3, 37), 40, 7)

    def operation(*x: Tensor) -> Tensor:
        return flash_attention(
            *x, documents=documents if made == "before" else PackedDocuments.of(bounds(3, 37), 40, 7)
        )

    compiled = torch.compile(operation, fullgraph=True, backend="aot_eager")
    for run in range(2):  # the second with what the first has made
        results = [(out := f(*given), *torch.autograd.grad(out.sum(), given)) for f in (compiled, operation)]
        assert all(map(torch.equal, *results)), run


def test_no_token_at_all() -> None:
    q, k, v = (x.requires_grad_() for x in inputs(0, (2, 1), 64, torch.float32))
    out = flash_attention(q, k, v)
    assert out.shape == (0, 2, 64)
    assert [g.shape for g in torch.autograd.grad(out.sum(), (q, k, v))] == [x.shape for x in (q, k, v)]


def test_other_head_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="q has heads of 80 elements; the kernels are for 64 and 128"):
        flash_attention(*inputs(3, (2, 1), 80, torch.float32))
