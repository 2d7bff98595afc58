"""The training step on a CPU beside transformers' model doing the same: CE + KL against a frozen copy, in float32.

    python bench/cpu_step.py OUT.json [--threads 2] [--seconds 60] [--shapes demo,135m]

Packed documents of random tokens, forward and backward of a micro-batch; contestants take turns, `--seconds` each and
shape. `equal_work` proves beforehand that they do the same.
"""

import argparse
import datetime
import sys
from pathlib import Path

import machine
import torch
from findings import Findings
from schema import Results
from stopwatch import Stopwatch
from tables import print_table
from training import TrainBench, TrainSizes

from vikhr_fast.io.console import PlainConsole
from vikhr_fast.model.config import ModelConfig

SHAPES = {
    "demo": TrainSizes(
        "the demo's model",
        ModelConfig(
            vocab_size=3072, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
            num_key_value_heads=3, head_dim=32, max_position_embeddings=1024,
        ),
        256,
        (4,),
    ),
    "135m": TrainSizes(
        "SmolLM2-135M's layers, 40,000 pieces",
        ModelConfig(
            vocab_size=40000, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, head_dim=64, max_position_embeddings=2048,
        ),
        512,
        (1,),
    ),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="results, as of bench/gpu.py")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each contestant's turns, at each shape")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="of " + ", ".join(SHAPES))
    options = parser.parse_args(arguments)
    names = options.shapes.split(",")
    if unknown := set(names) - set(SHAPES):
        parser.error(f"--shapes: no {', '.join(sorted(unknown))}; there are {', '.join(SHAPES)}")
    if options.threads < 1:
        parser.error(f"--threads: {options.threads}, not a positive number")
    if options.out.is_dir():
        parser.error(f"{options.out} is a directory, not a file for the results")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    stopwatch = Stopwatch(torch.device("cpu"), turns=20, seconds=options.seconds, least=1)
    findings, dtype = Findings(), torch.float32
    ceilings = Stopwatch(stopwatch.device).ceilings(1 << 24, 1024, dtype)
    commit, versions = machine.commit(), machine.versions()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        gemm = ceilings.gemm_flops_per_second
        with TrainBench(findings, stopwatch, SHAPES[name], dtype, gemm, options.threads) as bench:
            for sequences in SHAPES[name].sequences:
                bench.micro_batches(sequences)
        results = Results(
            dry_run=False,
            how=f"{options.threads} threads",
            commit=commit,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            device=machine.device_name(),
            dtype="float32",
            versions=versions,
            ceilings=ceilings,
            **vars(findings),
        )
        options.out.write_text(results.model_dump_json(indent=2) + "\n", encoding="utf-8")
    print_table(results, PlainConsole(width=None if sys.stdout.isatty() else 120))
    return int(bool(results.skipped))


if __name__ == "__main__":
    sys.exit(main())
