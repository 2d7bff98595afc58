"""Executes what Triton compiles for NVIDIA GPUs on the CPU, and says where it does what a GPU would not forgive.

    with emulating(90) as emulation:
        add_kernel[(4,)](x, y, out, x.numel(), BLOCK=256)  # tensors on the CPU
    assert not emulation.findings

See ../README.md for what is modelled.
"""

from ptx_emulator.emulation import Emulation, Finding, Launch, emulating

__all__ = ["Emulation", "Finding", "Launch", "emulating"]
