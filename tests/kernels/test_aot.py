"""The static gate fails where it should; `make test` runs it whole.

Each run has a process of its own: the compiler and the interpreter cannot share one.
"""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("triton")


SWIGLU, LOSS, ATTENTION = "swiglu_forward_kernel", "loss_rows_kernel", "flash_attention_forward_kernel"


@pytest.mark.parametrize(
    ("architecture", "kernel", "change", "message"),
    [
        (90, SWIGLU, "del table[kernel]", "swiglu_forward_kernel is not in the table"),
        (90, SWIGLU, 'table["unknown_kernel"] = {}', "unknown_kernel is not a kernel"),
        (90, SWIGLU, "del aot.SAMPLE_CALLS[kernel]", "swiglu_forward_kernel is not called by the gate"),
        (
            90, SWIGLU, "table[kernel] = {b: (Configuration(2048, 4), Configuration(2048, 8))}",
            "no call reaches swiglu_forward_kernel with Configuration(block=2048, num_warps=8",
        ),
        (90, LOSS, "table[kernel] = {b: (Configuration(16384, 32),)}", "bytes spilled"),
        (
            90, ATTENTION, "tiles[kernel] = {b: {(128, 'long'): AttentionConfiguration(128, 128, 128, 8, 4, True)}}",
            "bytes of shared memory, over",
        ),
        (
            90, ATTENTION, "tiles[kernel] = {b: {(64, 'long'): AttentionConfiguration(64, 16, 64, 4, 2)}}",
            "masked loop: matrix instructions are HMMA, not HGMMA",
        ),
        (
            80, ATTENTION, "tiles[kernel] = {b: {(128, 'long'): AttentionConfiguration(128, 64, 32, 8, 2)}}",
            "cycles of shared memory a tensor cycle, over 1.4",
        ),
        (
            80, ATTENTION, "tiles[kernel] = {b: {(128, 'long'): AttentionConfiguration(128, 128, 64, 4, 2)}}",
            "bytes of spilled registers a tile, over 64",
        ),
        (
            90, ATTENTION, "tiles[kernel] = {b: {(64, 'long'): AttentionConfiguration(64, 64, 64, 4, 2, True)}}",
            "D=64 64x64, 2 stages, descriptors, 4 warps: no cost is recorded for it",
        ),
        (90, ATTENTION, "cheapen('masked')", "D=64 128x128, 3 stages, descriptors, 8 warps: masked loop:"),
        (90, ATTENTION, "cheapen('unmasked')", "D=64 128x128, 3 stages, descriptors, 8 warps: unmasked loop:"),
    ],
)  # fmt: skip
def test_the_gate_fails_on(architecture: int, kernel: str, change: str, message: str) -> None:
    program = f"""
import sys, torch
from vikhr_kernels import aot
from vikhr_kernels.attention_dispatch import TABLE as ATTENTION, AttentionConfiguration
from vikhr_kernels.dispatch import TABLE, Configuration
b, kernel, table, tiles = torch.bfloat16, "{kernel}", TABLE[{architecture}], ATTENTION[{architecture}]
for names in (table, tiles):
    for name in [name for name in names if name != kernel]:
        aot.SAMPLE_CALLS.pop(name), names.pop(name)
kernels = aot.find_kernels()
aot.find_kernels = lambda: {{kernel: kernels[kernel]}}
if kernel == "{LOSS}":
    aot._call_loss_rows = None
    one = torch.ones(16)
    aot.SAMPLE_CALLS[kernel] = lambda c: aot.loss_rows.loss_rows(
        torch.ones(16, 40000), torch.ones(16, 40000), torch.zeros(16, dtype=torch.int64), one, one, one, None, None,
        False, one, one, one, b)
if kernel == "{ATTENTION}":
    q = [torch.ones(256, 8, size, dtype=b) for size in (64, 128)]
    aot.SAMPLE_CALLS[kernel] = lambda c: aot.flash_attention.forward(
        *[q[c.head_size // 128]] * 3, torch.zeros(256, dtype=torch.int32), "long", 1.0)
def cheapen(loop):
    record = aot.read_record()
    for cost in record.values():
        cost[loop]["instructions"] *= 0.96
    record |= {{name.replace("HEADS=32 GROUP=4", "HEADS=8 GROUP=1"): cost for name, cost in record.items()}}
    aot.read_record = lambda: record
{change}
sys.exit(aot.main(["--architecture", "{architecture}"]))
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert message in finished.stdout
