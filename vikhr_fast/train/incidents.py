"""Steps that would spoil the weights: told from good ones, skipped, and written down with their documents."""

import math
import statistics
from collections.abc import Sequence

from vikhr_fast.config import IncidentsConfig, TrainConfig
from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.errors import InputError
from vikhr_fast.io.append_only import append_line, read_lines
from vikhr_fast.io.console import logger
from vikhr_fast.train.inputs import Inputs
from vikhr_fast.train.metrics import INCIDENTS
from vikhr_fast.train.state import TrainState

_FEWEST = 8  # good losses below which nothing is a spike


def reason_to_skip(loss: float, gradient_norm: float, recent: Sequence[float], config: IncidentsConfig) -> str | None:
    """Why a step's gradients mustn't be used; none where they may. The same on all ranks, as its arguments are."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(gradient_norm):
        return f"the gradient norm is {gradient_norm}"
    if config.spike_ratio and len(recent) >= _FEWEST:
        usual = statistics.median(recent)
        if loss > config.spike_ratio * usual:
            return f"the loss {loss:.4f} is above {config.spike_ratio:g} times the usual {usual:.4f}"
    return None


def record_incident(config: TrainConfig, inputs: Inputs, ranks: Ranks, state: TrainState, reason: str) -> None:
    """Appends to incidents.jsonl, from rank 0, that the step after `state` is skipped, and what it was made of.

    Raises:
        InputError: too many were skipped in a row.
    """
    step, in_a_row = state.step + 1, state.skipped_in_a_row + 1
    size = config.batch.sequences_per_step
    sequences = range(state.step * size, min(step * size, inputs.corpus.num_sequences))

    def write() -> None:
        names, file = list(inputs.train), config.output / INCIDENTS
        documents: dict[str, list[list[int]]] = {}
        for index in sequences:
            for source, document, start, length in inputs.corpus.windows(index):
                documents.setdefault(names[source], []).append([document, start, length])
        number = len(read_lines(file)) + 1
        values = {"incident": number, "step": step, "reason": reason, "sequences": [sequences.start, sequences.stop]}
        append_line(file, {**values, "documents": documents})
        logger.warning(f"step {step} skipped: {reason}; look at it with --replay-incident {number}")

    ranks.on_main(write)
    if in_a_row >= config.incidents.most_in_a_row:
        advice = "then go on with another incidents.most_in_a_row, or anew with a lower optimizer.learning_rate"
        if in_a_row == step:  # there never was a good one
            advice = f"and whether `vikhr-fast doctor {config.model}` finds NaN in the weights"
        raise InputError(
            f"step {step}: skipped, as {in_a_row} in a row: {reason}; see {INCIDENTS} and --replay-incident, {advice}"
        )
