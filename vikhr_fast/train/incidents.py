"""Steps that would spoil the weights: told from good ones, skipped, and written down with their documents."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from vikhr_fast.config import IncidentsConfig
from vikhr_fast.train.inputs import Inputs
from vikhr_fast.train.metrics import INCIDENTS, append_line, read_lines

WINDOW = 32  # good losses that a spike is measured by
_FEWEST = 8  # below this many nothing is a spike


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


def record_incident(run: Path, inputs: Inputs, sequences: range, step: int, reason: str) -> int:
    """Appends a skipped step, counted from 1 as in the metrics, and what it was made of to a run's incidents.jsonl.

    Returns:
        The incident's number, counted from 1.
    """
    names = list(inputs.train)
    documents: dict[str, list[list[int]]] = {}
    for index in sequences:
        for source, document, start, length in inputs.corpus.windows(index):
            documents.setdefault(names[source], []).append([document, start, length])
    number = len(read_lines(run / INCIDENTS)) + 1
    values = {"incident": number, "step": step, "reason": reason, "sequences": [sequences.start, sequences.stop]}
    append_line(run / INCIDENTS, {**values, "documents": documents})
    return number
