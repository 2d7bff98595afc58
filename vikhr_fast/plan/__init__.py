"""Section 3.4 on paper: memory, speed and cost of a run before it is started."""

from vikhr_fast.plan.command import Plan

__all__ = ["Plan"]
