"""What single instructions compute, by PTX written by hand."""

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("ptx_emulator", exc_type=ImportError)
from handwritten import bits, run, values

pytestmark = pytest.mark.slow

WORDS = [0, 1, 0x80000000, 0xFFFFFFFF, 0x12345678, 0x89ABCDEF]
NAN, ONE_NAN = 0x7FC00000, 0x7FFFFFFF
FLOATS = [1.00390625, 1.01171875, -1.0039063, 3.4e38, math.inf, 1e-40, 6.1e-5, 5.9e-8, 2.9e-8, 65519.9, 65520.0]


EVERYTHING = """
    st.shared.b32 [%r4], %r1; bar.sync 0; ld.shared.v2.b32 {%r20, %r21}, [%r2+8]; ld.param.b64 %rd8, [first];
    setp.eq.b32 %p1, %r1, 0; @%p1 mbarrier.init.shared::cta.b64 [%r2+2048], 1; bar.sync 0;
    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2+2048], 0; mov.b32 %r30, 0;
    $wait: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r2+2048], %r30; @!%p3 bra $wait;
    cp.async.ca.shared.global [%r4], [%rd4], 4; cp.async.commit_group; cp.async.wait_group 0;
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r22}, [%r2]; shfl.sync.idx.b32 %r23|%p4, %r22, 3, 31, -1;
    mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%r40,%r41,%r42,%r43}, {%r22,%r22}, {%r22}, {%r40,%r41,%r42,%r43};
    wgmma.fence.sync.aligned; setp.ne.b32 %p5, %r1, 77;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r50,%r51,%r52,%r53}, %rd8, %rd8, %p5, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; atom.global.add.u32 %r24, [%rd1], 1;
    cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r2], [%rd8, {%r1, %r1}], [%r2+2048];
    cvt.rn.bf16.f32 %rs1, %r20; mul.wide.u32 %rd9, %r20, %r21; bfe.u32 %r25, %r20, %r21, 5; st.global.b16 [%rd5], %rs1
"""


def signed(x: int) -> int:
    return x - (x >> 31 << 32)


