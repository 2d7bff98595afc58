"""A step whose KL is to the original, beside one whose KL is to a copy of the adapted model, and one without a KL.

    python bench/original_step.py OUT.json --model ADAPTED --base BASE --train NAME SHARDS [NAME SHARDS ...]

Forward and backward of real text with the settings of the preset `real-pretrain`, in turns; and what the original's
tokens and the boundaries that both have cost beside it, in the loader's thread. `make replay` makes what it reads.
"""

import argparse
import datetime
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import machine
import torch
from stopwatch import Lane, Stopwatch

from vikhr_fast.config import TrainConfig, read_toml, train_config
from vikhr_fast.data.packing import Batch
from vikhr_fast.distributed.ranks import process_group
from vikhr_fast.train.batches import step_batches
from vikhr_fast.train.inputs import Inputs, open_inputs
from vikhr_fast.train.signals import Interruption
from vikhr_fast.train.state import TrainState
from vikhr_fast.train.step import TrainStep

STEPS = 6


def configure(options: argparse.Namespace, kl: dict[str, Any]) -> TrainConfig:
    values = read_toml(Path("real-pretrain"))
    values["runtime"]["threads"] = options.threads
    train = dict(zip(options.train[::2], map(Path, options.train[1::2]), strict=True))
    return train_config(
        {
            **values,
            "model": options.model,
            "output": options.out.with_suffix(""),
            "data": {**values["data"], "train": train},
            "kl": kl,
            "schedule": {"max_steps": STEPS},
        },
        "bench",
    )


def reading_seconds(inputs: Inputs, config: TrainConfig) -> tuple[float, int]:
    """What reading takes for all of the corpus, and how many tokens of the model's that are."""
    assert inputs.reference is not None
    indices, micro_batch = range(inputs.corpus.num_sequences), config.batch.micro_batch
    batches = [inputs.corpus.batch(list(indices[at : at + micro_batch])) for at in indices[::micro_batch]]
    started = time.perf_counter()
    for batch in batches:
        inputs.reference.prepare(batch)
    return time.perf_counter() - started, sum(batch.trained_tokens for batch in batches)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--train", nargs="+", required=True, metavar="NAME SHARDS")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each contestant's turns")
    options = parser.parse_args()
    if len(options.train) % 2:
        parser.error(f"--train: {options.train[-1]} has no shards; give NAME SHARDS pairs")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    ways: dict[str, dict[str, Any]] = {
        "CE": {"weight": 0.0},
        "CE + KL to the adapted model": {},
        "CE + KL to the original": {"reference": options.base},
    }
    lanes: dict[str, Lane] = {}
    results: dict[str, Any] = {"contestants": {}}
    configs = {name: configure(options, kl) for name, kl in ways.items()}
    with process_group(next(iter(configs.values())).runtime) as ranks:
        for name, config in configs.items():
            inputs = open_inputs(config)
            if config.kl.reference and (inputs.reference is None or inputs.reference.reader is None):
                parser.error(f"--base {options.base}: it has the model's own vocabulary")
            step = TrainStep(config, inputs, ranks, Interruption())
            batches: list[list[Batch]] = list(itertools.islice(step_batches(config, inputs, ranks, 0), STEPS))
            state = TrainState()
            lanes[name] = Lane(lambda given, step=step, state=state: step.measure(state, given), batches)
            readings = [batch.reading for own in batches for batch in own if batch.reading is not None]
            results["contestants"][name] = {
                "tokens": sum(batch.trained_tokens for own in batches for batch in own) / STEPS,
                "reference_tokens": sum(reading.num_tokens for reading in readings) / STEPS,
            }
            if readings:
                seconds, tokens = reading_seconds(inputs, config)
                results["reading_tokens_per_second"] = tokens / seconds
        times = Stopwatch(ranks.device, turns=3, seconds=options.seconds, least=STEPS).in_turns(lanes, print)
    for name, found in times.items():
        results["contestants"][name]["milliseconds"] = statistics.median(found)
    results |= {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(), "device": machine.device_name(), "versions": machine.versions(),
        "threads": options.threads,
    }  # fmt: skip
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results["contestants"], indent=2), f"{results['reading_tokens_per_second']:,.0f} tokens/s read")
    return 0


if __name__ == "__main__":
    sys.exit(main())
