"""The static gate fails where it should; `make test` runs it whole.

Each run has a process of its own: the compiler and the interpreter cannot share one.
"""

import subprocess
import sys

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('del table["swiglu_forward_kernel"]', "swiglu_forward_kernel is not in the table"),
        ('table["unknown_kernel"] = {}', "unknown_kernel is not a kernel"),
        ('del aot.SAMPLE_CALLS["swiglu_forward_kernel"]', "swiglu_forward_kernel is not called by the gate"),
        (
            'table["swiglu_forward_kernel"] = {b: (Configuration(2048, 4), Configuration(2048, 8))}',
            "no call reaches swiglu_forward_kernel with Configuration(block=2048, num_warps=8",
        ),
        ('table["loss_rows_kernel"] = {b: (Configuration(16384, 32),)}', "bytes spilled"),
        (
            'forward["flash_attention_forward_kernel"] = {b: (AttentionConfiguration(128, 128, 128, 8, 4, True),)}',
            "bytes of shared memory, over",
        ),
        (
            'forward["flash_attention_forward_kernel"] = {b: (AttentionConfiguration(64, 16, 64, 4, 2),)}',
            "matrix instructions are HMMA, not HGMMA",
        ),
    ],
)
def test_the_gate_fails_on(change: str, message: str) -> None:
    changed = [name for name in ("loss_rows_kernel", "flash_attention_forward_kernel") if name in change]
    only = changed[0] if changed else "swiglu_forward_kernel"
    program = f"""
import sys, torch
from vikhr_kernels import aot
from vikhr_kernels.attention_dispatch import TABLE as ATTENTION, AttentionConfiguration
from vikhr_kernels.dispatch import TABLE, Configuration
b, table, forward = torch.bfloat16, TABLE[90], ATTENTION[90]
for names in (table, forward):
    for name in [name for name in names if name != "{only}"]:
        aot.SAMPLE_CALLS.pop(name), names.pop(name)
kernels = aot.find_kernels()
aot.find_kernels = lambda: {{"{only}": kernels["{only}"]}}
if "{only}" == "loss_rows_kernel":
    aot._call_loss_rows = None
    one = torch.ones(16)
    aot.SAMPLE_CALLS["{only}"] = lambda c: aot.loss_rows.loss_rows(
        torch.ones(16, 40000), torch.ones(16, 40000), torch.zeros(16, dtype=torch.int64), one, one, one, None, False,
        one, one, one, b)
if "{only}" == "flash_attention_forward_kernel":
    q = [torch.ones(256, 8, size, dtype=b) for size in (64, 128)]
    aot.SAMPLE_CALLS["{only}"] = lambda c: aot.flash_attention.forward(
        *[q[c.head_size // 128]] * 3, torch.zeros(256, dtype=torch.int32), 1.0)
{change}
sys.exit(aot.main(["--architecture", "90"]))
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert message in finished.stdout