@pytest.mark.parametrize(
    ("body", "inputs", "expected"),
    [
        ("prmt.b32 %r11, %r10, 0x55667788, 0x3715;", [0xAABBCCDD], [0xAA55CC77]),
        ("prmt.b32 %r11, %r10, 0, 0xba98;", [0x80FF007F], [0xFFFF0000]),
        ("bfe.u32 %r11, %r10, 4, 8;", WORDS, [x >> 4 & 255 for x in WORDS]),
        ("bfe.s32 %r11, %r10, 8, 8;", WORDS, [(((x >> 8 & 255) ^ 128) - 128) & 0xFFFFFFFF for x in WORDS]),
        ("bfi.b32 %r11, 0xFFFFFFFF, %r10, 4, 8;", WORDS, [x | 0xFF0 for x in WORDS]),
        ("lop3.b32 %r11, %r10, 0xF0F0F0F0, 0xCCCCCCCC, 0xe8;", WORDS,
         [x & 0xF0F0F0F0 | x & 0xCCCCCCCC | 0xF0F0F0F0 & 0xCCCCCCCC for x in WORDS]),
        ("brev.b32 %r11, %r10;", [1, 0x80000001], [0x80000000, 0x80000001]),
        ("popc.b32 %r11, %r10;", WORDS, [bin(x).count("1") for x in WORDS]),
        ("clz.b32 %r11, %r10;", WORDS, [32 - x.bit_length() for x in WORDS]),
        ("shf.l.wrap.b32 %r11, %r10, 0x1, 4;", WORDS, [(1 << 4 | x >> 28) & 0xFFFFFFFF for x in WORDS]),
        ("shr.s32 %r11, %r10, 40;", WORDS, [0xFFFFFFFF if x >> 31 else 0 for x in WORDS]),
        ("shl.b32 %r11, %r10, 32;", WORDS, [0] * 6),
        ("mul.hi.s32 %r11, %r10, 3;", WORDS, [signed(x) * 3 >> 32 & 0xFFFFFFFF for x in WORDS]),
        ("mad.lo.cc.u32 %r12, %r10, 7, 0xFFFFFFFF; madc.hi.u32 %r11, %r10, 7, 0;", WORDS,
         [(x * 7 >> 32) + ((x * 7 & 0xFFFFFFFF) + 0xFFFFFFFF >> 32) for x in WORDS]),
        ("div.s32 %r11, %r10, -3;", [7, 0xFFFFFFF9], [0xFFFFFFFE, 2]),
        ("rem.s32 %r11, %r10, 3;", [7, 0xFFFFFFF9], [1, 0xFFFFFFFF]),
        ("fma.rn.f32 %r11, %r10, %r10, 0fBF800000;", [bits(1 + 2**-12)], [bits(2**-11 + 2**-24)]),
        ("mul.ftz.f32 %r11, %r10, 0f3F800000;", [1, 0x80000001], [0, 0x80000000]),
        ("min.f32 %r11, %r10, 0f3F800000;", [NAN, bits(-1.0)], [bits(1.0), bits(-1.0)]),
        ("max.NaN.f32 %r11, %r10, 0f3F800000;", [NAN, bits(2.0)], [ONE_NAN, bits(2.0)]),
        ("add.f32 %r11, %r10, 0f3F800000;", [NAN], [ONE_NAN]),
        ("setp.ltu.f32 %p1, %r10, 0f3F800000; selp.b32 %r11, 1, 0, %p1;", [NAN, bits(2.0), 0], [1, 0, 1]),
        ("setp.ne.f32 %p1, %r10, 0f3F800000; selp.b32 %r11, 1, 0, %p1;", [NAN, bits(2.0), bits(1.0)], [0, 1, 0]),
        ("setp.gt.ftz.f32 %p1, %r10, 0f00000000; selp.b32 %r11, 1, 0, %p1;", [1, bits(1e-30)], [0, 1]),
        ("setp.gt.s32 %p2, %r10, 5; setp.lt.and.s32 %p1|%p3, %r10, 9, !%p2; selp.b32 %r11, 1, 0, %p1;", [3, 7], [1, 0]),
        ("cvt.rni.s32.f32 %r11, %r10;", [bits(x) for x in (0.5, 1.5, -2.5, 3e9, math.nan)],
         [0, 2, 0xFFFFFFFE, 0x7FFFFFFF, 0]),
        ("cvt.rzi.u32.f32 %r11, %r10;", [bits(x) for x in (-1.0, 5e9, 2.9)], [0, 0xFFFFFFFF, 2]),
        ("cvt.s64.s32 %rd10, %r10; cvt.rn.f32.s64 %r11, %rd10;", WORDS, [bits(float(signed(x))) for x in WORDS]),
        ("cvt.rz.f32.f64 %r11, 0d3FF0000020000000;", [0], [bits(1.0 + 2**-23)]),
        ("cvt.u16.u32 %rs5, %r10; cvt.s32.s16 %r11, %rs5;", WORDS,
         [(((x & 0xFFFF) ^ 0x8000) - 0x8000) & 0xFFFFFFFF for x in WORDS]),
        ("mov.b32 {%rs1, %rs2}, %r10; mov.b32 %r11, {%rs2, %rs1};", [0x12345678], [0x56781234]),
        ("mov.u32 %r10, %tid.x; shfl.sync.bfly.b32 %r11, %r10, 5, 31, -1;", [0] * 32, [i ^ 5 for i in range(32)]),
        ("mov.u32 %r10, %tid.x; shfl.sync.up.b32 %r11|%p1, %r10, 1, 0x1800, -1; @!%p1 mov.b32 %r11, 99;", [0] * 32,
         [99 if i % 8 == 0 else i - 1 for i in range(32)]),
        ("mov.u32 %r10, %tid.x; setp.lt.u32 %p1, %r10, 3; vote.sync.ballot.b32 %r11, !%p1, -1;", [0], [0xFFFFFFF8]),
        ("mov.u32 %r10, %tid.x; redux.sync.max.s32 %r11, %r10, -1;", [0], [31]),
        ("{ .reg .b32 inner; mov.b32 inner, 3; add.s32 %r11, %r10, inner; }", [4], [7]),
        ("cvta.shared.u64 %rd10, %rd2; cvta.to.shared.u64 %rd11, %rd10; sub.s64 %rd12, %rd11, %rd2; "
         "cvt.u32.u64 %r11, %rd12;", [0], [0]),
    ],
)  # fmt: skip
def test_values(body: str, inputs: list[int], expected: list[int]) -> None:
    assert values(body, inputs) == expected


