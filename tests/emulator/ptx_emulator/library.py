"""The compiled half, from build/emulator."""

import importlib
import sys
from pathlib import Path

BUILD = Path(__file__).resolve().parents[3] / "build" / "emulator"

if str(BUILD) not in sys.path:
    sys.path.append(str(BUILD))
try:
    Kernel = importlib.import_module("_emulator").Kernel
except ImportError as error:
    raise ImportError(f"the emulator isn't built for this Python ({error}): make build/emulator/.built") from None
