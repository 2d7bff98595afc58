"""`vikhr-fast demo`: an English model learns Russian, end to end on one machine."""

from vikhr_fast.demo.pipeline import Demo, run_demo

__all__ = ["Demo", "run_demo"]