@pytest.mark.parametrize(
    ("body", "inputs", "expected"),
    [
        ("cvt.u16.u32 %rs1, %r10; fma.rn.f16 %rs2, %rs1, 0x0ffe, %rs1; cvt.u32.u16 %r11, %rs2;", [0x3C01], [0x3C01]),
        ("cvt.sat.u64.s64 %rd10, 0x4000000000000001; cvt.u32.u64 %r11, %rd10;", [0], [1]),
        ("cvt.rz.f32.s64 %r11, 0x7fffffffffffffff;", [0], [0x5EFFFFFF]),
        ("cvt.rn.bf16.s32 %rs1, %r10; cvt.u32.u16 %r11, %rs1;", [2**30 + 2**22 + 1], [0x4E81]),
        ("cvt.rzi.s32.f64 %r11, 0d7FF8000000000000;", [0], [0x80000000]),
        ("cvt.rzi.s32.f32 %r11, %r10;", [NAN], [0]),
        ("mov.b32 %r11, 0b101;", [0], [5]),
        ("mul.hi.u64 %rd10, -1, -1; cvt.u32.u64 %r11, %rd10;", [0], [0xFFFFFFFE]),
        ("min.f64 %rd10, 0d7FF8000000000000, 0d3FF0000000000000; cvt.rzi.s32.f64 %r11, %rd10;", [0], [1]),
        ("cvta.param.u64 %rd10, first; ld.b64 %rd11, [%rd10]; sub.s64 %rd12, %rd11, %rd1; cvt.u32.u64 %r11, %rd12;",
         [0], [0]),
    ],
)  # fmt: skip
def test_numbers_are_rounded_once_and_kept_in_bounds(body: str, inputs: list[int], expected: list[int]) -> None:
    assert values(body, inputs) == expected


def halves(x: torch.Tensor) -> list[int]:
    return [bits & 0xFFFF for bits in x.view(torch.int16).tolist()]


def test_floats_are_rounded_to_16_bits_as_by_pytorch() -> None:
    given_bits = [bits(x) for x in FLOATS]
    packed = values("cvt.rn.bf16x2.f32 %r11, 0f3F800000, %r10;", given_bits)
    assert packed == [0x3F800000 | half for half in halves(torch.tensor(FLOATS).bfloat16())]
    assert values("cvt.rn.f16.f32 %rs1, %r10; cvt.u32.u16 %r11, %rs1;", given_bits) == halves(
        torch.tensor(FLOATS).half()
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=32, max_size=32))
def test_any_bits_are_rounded_as_by_pytorch(words: list[int]) -> None:
    floats = torch.tensor([signed(x) for x in words], dtype=torch.int32).view(torch.float32)
    for name, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        narrow = values(f"cvt.rn.{name}.f32 %rs1, %r10; cvt.u32.u16 %r11, %rs1;", words)
        expected = halves(floats.to(dtype))
        assert [x for x, f in zip(narrow, floats, strict=True) if f == f] == [
            x for x, f in zip(expected, floats, strict=True) if f == f
        ]
        wide = values(f"cvt.u16.u32 %rs1, %r10; cvt.f32.{name} %r11, %rs1;", words)
        low = torch.tensor([x & 0xFFFF for x in words]).to(torch.uint16).view(dtype)
        expected = [x & 0xFFFFFFFF for x in low.float().view(torch.int32).tolist()]
        assert [x for x, f in zip(wide, low, strict=True) if f == f] == [
            x for x, f in zip(expected, low, strict=True) if f == f
        ]


