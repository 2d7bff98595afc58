"""Kills training at random moments until it has ended anyway: are the weights those of a run left in peace?

    python tests/gates/kills.py [--kills 30] [--ranks 1,2,4] [--forms gathered,kept,batched,tied] [--kinds ...]
        [--seed 0] [--out FILE]

Each run saves a checkpoint every other step, in the background. SIGKILL hits any rank at any moment, start and saving
included, or in validation, or while the model is written; the others must end by themselves, and the same command goes
on, sometimes without the newest checkpoint, or with a damaged one. Or a rank is stopped for a while, which ends
nothing. A run that ends before all kills are done is followed by another. The exit code is 1 where one bit differs.
"""

import argparse
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from training_runs import make_config, make_workspace, start_ranks, write_config

from vikhr_fast.io.append_only import read_lines
from vikhr_fast.io.run_directory import environment
from vikhr_fast.train.checkpoint import complete_checkpoints
from vikhr_fast.train.metrics import METRICS, VALIDATION

STEPS, VALIDATE_EVERY = 120, 20
Moment = Callable[[Path, int, random.Random], Callable[[], bool]]
"""Makes of a run's directory, the steps done and a generator what tells whether the moment has come."""
FORMS: dict[str, dict[str, Any]] = {
    "gathered": {},
    "kept": {"runtime": {"keep_gathered": True, "whole_reference": True}},
    "batched": {
        "kl": {"fraction": 0.5},
        "runtime": {"keep_gathered": True, "reference_micro_batches": 2, "reduce_each_micro_batch": True},
    },
    "tied": {
        "model": "tied",
        "optimizer": {"master": "split"},
        "runtime": {"dtype": "bfloat16", "keep_gathered": True, "reference_micro_batches": 2},
    },
}
"""What is trained, and how several ranks share the work."""


def start(workspace: Path, output: Path, ranks: int, form: str) -> list[subprocess.Popen[str]]:
    """Starts, or goes on with, the run."""
    changes = FORMS[form]
    config = make_config(
        workspace,
        output,
        changes.get("model", "model"),
        data={"validation": {"held_out": workspace / "validation"}, "epochs": 40},
        batch={"micro_batch": 1 if changes else 2, "sequences_per_step": 8},
        optimizer=changes.get("optimizer", {}),
        kl=changes.get("kl", {}),
        runtime={"dtype": "float32", "timeout_seconds": 20, **changes.get("runtime", {})},
        schedule={"max_steps": STEPS, "checkpoint_every": 2, "validate_every": VALIDATE_EVERY},
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


def outcome(output: Path) -> tuple[list[Any], list[Any], bytes]:
    """What must be equal bit for bit: steps, validations, weights."""
    names = ("step", "loss", "ce", "kl", "grad_norm", "tokens")
    steps = [[line[name] for name in names] for line in read_lines(output / METRICS)]
    return steps, read_lines(output / VALIDATION), (output / "model" / "model.safetensors").read_bytes()


def steps_of(output: Path) -> int:
    return len(read_lines(output / METRICS))


def any_moment(output: Path, done: int, chance: random.Random) -> Callable[[], bool]:
    """The start included."""
    if chance.random() < 0.25:
        moment = time.monotonic() + chance.uniform(0, 8)
        return lambda: time.monotonic() > moment
    delay, stepped = chance.uniform(0, 1.5), []

    def has_come() -> bool:
        if not stepped and steps_of(output) > done:
            stepped.append(time.monotonic())
        return bool(stepped) and time.monotonic() > stepped[0] + delay

    return has_come


def in_validation(output: Path, done: int, chance: random.Random) -> Callable[[], bool]:
    """After a step that is validated, before that is recorded."""
    delay = chance.uniform(0, 0.05)

    def has_come() -> bool:
        steps = steps_of(output)
        is_due = steps > done and steps % VALIDATE_EVERY == 0
        if not is_due or any(line["step"] == steps for line in read_lines(output / VALIDATION)):
            return False
        time.sleep(delay)
        return True

    return has_come


def in_the_model(output: Path, done: int, chance: random.Random) -> Callable[[], bool]:  # noqa: ARG001  as the others
    """While the trained model is written."""
    return lambda: any(output.glob(".model.*.partial"))


def delete(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)


def damage(checkpoint: Path) -> None:
    manifest = checkpoint / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-9] + b"\xff")


STOPPED = "stopped for a while"
KINDS: dict[str, tuple[Moment, Callable[[Path], None] | None]] = {
    "killed": (any_moment, None),
    STOPPED: (any_moment, None),
    "killed in validation": (in_validation, None),
    "killed while the model is written": (in_the_model, None),
    "killed, newest checkpoint deleted": (any_moment, delete),
    "killed, newest manifest damaged": (any_moment, damage),
}
"""When it happens, and what happens to the newest of several checkpoints before the run goes on."""


def kill_until_done(
    workspace: Path, output: Path, ranks: int, form: str, kinds: Sequence[str], chance: random.Random
) -> tuple[Counter[str], Counter[int]]:
    """Runs to the end through these kinds of kills; what was done, when, and how the other ranks ended."""
    hit: Counter[str] = Counter()
    others: Counter[int] = Counter()
    waiting = list(kinds)
    processes: list[subprocess.Popen[str]] = []
    while waiting:
        done = steps_of(output)
        processes = processes or start(workspace, output, ranks, form)
        kind, victim = waiting[0], chance.randrange(ranks)
        moment, spoil = KINDS[kind]
        has_come = moment(output, done, chance)
        while not has_come() and all(process.poll() is None for process in processes):
            time.sleep(0.002)
        has_ended = any(process.poll() is not None for process in processes)
        ended = {process.poll() for process in processes} - {None, 0}
        assert not ended, f"ended by itself with {ended}: {finish(processes)}"
        if kind == STOPPED and not has_ended:
            processes[victim].send_signal(signal.SIGSTOP)
            time.sleep(chance.uniform(1, 5))
            processes[victim].send_signal(signal.SIGCONT)
            hit[waiting.pop(0)] += 1
            continue
        is_saving = any((output / "checkpoints").glob(".step-*.partial"))
        has_stepped = steps_of(output) > done
        processes[victim].kill()
        codes, processes = finish(processes), []
        if codes[victim] == 0:
            assert set(codes) == {0}
            return hit, others  # it was too late
        checkpoints = complete_checkpoints(output / "checkpoints")
        if spoil and len(checkpoints) > 1:
            spoil(checkpoints[-1])
        if not spoil or len(checkpoints) > 1:
            when = "while saving" if is_saving else "between steps" if has_stepped else "before the first step"
            hit[f"{waiting.pop(0)}, {when}"] += 1
        others.update(code for rank, code in enumerate(codes) if rank != victim)
    processes = processes or start(workspace, output, ranks, form)
    assert set(finish(processes)) == {0}
    return hit, others


def measure(ranks: int, form: str, kills: int, seed: int, names: Sequence[str]) -> dict[str, Any]:
    """Kills runs of so many ranks, by each kind in turn."""
    chance = random.Random(f"{seed} {ranks} {form}")
    kinds = list(itertools.islice(itertools.cycle(names), kills))
    chance.shuffle(kinds)
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
            found, ended = kill_until_done(workspace, killed, ranks, form, kinds[sum(hit.values()) :], chance)
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
    parser.add_argument("--kinds", default=";".join(KINDS), help="separated by semicolons, in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = [
        measure(int(ranks), form, options.kills, options.seed, options.kinds.split(";"))
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
