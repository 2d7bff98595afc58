"""A grid resolved: which commands make which outputs for which seed, and what each needs to be there before."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vikhr_fast.ablate.grid import PLACEHOLDER, SEED, Grid, names_in
from vikhr_fast.train.metrics import METRICS, read_lines

SHARED = "shared"
"""Below the output, what several tables use."""


@dataclass(frozen=True)
class Work:
    """One command, and what it leaves: complete or absent."""

    name: str
    stage: str | None
    """Of the grid; None scores an arm."""
    words: tuple[str, ...]
    """The command as `run` has it, with --output; {steps:RUN:OTHER} still stands in it."""
    output: Path
    done: Path
    """There once the work is finished: `output`, or the model in it."""
    needs: tuple[Path, ...]
    """Works' `done` that must be there before."""
    budgets: tuple[tuple[str, Path, Path], ...] = ()
    """The {steps:...} among the words, and where the two runs are."""

    def finished_words(self) -> tuple[str, ...]:
        """The words, once what they need is there: steps are counted."""
        return self._with({placeholder: str(_steps(run, other)) for placeholder, run, other in self.budgets})

    def parsable_words(self) -> list[str]:
        """The words with some number for each that isn't known yet."""
        return list(self._with({placeholder: "1" for placeholder, _, _ in self.budgets}))

    def _with(self, steps: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(steps.get(word, word) for word in self.words)


class Works:
    """The works of one grid in an order in which each comes after what it needs; seed by seed.

    Args:
        grid: the grid.
        root: directory of all tables' outputs.
        inputs: the grid's inputs by name.
        seeds: which.
    """

    def __init__(self, grid: Grid, root: Path, inputs: Mapping[str, str], seeds: Iterable[int]) -> None:
        self.grid, self._root, self._inputs = grid, root, inputs
        self.works: dict[Path, Work] = {}
        """By `done`."""
        self.units: dict[str, list[Path]] = {}
        """The scores of each arm, one a seed."""
        for seed in seeds:
            for arm in grid.arms:
                self.units.setdefault(arm, []).append(self._score(arm, seed))

    def _score(self, name: str, seed: int) -> Path:
        """Adds an arm's scoring with all that it needs."""
        arm = self.grid.arms[name]
        held_out = [word for item in arm.held_out.items() for word in item]
        words = ["score", "--model", arm.model, "--held-out", *held_out]
        words += ["--sequence-length", str(self.grid.sequence_length)]
        words += ["--runs", *arm.runs] if arm.runs else []
        words += ["--words", *arm.words] if arm.words else []
        if arm.questions and arm.reward:
            words += ["--questions", arm.questions, "--reward", arm.reward, "--seed", str(seed)]
        output = self._root / self.grid.name / "units" / f"{name}-seed-{seed}.json"
        self._add(f"{self.grid.name}: {name}, seed {seed}: score", None, words, output, output, seed)
        return output

    def _stage(self, name: str, seed: int) -> Path:
        """Adds a stage with all that it needs; returns its output."""
        run = shlex.split(self.grid.stages[name].run)
        output = self._output(name, seed)
        done = output / "model" if run[0] == "train" else output
        if done not in self.works:
            of_seed = f", seed {seed}" if self._is_seeded(name) else ""
            place = SHARED if name in self.grid.shared else self.grid.name
            self._add(f"{place}: {name}{of_seed}", name, run, output, done, seed)
        return done

    def _add(self, title: str, stage: str | None, words: list[str], output: Path, done: Path, seed: int) -> None:
        needed = sorted(set().union(*map(names_in, words)) & self.grid.stages.keys())
        needs = tuple(self._stage(name, seed) for name in needed)
        resolved = tuple(self._resolved(word, seed) for word in words)
        budgets = tuple(
            (word, self._output(match["run"], seed), self._output(match["other"], seed))
            for word in words
            if (match := PLACEHOLDER.fullmatch(word)) and match["run"]
        )
        self.works[done] = Work(title, stage, (*resolved, "--output", str(output)), output, done, needs, budgets)

    def _output(self, name: str, seed: int) -> Path:
        place = self._root / (SHARED if name in self.grid.shared else self.grid.name)
        return place / f"seed-{seed}" / name if self._is_seeded(name) else place / name

    def _is_seeded(self, name: str) -> bool:
        mentioned = names_in(self.grid.stages[name].run)
        return SEED in mentioned or any(self._is_seeded(other) for other in mentioned & self.grid.stages.keys())

    def _resolved(self, word: str, seed: int) -> str:
        def value(name: str) -> str:
            if name == SEED:
                return str(seed)
            return self._inputs[name] if name in self._inputs else str(self._output(name, seed))

        return PLACEHOLDER.sub(lambda match: match[0] if match["run"] else value(match["name"]), word)


def _steps(run: Path, other: Path) -> int:
    """As many steps as `other` would take for the tokens of `run`, at least one."""
    last, last_other = (read_lines(directory / METRICS)[-1] for directory in (run, other))
    steps: float = last["tokens"] * last_other["step"] / last_other["tokens"]
    return max(1, round(steps))