def test_lanes_that_part_meet_again() -> None:
    """A loop whose length differs from lane to lane, with a branch inside of it, then a shuffle of all."""
    body = """
        mov.u32 %r10, %tid.x; mov.b32 %r11, 0; mov.b32 %r12, 0;
        $again: setp.ge.u32 %p1, %r12, %r10; @%p1 bra $done;
        and.b32 %r13, %r12, 1; setp.eq.b32 %p2, %r13, 0; @%p2 bra $even;
        add.s32 %r11, %r11, 100; bra $next;
        $even: add.s32 %r11, %r11, 1;
        $next: add.s32 %r12, %r12, 1; bra $again;
        $done: shfl.sync.bfly.b32 %r14, %r11, 0, 31, -1; mov.b32 %r11, %r14;"""
    assert values(body, [0] * 32) == [(i + 1) // 2 + i // 2 * 100 for i in range(32)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("frobnicate.b32 %r1, %r2;", "in: frobnicate.b32 %r1, %r2"),
        ("add.sat.s32 %r1, %r2, %r3;", "the instruction isn't modelled in: add.sat.s32"),
        ("ld.global.mystery.b32 %r1, [%rd1];", ".mystery isn't modelled in: ld.global"),
        ("mov.b32 %r1, %rd1;", "an operand of 64 bits where 32 are wanted in: mov.b32"),
        ("mov.b32 %r1, nothing;", "unknown symbol nothing"),
        ("mov.b32 %r1, %mystery;", "unknown register %mystery"),
        ("bra $nowhere;", "unknown label"),
        (".mystery 5;", "unknown directive: .mystery"),
        ("add.s32 %r1, %r2;", "2 operands, not 3"),
        ("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1}, {%r2}, {%r3}, {%r4};", ".s8 aren't modelled"),
        ("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%r1}, %rd1, %rd2, 1, 1, 1;", ".e4m3 aren't modelled"),
        ("cp.async.bulk.commit_group;", "isn't modelled"),
        ("ld.shared.pred %p1, [%r2];", "the type .pred isn't modelled here"),
        ("ld.shared.b2 %r1, [%r2];", "the type .b2 isn't modelled here"),
        ("mov.b32 %r11, {};", "this move isn't modelled"),
        ("st.global.v8.b64 [%rd2], {1,1,1,1,1,1,1,1};", "more than 32 bytes at once"),
        ("selp.pred %p1, %p2, %p2, %p2;", "the type .pred isn't modelled here"),
        ("popc.b16 %r11, 7;", "the type .b16 isn't modelled here"),
        ("add.ftz.f16 %rs1, %rs1, %rs2;", "ftz is modelled for f32"),
        ("cvt.rz.f16.f32 %rs1, %r1;", "directed roundings are modelled to f32"),
        ("mov.b32 %r11, 3*4;", "not a number: 3*4"),
        ("mov.b32 %r11, 12abc;", "not a number: 12abc"),
        ("cp.async.wait_group;", "in: cp.async.wait_group"),
        ("bar.sync.mystery 0;", ".mystery isn't modelled"),
        ("prefetch.mystery [%rd1];", ".mystery isn't modelled"),
        ("discard.global.L2 [%rd1], 128;", "the instruction isn't modelled"),
        (".shared .align;", "ptx:"),
        (".reg .b32 %z<30000000>;", "more registers than a kernel has"),
        ("mma.sync %r1, %r2, %r3, %r4;", "another product"),
        ("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%r1}, {%r2}, {%r3}, {%r4};", ".e4m3 aren't modelled"),
        ("cvt.rn.satfinite.e4m3x2.f32 %rs1, %r2, %r1;", "conversions of .e4m3x2 aren't modelled"),
        ("cvt.rn.f16x2.e5m2x2 %r1, %rs1;", "conversions of .e5m2x2 aren't modelled"),
        ("fence.proxy.alias;", "isn't modelled"),
    ],
)
def test_what_is_not_modelled_is_refused_by_its_line(body: str, message: str) -> None:
    tensor = torch.zeros(32, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"^ptx:") as refusal:
        run(body, tensor, tensor)
    assert message in str(refusal.value)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_text_is_refused_or_does_no_harm(data: st.DataObject) -> None:
    """Lines lost, doubled and mixed up, and letters changed, in a kernel that has something of everything."""
    lines = [line + ";" for line in EVERYTHING.replace("\n", " ").split(";")]
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(lines) - 1))
        how = data.draw(st.sampled_from(["lose", "double", "swap", "letter"]))
        if how == "letter":
            at = data.draw(st.integers(0, len(lines[place]) - 1))
            letter = data.draw(st.sampled_from("0179%@{}[]();,.+-rpdbv_$ \x00"))
            lines[place] = lines[place][:at] + letter + lines[place][at + 1 :]
        elif how == "swap":
            other = data.draw(st.integers(0, len(lines) - 1))
            lines[place], lines[other] = lines[other], lines[place]
        else:
            lines[place : place + 1] = [lines[place]] * (2 if how == "double" else 0) or [";"]
    tensors = torch.zeros(256, dtype=torch.int32), torch.zeros(256, dtype=torch.int32)
    with contextlib.suppress(ValueError):
        run("\n".join(lines), *tensors, warps=2, seed=data.draw(st.integers(0, 3)))


def test_text_that_ends_early_is_refused() -> None:
    from ptx_emulator.library import Kernel

    for text in (
        "",
        "\x00\xff",
        ".visible .entry k(",
        ".visible .entry k() { mov.b32 %r1",
        ".version 8.7\n.target sm_90",
    ):
        with pytest.raises(ValueError, match=r"^ptx:"):
            Kernel(text)
