"""A grid resolved: which commands make which outputs for which seed, and what each needs to be there before."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from vikhr_fast import commands
from vikhr_fast.errors import InputError
from vikhr_fast.experiments.grid import PLACEHOLDER, SEED, Grid, Stages, names_in
from vikhr_fast.experiments.inputs import INPUTS
from vikhr_fast.experiments.score import Score, score
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.io.stage_runner import Stage
from vikhr_fast.train.metrics import METRICS

SHARED = "shared"
"""Below the output of ablations, what several tables use."""
_COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "score": (Score, score),
    **{f"inputs {name}": command for name, command in INPUTS.items()},
}


class Steps(NamedTuple):
    """Stands among words for as many steps as `other` would take for the tokens of `run`, at least one."""

    run: Path
    other: Path

    def number(self) -> int:
        """How many, once both runs are there."""
        try:
            last, last_other = (read_lines(directory / METRICS)[-1] for directory in self)
            steps: float = last["tokens"] * last_other["step"] / last_other["tokens"]
            return max(1, round(steps))
        except (LookupError, TypeError, ArithmeticError, ValueError) as error:
            files = " or ".join(str(directory / METRICS) for directory in self)
            raise InputError(f"{files}: damaged ({error!r}); delete what it is in and run it again") from None


@dataclass(frozen=True)
class Work:
    """One command, and what it leaves: complete or absent."""

    name: str
    stage: str | None
    """Of the grid; None scores an arm."""
    words: tuple[str | Steps, ...]
    """The command with --output."""
    done: Path
    """There once the work is finished: its output, or the model in it."""
    needs: tuple[Path, ...]
    """Works' `done` that must be there before."""
    launcher: tuple[str, ...] = ()
    """What starts it, if not this process."""

    def parsable_words(self) -> list[str]:
        """The words with some number for each that isn't known yet."""
        return ["1" if isinstance(word, Steps) else word for word in self.words]

    def run(self) -> None:
        """Runs the command in this process, or by the launcher."""
        words = [str(word.number()) if isinstance(word, Steps) else word for word in self.words]
        if self.launcher:
            sys.exit(subprocess.call([*self.launcher, *words[1:]]))
        function, options = parse(words)
        function(options)

    def as_stage(self) -> Stage:
        """What runs it."""
        return Stage(self.name, self.done, self.run, self.needs)

    def described(self, cost: str = "") -> str:
        """Whether the work is done, its name and its command."""
        words = [f"{{steps:{word.run}:{word.other}}}" if isinstance(word, Steps) else word for word in self.words]
        command = shlex.join([*self.launcher, *words[1:]] if self.launcher else words)
        return f"{'done' if self.done.exists() else 'to do'}: {self.name}{cost}: {command}"


