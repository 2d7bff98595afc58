"""All ways to shard and to accumulate, which change nothing of what is learnt, and the fastest of them that fits."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter

from vikhr_fast.config import TrainConfig
from vikhr_fast.io.files import json_text
from vikhr_fast.model.config import ModelConfig
from vikhr_fast.plan.collectives import StepCounts
from vikhr_fast.plan.memory import memory
from vikhr_fast.plan.speed import RESERVED, Hardware, Speed, speed

_GROUPS = (1, 2, 4, 8, 16)  # micro-batches of one forward of the reference; more saves next to nothing
_CHANGED = (
    "batch.micro_batch", "optimizer.master", "runtime.keep_gathered", "runtime.whole_reference",
    "runtime.reference_micro_batches", "runtime.reduce_each_micro_batch", "runtime.checkpointing",
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """A configuration, what it needs of one GPU and how fast it is."""

    config: TrainConfig
    needed_bytes: float
    speed: Speed


def fastest_of_each(config: TrainConfig, model: ModelConfig, hardware: Hardware, gpus: int) -> list[Choice]:
    """Of each combination the fastest that fits, with its micro-batch: the fastest first.

    Sharded references differ in how many micro-batches one forward takes; of these, too, the fastest is taken.
    """
    found: dict[tuple[bool, bool, bool], Choice] = {}
    for changed in _ways(config, gpus):
        needed, runtime = sum(memory(changed, model, gpus).values()) + RESERVED, changed.runtime
        if needed > hardware.memory:
            continue
        choice = Choice(changed, needed, speed(changed, model, hardware, gpus))
        key = (runtime.keep_gathered, runtime.whole_reference, runtime.reduce_each_micro_batch)
        if key not in found or choice.speed.step_seconds < found[key].speed.step_seconds:
            found[key] = choice
    return sorted(found.values(), key=lambda choice: choice.speed.step_seconds)


def nearest_fit(config: TrainConfig, model: ModelConfig, hardware: Hardware, gpus: int) -> str | None:
    """What to change for the fastest way that fits, after the first change that lets any fit.

    Less memory for more time comes before more GPUs. None where nothing helps.
    """
    masters = dict.fromkeys((config.optimizer.master, "split"))
    again = dict.fromkeys((config.runtime.checkpointing, "selective", "full"))
    for factor, master, checkpointing in itertools.product((1, 2, 4, 8, 16, 32, 64, 128), masters, again):
        changed = replace(
            config,
            optimizer=replace(config.optimizer, master=master),
            runtime=replace(config.runtime, checkpointing=checkpointing),
        )
        if fitting := fastest_of_each(changed, model, hardware, factor * gpus):
            more = [f"--gpus {factor * gpus}"] if factor > 1 else []
            return ", ".join(more + changed_settings(config, fitting[0].config))
    return None


def changed_settings(before: TrainConfig, after: TrainConfig) -> list[str]:
    """The settings of `after` that aren't those of `before`, as TOML has them."""
    values = {name: attrgetter(name) for name in _CHANGED}
    return [f"{name} = {json_text(get(after))}" for name, get in values.items() if get(before) != get(after)]


def _ways(config: TrainConfig, gpus: int) -> Iterator[TrainConfig]:
    """Every micro-batch that divides the step and, on several ranks, every way to shard."""
    share, rest = divmod(config.batch.sequences_per_step, gpus)
    for micro_batch in (size for size in range(1, share + 1) if share % size == 0 and not rest):
        sized = replace(config, batch=replace(config.batch, micro_batch=micro_batch))
        if gpus == 1:
            yield sized
            continue
        now = (config.runtime.whole_reference, config.runtime.reference_micro_batches)
        compared = StepCounts.of(sized, gpus).compared
        references = [(False, group) for group in _GROUPS if group < 2 * compared] + [(True, 1)]
        references = list(dict.fromkeys((now, *references))) if compared else [now]
        for keep, (whole, group), reduce in itertools.product((False, True), references, (False, True)):
            if reduce and micro_batch == share:
                continue  # once a step either way
            runtime = replace(
                sized.runtime, keep_gathered=keep, whole_reference=whole, reference_micro_batches=group,
                reduce_each_micro_batch=reduce,
            )  # fmt: skip
            yield replace(sized, runtime=runtime)
