"""Every complaint that the emulator can make of memory and barriers, and silence where all is well."""

import pytest
import torch

pytest.importorskip("ptx_emulator", exc_type=ImportError)
from handwritten import run

pytestmark = pytest.mark.slow

SCHEDULES = [{"seed": seed, "preempts": seed % 2 == 1, "late": seed > 0 and seed % 4 < 2} for seed in range(8)]

STORE, OUT = "st.shared.b32 [%r4], %r1;", "st.global.b32 [%rd5], %r21;"
LOAD = "xor.b32 %r20, %r4, 128;\nld.shared.b32 %r21, [%r20];"
COPY_FROM = (
    "shl.b32 %r14, %r1, 4; add.s32 %r15, %r2, %r14; and.b32 %r16, %r1, 31; mul.wide.u32 %rd7, %r16, 16; "
    "add.s64 %rd6, %rd1, %rd7;\n"
)
COPY = COPY_FROM + "cp.async.cg.shared.global [ %r15 + 0 ], [ %rd6 + 0 ], 0x10, 16; cp.async.commit_group;\n"
READ = "\nld.shared.b32 %r21, [%r4];" + OUT
INIT = "setp.eq.b32 %p1, %r1, 0; @%p1 mbarrier.init.shared::cta.b64 [%r2], 1;\n"
ARRIVE = "@%p1 mbarrier.arrive.shared::cta.b64 _, [%r2];\n"
WAIT = "mov.b32 %r30, 0; $wait: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r2], %r30; @!%p3 bra $wait;\n"
INVAL = "@%p1 mbarrier.inval.shared::cta.b64 [%r2];"
LOW = "setp.lt.u32 %p1, %r1, 16;\n"
# 64 x 8 and 8 x 16 elements of shared memory as factors; sums in %r50 to %r53
ZEROS = "mov.b32 %r70, 0; st.shared.v4.b32 [%r15], {%r70, %r70, %r70, %r70};"
UNFENCED = COPY_FROM + ZEROS + "bar.sync 0; mov.b64 %rd8, 0x0000000800400040; setp.ne.b32 %p5, %r1, -1;"
FACTORS = UNFENCED.replace("bar.sync 0;", "fence.proxy.async.shared::cta; bar.sync 0;") + "\n"
FENCE = "wgmma.fence.sync.aligned;\n"
PRODUCT = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r50,%r51,%r52,%r53}, %rd8, %rd8, %p5, 1, 1, 0, 0;"
FINISH = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;"
# Warps 0 and 1 read, each then meets warp 2, which writes.
READERS = """
    st.shared.b32 [%r4], %r1; bar.sync 0; shr.u32 %r40, %r1, 5; setp.eq.b32 %p1, %r40, 0; setp.eq.b32 %p2, %r40, 1;
    @%p1 bra $first; @%p2 bra $second; bar.sync 1, 64; bar.sync 2, 64; st.shared.b32 [%r2], %r1; bra $end;
    $first: ld.shared.b32 %r21, [%r2]; bar.sync 1, 64; bra $end;
    $second: ld.shared.b32 %r21, [%r2]; bar.sync 2, 64;
    $end:"""
HALF = "setp.lt.u32 %p1, %r1, 16; @%p1 bra $x;\n"


def findings(body: str, warps: int, blocks: int) -> dict[str, set[int]]:
    """Lines by kind, over all schedules."""
    found: dict[str, set[int]] = {}
    for schedule in SCHEDULES:
        tensors = torch.arange(256, dtype=torch.int32), torch.zeros(256, dtype=torch.int32)
        for kind, _, line in run(body, *tensors, warps=warps, blocks=blocks, **schedule):
            found.setdefault(kind, set()).add(line)
    return found


