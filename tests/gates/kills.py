"""Kills training at random moments until it has ended anyway: are the weights those of a run left in peace?

    python tests/gates/kills.py [--kills 30] [--ranks 1,2,4] [--forms gathered,kept,batched] [--seed 0] [--out FILE]

Each run saves a checkpoint every other step, in the background. SIGKILL hits any rank at any moment, start and saving
included; the others must end by themselves, and the same command goes on. A run that ends before all kills are done is
followed by another. The exit code is 1 where one bit differs.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from training_runs import make_config, make_workspace, start_ranks, write_config

from vikhr_fast.io.append_only import read_lines
from vikhr_fast.io.run_directory import environment
from vikhr_fast.train.metrics import METRICS

STEPS = 120
FORMS: dict[str, dict[str, Any]] = {
    "gathered": {},
    "kept": {"runtime": {"keep_gathered": True, "whole_reference": True}},
    "batched": {
        "kl": {"fraction": 0.5},
        "runtime": {"keep_gathered": True, "reference_micro_batches": 2, "reduce_each_micro_batch": True},
    },
}
"""How several ranks share the work; a single one has but the KL's share of them."""


def start(workspace: Path, output: Path, ranks: int, form: str) -> list[subprocess.Popen[str]]:
    """Starts, or goes on with, the run."""
    changes = FORMS[form]
    config = make_config(
        workspace,
        output,
        data={"validation": {"held_out": workspace / "validation"}, "epochs": 40},
        batch={"micro_batch": 1 if changes else 2, "sequences_per_step": 8},
        kl=changes.get("kl", {}),
        runtime={"dtype": "float32", "timeout_seconds": 20, **changes.get("runtime", {})},
        schedule={"max_steps": STEPS, "checkpoint_every": 2, "validate_every": 20},
    )
    return start_ranks(write_config(config, output.with_suffix(".toml")), ranks)


def finish(processes: list[subprocess.Popen[str]]) -> list[int]:
    """The exit codes of processes that end by themselves."""
    codes = []
    for process in processes:
        _, errors = process.communicate(timeout=1800)
        codes.append(process.returncode)
        if process.returncode not in (0, 5, -9):
            print(errors, file=sys.stderr)
    return codes


def outcome(output: Path) -> tuple[list[Any], bytes]:
    """What must be equal bit for bit."""
    names = ("step", "loss", "ce", "kl", "grad_norm", "tokens")
    steps = [[line[name] for name in names] for line in read_lines(output / METRICS)]
    return steps, (output / "model" / "model.safetensors").read_bytes()


def kill_until_done(
    workspace: Path, output: Path, ranks: int, form: str, kills: int, chance: random.Random
) -> tuple[Counter[str], Counter[int]]:
    """Runs to the end through at most so many kills; what they hit, and how the other ranks ended."""
    hit: Counter[str] = Counter()
    others: Counter[int] = Counter()
    while True:
        done = len(read_lines(output / METRICS))
        processes = start(workspace, output, ranks, form)
        if sum(hit.values()) == kills:
            assert set(finish(processes)) == {0}
            return hit, others
        if chance.random() < 0.25:
            time.sleep(chance.uniform(0, 8))
        else:
            while len(read_lines(output / METRICS)) <= done and all(p.poll() is None for p in processes):
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 1.5))
        victim = chance.randrange(ranks)
        is_saving = any((output / "checkpoints").glob(".step-*.partial"))
        has_stepped = len(read_lines(output / METRICS)) > done
        processes[victim].kill()
        codes = finish(processes)
        if codes[victim] == 0:
            assert set(codes) == {0}
            return hit, others  # it was too late
        hit["while saving" if is_saving else "between steps" if has_stepped else "before the first step"] += 1
        others.update(code for rank, code in enumerate(codes) if rank != victim)


def measure(ranks: int, form: str, kills: int, seed: int) -> dict[str, Any]:
    """Kills runs of so many ranks."""
    chance = random.Random(f"{seed} {ranks} {form}")
    hit: Counter[str] = Counter()
    others: Counter[int] = Counter()
    runs, are_equal = 0, True
    with tempfile.TemporaryDirectory() as directory:
        workspace = Path(directory) / "workspace"
        workspace.mkdir()
        make_workspace(workspace)
        whole = Path(directory) / "whole"
        assert set(finish(start(workspace, whole, ranks, form))) == {0}
        while sum(hit.values()) < kills:
            killed = Path(directory) / f"killed-{runs}"
            found, ended = kill_until_done(workspace, killed, ranks, form, kills - sum(hit.values()), chance)
            hit += found
            others += ended
            runs += 1
            are_equal &= outcome(killed) == outcome(whole)
            print(f"{ranks} ranks, {form}: {sum(hit.values())} kills, {runs} runs, equal: {are_equal}", file=sys.stderr)
    return {
        "ranks": ranks,
        "form": form,
        "kills": sum(hit.values()),
        "hit": dict(hit),
        "exit_codes_of_the_others": dict(others),
        "runs": runs,
        "steps": STEPS,
        "are_equal": are_equal,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="for each number of ranks")
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--forms", default="gathered", help=f"of {', '.join(FORMS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = [
        measure(int(ranks), form, options.kills, options.seed)
        for form in options.forms.split(",")
        for ranks in options.ranks.split(",")
    ]
    text = json.dumps({"made_with": environment(options.seed), "results": results}, indent=2) + "\n"
    print(text, end="")
    if options.out:
        options.out.write_text(text)
    return int(not all(result["are_equal"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
