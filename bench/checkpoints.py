"""What a checkpoint costs a run: the pause of the copy, steps while it is written, and going on from it.

    python bench/checkpoints.py [--out DIR] [--steps 60] [--every 6]

Trains a random model of 19 million parameters on the demo's texts, one thread of the CPU, with its checkpoints (float32
masters and moments) written in the background; every step's time tells whether one was. Writes checkpoints.json.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "native"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))
from harness import describe_machine, results_directory
from training_runs import make_config, make_workspace

from vikhr_fast.io.append_only import read_lines
from vikhr_fast.io.files import write_text
from vikhr_fast.model.mistral import Mistral, ModelConfig
from vikhr_fast.train.checkpoint import CHECKPOINTS, Checkpoints
from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import METRICS

SHAPE = ModelConfig(
    vocab_size=520,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    max_position_embeddings=512,
)


def timed(name: str, seconds: dict[str, list[float]]) -> None:
    """Notes how long each call of a method of `Checkpoints` takes."""
    method = getattr(Checkpoints, name)

    def call(*arguments: Any) -> Any:
        started = time.perf_counter()
        result = method(*arguments)
        seconds.setdefault(name, []).append(time.perf_counter() - started)
        return result

    setattr(Checkpoints, name, call)


def measure(steps: int, every: int) -> dict[str, Any]:
    """One run, then its continuation by a step."""
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        make_workspace(root)
        Mistral(SHAPE, seed=1).save_pretrained(root / "large")
        (root / "model").rename(root / "small")
        (root / "large").rename(root / "model")
        for file in (root / "small").glob("tokenizer*"):
            file.rename(root / "model" / file.name)
        settings = {"data": {"epochs": 40}, "runtime": {"dtype": "float32"}, "optimizer": {"learning_rate": 1e-4}}
        schedule = {"max_steps": steps, "checkpoint_every": every, "keep_checkpoints": 1}
        for name in ("save", "load_last"):
            timed(name, seconds)
        model = train(make_config(root, root / "run", **settings, schedule=schedule))
        lines = read_lines(root / "run" / METRICS)[2:]  # the first steps allocate
        size = sum(file.stat().st_size for file in (root / "run" / CHECKPOINTS).rglob("*") if file.is_file())
        model.rename(root / "done")
        train(make_config(root, root / "run", **settings, schedule={**schedule, "max_steps": steps + 1}))
    while_saving, otherwise = ([line["seconds"] for line in lines if line["is_saving"] is is_saving]
                               for is_saving in (True, False))  # fmt: skip
    return {
        "checkpoint_bytes": size,
        "step_seconds": statistics.median(otherwise),
        "steps": len(otherwise),
        "step_seconds_while_saving": statistics.median(while_saving),
        "steps_while_saving": len(while_saving),
        "slower": statistics.median(while_saving) / statistics.median(otherwise) - 1,
        "pause_seconds": statistics.median(seconds["save"]),
        "resume_seconds": seconds["load_last"][-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=6)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    machine = describe_machine(("torch", "vikhr-fast"))
    results = {"machine": machine.model_dump(), **measure(options.steps, options.every)}
    out = options.out or results_directory(machine)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "checkpoints.json", json.dumps(results, indent=2) + "\n")
    print(json.dumps({name: value for name, value in results.items() if name != "machine"}, indent=2))


if __name__ == "__main__":
    main()