@pytest.mark.parametrize(
    ("body", "warps"),
    [
        (STORE + "bar.sync 0;" + LOAD + OUT, 4),
        ("st.global.b32 [%rd2], 7;", 4),  # a value that every warp holds
        (COPY + "cp.async.wait_group 0; bar.sync 0;" + READ, 1),
        (INIT + "bar.sync 0;" + ARRIVE + WAIT, 2),
        (INIT + "bar.sync 0;" + STORE.replace("%r4", "%r4+16") + ARRIVE + WAIT, 1),
        (INIT + "bar.sync 0;" + ARRIVE + WAIT + "bar.sync 0;" + INVAL, 2),
        ("atom.global.add.u32 %r21, [%rd2], 1;", 4),
        (COPY_FROM + "cp.async.ca.shared.global [%r15], [%rd6], 16, 4; cp.async.wait_all; bar.sync 0;" + READ, 1),
        (READERS, 3),
        (FACTORS + FENCE + PRODUCT + "wgmma.commit_group.sync.aligned;" + PRODUCT + FINISH, 4),
    ],
    ids=[
        "exchange",
        "replicated",
        "cp.async",
        "mbarrier",
        "mbarrier and stores",
        "inval",
        "atomics",
        "part of a copy",
        "readers by barriers of their own",
        "a product after another",
    ],
)
def test_nothing_is_found_where_nothing_is_wrong(body: str, warps: int) -> None:
    assert findings(body, warps, 1) == {}


