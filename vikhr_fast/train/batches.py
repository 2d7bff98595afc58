"""What each step of a run trains on: this rank's micro-batches, made while the step before is in progress."""

from collections.abc import Generator
from contextlib import closing

from vikhr_fast.config import TrainConfig
from vikhr_fast.data.packing import Batch, StepLoader
from vikhr_fast.data.prefetch import prefetched
from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.errors import InputError
from vikhr_fast.train.inputs import Inputs
from vikhr_fast.train.profile import phase


def step_batches(
    config: TrainConfig, inputs: Inputs, ranks: Ranks, first_step: int
) -> Generator[list[Batch], None, None]:
    """Yields the micro-batches of each step from `first_step`, counted from 0, to the run's last; pinned for a GPU.

    Raises:
        InputError: a shard changed, vanished or can't be read; names the rank and the step.
    """
    batch, kl = config.batch, config.kl
    loader = StepLoader(
        inputs.corpus, sequences_per_step=batch.sequences_per_step, micro_batch=batch.micro_batch,
        rank=ranks.rank, ranks=ranks.count, kl_fraction=kl.fraction if kl.needs_reference else 1.0,
    )  # fmt: skip
    steps = (batches for _, batches in loader.steps(first_step, inputs.num_steps))
    if (reference := inputs.reference) is not None:
        steps = ([reference.prepare(batch) for batch in batches] for batches in steps)
    if ranks.device.type == "cuda":
        steps = ([batch.pinned() for batch in batches] for batches in steps)
    with closing(prefetched(steps)) as ahead:
        for step in range(first_step, inputs.num_steps):
            loading = f"loading the data of step {step + 1}"
            ranks.watch.enter(loading)
            try:
                with phase("loader"):
                    batches = next(ahead)
            except (InputError, OSError) as error:
                raise InputError(f"rank {ranks.rank}, {loading}: {error}") from error
            yield batches
