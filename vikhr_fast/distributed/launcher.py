"""What a rank owes to torchrun, which started it. Imports nothing that takes time."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of Linux, see prctl(2)


def end_with_launcher() -> None:
    """Has the kernel send SIGTERM when torchrun dies and can't send it any more; ends if it dies meanwhile."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher:
            sys.exit(128 + signal.SIGTERM)