@pytest.mark.parametrize(
    ("body", "warps", "blocks", "kind", "line"),
    [
        (STORE + "\n" + LOAD + OUT, 2, 1, "race in shared memory", 3),
        (STORE + "bar.sync 0;" + LOAD + "\n" + STORE + OUT, 2, 1, "race in shared memory", 3),
        (LOAD + OUT, 1, 1, "read of shared memory never written", 2),
        ("\nst.shared.b32 [%r4+8192], %r1;", 1, 1, "shared memory out of bounds", 2),
        ("\nst.shared.b32 [%r4+2], %r1;", 1, 1, "misaligned access", 2),
        ("ld.global.b32 %r21, [%rd4+1000];", 1, 1, "global memory out of bounds", 1),
        ("ld.global.v4.b32 {%r21,%r22,%r23,%r24}, [%rd4];", 1, 1, "misaligned access", 1),
        ("ld.global.b32 %r21, [%rd2];\nst.global.b32 [%rd2], %r1;", 2, 1, "race in global memory", 2),
        ("st.global.b32 [%rd5], %r1;\nld.global.b32 %r21, [%rd5];", 1, 2, "race in global memory between blocks", 1),
        (COPY + "bar.sync 0;" + READ, 1, 1, "read of an asynchronous copy not waited for", 4),
        (COPY + "cp.async.wait_group 1; bar.sync 0;" + READ, 1, 1, "read of an asynchronous copy not waited for", 4),
        (COPY + "st.shared.b32 [%r15], %r1;", 1, 1, "write over an asynchronous copy not waited for", 3),
        (COPY + "cp.async.wait_group 0;" + READ, 4, 1, "race in shared memory", 4),
        (HALF + "bar.sync 0; $x:", 1, 1, "barrier by part of a warp", 2),
        (HALF + "shfl.sync.bfly.b32 %r21, %r1, 1, 31, -1; $x:", 1, 1, "lanes without all of their members", 2),
        (INIT + "bar.sync 0;\n" + WAIT, 2, 1, "deadlock", 3),
        ("$again: bra $again;", 1, 1, "doesn't end", 1),
        (WAIT, 1, 1, "use of memory that isn't an mbarrier", 1),
        (INIT + ARRIVE + WAIT, 2, 1, "race on an mbarrier", 3),
        (INIT + "bar.sync 0;" + ARRIVE + WAIT + INVAL, 2, 1, "race on an mbarrier", 4),
        (INIT + "bar.sync 0;\n" + STORE, 2, 1, "write over an mbarrier", 3),
        (INIT + "bar.sync 0;\n" + INVAL.replace("@%p1 ", "") + READ, 1, 1, "read of shared memory never written", 4),
        (INIT + INIT, 1, 1, "init of an mbarrier that is one already", 2),
        (INIT + ARRIVE.replace("arrive", "arrive.expect_tx").replace("]", "], 16") + INVAL, 1, 1,
         "inval of an mbarrier in the middle of a phase", 3),
        ("mbarrier.init.shared::cta.b64 [%r2], 1;", 1, 1, "mbarrier init by several lanes", 1),
        ("trap;", 1, 1, "trap", 1),
        ("mov.b64 %rd9, -4; ld.global.b32 %r21, [%rd9];", 1, 1, "global memory out of bounds", 1),
        ("ld.shared.b32 %r21, [%rd1];", 1, 1, "shared memory out of bounds", 1),
        (".local .align 16 .b8 depot[16]; mov.b64 %rd9, depot;\nst.local.b32 [%rd9-16], %r1;", 1, 1,
         "local memory out of bounds", 2),
        (LOW + "@%p1 shfl.sync.bfly.b32 %r21, %r1, 1, 31, -1;", 1, 1, "lanes without all of their members", 2),
        (LOW + "@%p1 vote.sync.ballot.b32 %r21, %p1, -1;", 1, 1, "lanes without all of their members", 2),
        (LOW + "@%p1 redux.sync.add.s32 %r21, %r1, -1;", 1, 1, "lanes without all of their members", 2),
        (LOW + "@%p1 bar.warp.sync -1;", 1, 1, "lanes without all of their members", 2),
        (LOW + "@%p1 fence.proxy.async;", 1, 1, "asynchronous instruction by part of a warp", 2),
        (LOW + COPY + "@%p1 cp.async.wait_group 0;", 1, 1, "asynchronous instruction by part of a warp", 4),
        (COPY.replace("%rd6 + 0", "%rd6 + 4"), 1, 1, "misaligned access", 2),
        (FACTORS + PRODUCT + FINISH, 4, 1, "wgmma without wgmma.fence", 3),
        (FACTORS + FENCE + PRODUCT + FINISH + "\n" + PRODUCT.replace("%r5", "%r6") + FINISH, 4, 1,
         "wgmma without wgmma.fence", 5),
        (FACTORS + FENCE + PRODUCT + "wgmma.commit_group.sync.aligned; add.f32 %r60, %r50, %r50;" + FINISH, 4, 1,
         "use of registers of a wgmma not waited for", 4),
        (FACTORS + FENCE + PRODUCT, 4, 1, "end with products not waited for", 5),
        (FACTORS + FENCE + PRODUCT + "bar.sync 0;" + ZEROS + FINISH, 4, 1,
         "write over what a wgmma not waited for reads", 4),
        (UNFENCED + FENCE + PRODUCT + FINISH, 4, 1, "asynchronous read without fence.proxy.async", 3),
        (UNFENCED + "fence.proxy.async.global;" + FENCE + PRODUCT + FINISH, 4, 1,
         "asynchronous read without fence.proxy.async", 3),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found_at_its_line(body: str, warps: int, blocks: int, kind: str, line: int) -> None:
    found = findings(body, warps, blocks)
    assert line in found.get(kind, set()), found


def test_the_tensor_that_an_access_misses_is_named() -> None:
    tensors = torch.arange(256, dtype=torch.int32), torch.zeros(256, dtype=torch.int32)
    (found,) = run("add.s64 %rd6, %rd5, 1024; st.global.b32 [%rd6], 1;", *tensors)
    assert found[:2] == (
        "global memory out of bounds",
        "block 0, warp 0, lane 0: write of 4 bytes at byte 1024 of second, which has 1024",
    )


def test_blocks_and_warps_are_shuffled_by_the_seed_alone() -> None:
    """Each warp takes a ticket: tickets depend on the seed, and the same seed gives the same ones."""
    body = (
        "and.b32 %r5, %r1, 31; setp.eq.b32 %p1, %r5, 0; mov.b32 %r21, 0; "
        "@%p1 atom.global.add.u32 %r21, [%rd1], 1; @%p1 st.global.b32 [%rd5], %r21;"
    )
    tickets = []
    for seed in (0, 1, 1, 2):
        first, second = torch.zeros(256, dtype=torch.int32), torch.zeros(256, dtype=torch.int32)
        assert not run(body, first, second, warps=8, seed=seed, preempts=seed > 0)
        tickets.append(second[::32].tolist())
    assert tickets[0] == list(range(8))
    assert tickets[1] == tickets[2] != tickets[3]
    assert all(sorted(each) == list(range(8)) for each in tickets)
