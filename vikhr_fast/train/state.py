"""Where a run stands between two optimiser steps, and what one step came to."""

from dataclasses import dataclass, replace
from typing import NamedTuple

LOSS_WINDOW = 32  # steps whose losses a spike is measured by


class Compared(NamedTuple):
    """What a reference with another vocabulary read, and where it was compared, in tokens."""

    compared: int  # of the model's: the positions that took the KL
    read: int  # of the reference's
    cut: int  # those beyond, that it had no positions for
    apart: int  # compared positions at which the tokens that follow are in different buckets
    unspelt: int  # texts that the reference couldn't spell to their end


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step came to, over all ranks."""

    loss: float  # as the next two, mean over the trained tokens
    ce: float
    kl: float
    losses: tuple[float, ...]  # `objective.Losses`
    tokens: int  # trained on
    grad_norm: float  # before clipping
    learning_rate: float
    flops: float  # as the next, see `flops.step_work`
    reference_flops: float
    compared: Compared | None = None  # None where the reference has the model's vocabulary, or there is none
    is_skipped: bool = False  # the weights were left as they were


@dataclass(frozen=True)
class TrainState:
    """Where a run stands between two optimiser steps; part of a checkpoint."""

    step: int = 0  # steps done; the loader goes on with this one
    tokens: int = 0  # trained on
    losses: tuple[float, ...] = (0.0,) * 5  # `objective.Losses` of the last step over all ranks
    recent_losses: tuple[float, ...] = ()  # of the last steps that weren't skipped; what a spike is measured by
    skipped_in_a_row: int = 0  # steps skipped since the last one that wasn't

    def after(self, result: StepResult) -> "TrainState":
        """The state one step on."""
        if result.is_skipped:
            return replace(self, step=self.step + 1, skipped_in_a_row=self.skipped_in_a_row + 1)
        recent = (*self.recent_losses, result.loss)[-LOSS_WINDOW:]
        return TrainState(self.step + 1, self.tokens + result.tokens, result.losses, recent)

    def is_due(self, every: int) -> bool:
        """Whether this is a step at which what is done every so many steps is done; never where that is 0."""
        return every > 0 and self.step % every == 0