class Works:
    """Works in an order in which each comes after what it needs.

    Args:
        grid: the commands.
        root: directory of all outputs.
        inputs: the grid's inputs by name; one that stands alone for a word may be several.
        folder: below the root, by stage; the root itself where a stage isn't named.
        launcher: what starts trainings, if not this process.
    """

    def __init__(
        self,
        grid: Stages,
        root: Path,
        inputs: Mapping[str, str | tuple[str, ...]],
        folder: Mapping[str, str] | None = None,
        launcher: tuple[str, ...] = (),
    ) -> None:
        self._stages, self._root, self._inputs = grid.stages, root, inputs
        self._folder, self._launcher = folder or {}, launcher
        self._seeded: set[str] = set()
        mentioned = {name: names_in(stage.run) & {SEED, *grid.stages} for name, stage in grid.stages.items()}
        for name in TopologicalSorter(mentioned).static_order():
            if name == SEED or not self._seeded.isdisjoint(mentioned[name]):
                self._seeded.add(name)
        self.works: dict[Path, Work] = {}
        """By `done`."""

    def add_stage(self, name: str, seed: int) -> Path:
        """Adds a stage with all that it needs; returns its `done`."""
        run = shlex.split(self._stages[name].run)
        output = self._output(name, seed)
        done = output / "model" if run[0] == "train" else output
        if done not in self.works:
            place = f"{self._folder[name]}: " if name in self._folder else ""
            title = f"{place}{name}{f', seed {seed}' if name in self._seeded else ''}"
            self.add(title, name, run, output, done, seed)
        return done

    def add(self, title: str, stage: str | None, words: list[str], output: Path, done: Path, seed: int) -> None:
        """Adds a command with all that its words need."""
        needs = tuple(self.add_stage(name, seed) for name in sorted(names_in(*words) & self._stages.keys()))
        resolved = (*(part for word in words for part in self._resolved(word, seed)), "--output", str(output))
        self.works[done] = Work(title, stage, resolved, done, needs, self._launcher if words[0] == "train" else ())

    def _output(self, name: str, seed: int) -> Path:
        place = self._root / self._folder.get(name, "")
        return place / f"seed-{seed}" / name if name in self._seeded else place / name

    def _resolved(self, word: str, seed: int) -> tuple[str | Steps, ...]:
        known = {**self._inputs, SEED: str(seed)}

        def value(match: re.Match[str]) -> str:
            name = match["name"]
            return str(known[name] if name in known else self._output(name, seed))

        if alone := PLACEHOLDER.fullmatch(word):
            if alone["run"]:
                return (Steps(self._output(alone["run"], seed), self._output(alone["other"], seed)),)
            if isinstance(several := known.get(alone["name"]), tuple):
                return several
        return (PLACEHOLDER.sub(value, word),)


def works_of(
    grid: Grid, root: Path, inputs: Mapping[str, str], seeds: Iterable[int]
) -> tuple[dict[Path, Work], dict[str, list[Path]]]:
    """The works of an ablation by `done`, seed by seed; and the scores of each arm, one a seed."""
    launcher = (*grid.launcher, "-m", "vikhr_fast.train") if grid.launcher else ()
    folder = {name: SHARED if name in grid.shared else grid.name for name in grid.stages}
    works = Works(grid, root, inputs, folder, launcher)
    units: dict[str, list[Path]] = {name: [] for name in grid.arms}
    for seed in seeds:
        for name, arm in grid.arms.items():
            held_out = [word for item in arm.held_out.items() for word in item]
            words = ["score", "--model", arm.model, "--held-out", *held_out, "--runs", *arm.runs, "--words", *arm.words]
            words += ["--sequence-length", str(grid.sequence_length)]
            if arm.questions and arm.reward:
                words += ["--questions", arm.questions, "--reward", arm.reward, "--seed", str(seed)]
            output = root / grid.name / "units" / f"{name}-seed-{seed}.json"
            works.add(f"{grid.name}: {name}, seed {seed}: score", None, words, output, output, seed)
            units[name].append(output)
    return works.works, units


def parse(words: list[str]) -> tuple[Callable[[Any], object], Any]:
    """The function and the options of a grid's command; SystemExit where the words are wrong."""
    for name, (options, function) in _COMMANDS.items():
        if words[: len(name.split())] == name.split():
            return function, tyro.cli(options, args=words[len(name.split()) :])
    return commands.parse(words)


def check_commands(works: Iterable[Work], path: Path) -> None:
    """Has the real command line read every stage once; InputError where it refuses."""
    for stage, work in {work.stage: work for work in works if work.stage is not None}.items():
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                parse(work.parsable_words())
        except SystemExit:
            lines = [line.strip(" │╭╮╰╯─") for line in said.getvalue().splitlines()]
            reason = " ".join(
                line for line in lines if line.strip("-") and not line.startswith(("For full", "Parsing"))
            )
            raise InputError(f"{path}: stages.{stage}: not a command of this package: {reason}") from None
        except InputError as error:
            raise InputError(f"{path}: stages.{stage}: {error}") from None
