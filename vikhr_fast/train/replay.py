"""One skipped step again, sequence by sequence, without changing anything: what was in the batch?"""

import math
from dataclasses import dataclass

from rich.table import Table

from vikhr_fast.config import TrainConfig
from vikhr_fast.data.packing import draw
from vikhr_fast.distributed.ranks import process_group
from vikhr_fast.errors import InputError
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.io.console import logger
from vikhr_fast.tokenizer.files import tokenizer_file
from vikhr_fast.tokenizer.load import load_encoder
from vikhr_fast.train.checkpoint import CHECKPOINTS, complete_checkpoints, load_checkpoint, step_of
from vikhr_fast.train.inputs import Inputs, open_inputs
from vikhr_fast.train.metrics import INCIDENTS
from vikhr_fast.train.signals import Interruption
from vikhr_fast.train.state import StepResult, TrainState
from vikhr_fast.train.step import TrainStep

_BEGINNING = 40  # tokens of a document that are shown


@dataclass(frozen=True)
class Replayed:
    """One sequence of a skipped step; means over its trained tokens."""

    sequence: int
    ce: float
    kl: float | None  # None where the step didn't ask for it
    kl_factor: float  # in the step, by `kl.fraction`
    grad_norm: float  # of this sequence's mean loss alone, with its factor
    documents: list[str]  # as SOURCE:NUMBER
    beginning: str  # of the first document's window


def replay_incident(config: TrainConfig, number: int) -> list[Replayed]:
    """Runs the sequences of an incident one at a time from the last checkpoint before it, worst first.

    Raises:
        InputError: no such incident; more than one rank.
    """
    with process_group(config.runtime) as ranks:
        if ranks.count > 1:
            raise InputError("--replay-incident: works in one process; start it without torchrun")
        incidents = read_lines(config.output / INCIDENTS)
        if not 1 <= number <= len(incidents):
            raise InputError(f"{config.output / INCIDENTS}: no incident {number}: it has {len(incidents)}")
        incident, inputs = incidents[number - 1], open_inputs(config, verify=False)
        step, state = TrainStep(config, inputs, ranks, Interruption()), TrainState()
        checkpoints = complete_checkpoints(config.output / CHECKPOINTS)
        # from the last one that hadn't seen the step; where there is none, the model as it was at first
        before = [path for path in checkpoints if step_of(path) < incident["step"]]
        if before:
            state = load_checkpoint(before[-1], step.optimizer, ranks)
        start = before[-1] if before else config.model
        logger.info(f"incident {number}: step {incident['step']}, {incident['reason']}; from {start}")
        sequences = range(*incident["sequences"])
        drawn = draw(config.seed, sequences, config.kl.fraction)
        factors = {sequence: len(sequences) / len(drawn) if sequence in drawn else 0.0 for sequence in sequences}
        rows = []
        for sequence, factor in factors.items():
            batch = inputs.corpus.batch([sequence], factor)
            result = step.measure(state, [batch if inputs.reference is None else inputs.reference.prepare(batch)])
            rows.append(_row(config, inputs, sequence, factor, result))
    return sorted(rows, key=_badness, reverse=True)


def replay_table(rows: list[Replayed]) -> Table:
    """The sequences as a table for the terminal."""
    table = Table("sequence", "ce", "kl", "times", "gradient norm", "documents", "begins with")
    for row in rows:
        kl = "not asked" if row.kl is None else f"{row.kl:.4f}"
        numbers = (f"{row.ce:.4f}", kl, f"{row.kl_factor:g}", f"{row.grad_norm:.4f}")
        table.add_row(str(row.sequence), *numbers, " ".join(row.documents), row.beginning)
    return table


def _row(config: TrainConfig, inputs: Inputs, sequence: int, kl_factor: float, result: StepResult) -> Replayed:
    windows = inputs.corpus.windows(sequence)
    names, shards = list(inputs.train), list(inputs.train.values())
    first = windows[0]
    ids = shards[first.source].document(first.document)[first.start :][: min(first.length, _BEGINNING)]
    tokenizer = tokenizer_file(config.model)
    text = load_encoder(tokenizer.parent).decode(ids.tolist()) if tokenizer else " ".join(map(str, ids))
    return Replayed(
        sequence=sequence,
        ce=result.ce,
        kl=result.kl / kl_factor if kl_factor and (result.compared is None or result.compared.compared) else None,
        kl_factor=kl_factor,
        grad_norm=result.grad_norm,
        documents=[f"{names[window.source]}:{window.document}" for window in windows],
        beginning=" ".join(text.split()),
    )


def _badness(row: Replayed) -> float:
    """Sorts what isn't finite before all else."""
    values = (row.ce, row.kl or 0.0, row.grad_norm)
    return max(values) if all(map(math.isfinite, values)) else math.inf
