"""PTX written by hand, run on two tensors of 32-bit integers."""

import struct

import torch
from ptx_emulator.library import Kernel
from torch import Tensor

HEAD = """.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 smem[];
.visible .entry handwritten(.param .u64 .ptr .global .align 1 first, .param .u64 .ptr .global .align 1 second)
{
.reg .pred %p<20>; .reg .b16 %rs<20>; .reg .b32 %r<100>; .reg .f32 %f<100>; .reg .b64 %rd<40>;
ld.param.b64 %rd1, [first]; ld.param.b64 %rd2, [second];
mov.u32 %r1, %tid.x; mov.b32 %r2, smem;
shl.b32 %r3, %r1, 2; add.s32 %r4, %r2, %r3;
mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;
"""
"""%rd1, %rd2: the tensors; %r1: the thread; %r4: its 4 bytes of shared memory; %rd4, %rd5: its element of either."""


def run(
    body: str,
    first: Tensor,
    second: Tensor,
    *,
    warps: int = 1,
    blocks: int = 1,
    seed: int = 0,
    preempts: bool = False,
    late: bool = False,
) -> list[tuple[str, str, int]]:
    """Kind, detail and line of PTX in the body of each finding."""
    kernel = Kernel(HEAD + body + "\nret;\n}\n")
    tensors = [("first", first.data_ptr(), first.nbytes, b""), ("second", second.data_ptr(), second.nbytes, b"")]
    report = kernel.run(
        grid=(blocks, 1, 1), warps=warps, dynamic_shared=4096, memory=tensors, seed=seed, preempts=preempts, late=late,
        arguments=[struct.pack("<Q", address) for _, address, *_ in tensors], most_instructions=10**6,
    )  # fmt: skip
    return [(kind, detail, line - HEAD.count("\n")) for kind, detail, _, line, _, _ in report["findings"]]


def values(body: str, inputs: list[int]) -> list[int]:
    """What a body makes of %r10, an input a lane, in %r11."""
    first = torch.tensor([x - 2**32 if x >= 2**31 else x for x in (inputs * 32)[:32]], dtype=torch.int32)
    second = torch.zeros(32, dtype=torch.int32)
    assert not run(f"ld.global.b32 %r10, [%rd4];\n{body}\nst.global.b32 [%rd5], %r11;", first, second)
    return [x & 0xFFFFFFFF for x in second.tolist()[: len(inputs)]]


def bits(x: float) -> int:
    """Of a float in single precision."""
    return struct.unpack("<I", struct.pack("<f", x))[0]
