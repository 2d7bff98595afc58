"""A table's grid, read from TOML: arms, seeds, and the stages that make them, each a command of this package.

The demo's stages are written the same way, without arms.

    name = "kl"                    table = 9                    title = "..."
    text = "what the perplexity is on"
    control = "ce"                 seeds = 3                    sequence_length = 256
    include = ["stages.toml"]      # more [inputs] and [stages], beside this file; all tables share what these make
    [inputs.data]                  # a word that the user gives, by --inputs data=WORD
    help = "..."                   default = "bundled"          # without a default it must be given
    [stages.cpt]                   # {NAME} is where the stage of that name, or of this seed, has put what it made
    run = "train --config demo-pretrain --model {adapted} --seed {seed} --data.train russian {shards} ..."
    [arms.ce]
    label = "CE"                   model = "{cpt}/model"
    runs = ["{cpt}"]               # the runs whose tokens and FLOPs the arm costs
    held_out = {russian = "{russian-held-out}", english = "{english-held-out}"}
    words = ["{text}/russian-validation.jsonl"]     # text to count tokens a word in
    questions = "{held-out}/conversations.jsonl"    # whose answers, drawn from the model, a reward model scores
    reward = "{reward}"
    [[comparisons]]                # without any, every arm with the control
    arm = "ce-kl"                  against = "ce"               label = "..."
    [[columns]]
    name = "russian.perplexity"    label = "..."                digits = 2

A stage that mentions {seed}, or a stage that does, is done anew for every seed. {steps:RUN:OTHER} is the number of
steps, at as many tokens a step as the run of stage OTHER took, in which one trains on as many tokens as RUN did.
"""

import re
import shlex
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from vikhr_fast.config import STRICT, Count, read_toml, validated
from vikhr_fast.errors import InputError
from vikhr_fast.experiments.results import Column, Pair
from vikhr_fast.model.config import ModelConfig

_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9/-]*$")]

PLACEHOLDER = re.compile(r"\{(?:steps:(?P<run>[a-z0-9/-]+):(?P<other>[a-z0-9/-]+)|(?P<name>[^{}]*))\}")
SEED = "seed"
EQUAL_RUSSIAN = "english_at_equal_russian"
"""English bits per byte where both runs of a comparison have first reached the same Russian, interpolated."""
_OTHER_COLUMNS = (EQUAL_RUSSIAN, "reward", "tokens", "teraflop", "tokens_per_word")
_MOST_IN_A_ROW = 100
_MEASURES = ("perplexity", "bits_per_byte")  # of each held-out text


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """A word of the commands that the user gives."""

    help: str
    """What it is."""
    default: str | None = None
    """Without one it must be given."""
    is_path: bool = False
    """It must be there before anything is begun: an output whose inputs were wrong takes no others."""


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """A command of this package, without --output."""

    run: Annotated[str, Field(min_length=1)]
    """Its words, as a shell would read them; `inputs ...` are those of `ablate.inputs`."""
    tokens: Annotated[float, Field(strict=True, gt=0)] | None = None
    """Of a training, for its plan: tokens over all epochs."""
    shape: ModelConfig | None = None
    """Likewise: the model."""


@dataclass(frozen=True, kw_only=True)
class ArmSettings:
    """One way of doing it."""

    label: str
    model: str
    held_out: Annotated[dict[str, str], Field(min_length=1)]
    runs: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    questions: str | None = None
    """Conversations whose questions the model answers,"""
    reward: str | None = None
    """and the reward model that scores its answers."""


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What a grid has, a file that it includes, and the demo."""

    __pydantic_config__ = STRICT  # pydantic hands it on to the sections

    inputs: dict[_Name, InputSettings] = field(default_factory=dict)
    stages: dict[_Name, StageSettings] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Grid(Stages):
    """A table's grid; see the module's docstring."""

    name: Literal["vocab", "filter", "kl", "instruct", "fraction"]
    title: str
    text: str
    control: str
    arms: Annotated[dict[_Name, ArmSettings], Field(min_length=2)]
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]
    table: Count | None = None
    """Of the paper, if it has one."""
    seeds: Annotated[int, Field(strict=True, ge=1, le=1000)] = 3
    sequence_length: Annotated[int, Field(strict=True, ge=2)] = 1024
    """Tokens of a held-out text that are read at once."""
    include: tuple[str, ...] = ()
    comparisons: tuple[Pair, ...] = ()
    notes: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    """What starts trainings, `torchrun` and its flags; nothing on one device."""
    shared: frozenset[str] = frozenset()
    """The stages that came from included files."""

    def pairs(self) -> tuple[Pair, ...]:
        """The comparisons: those named, or every arm with the control."""
        control = self.arms[self.control].label
        others = {name: arm.label for name, arm in self.arms.items() if name != self.control}
        return self.comparisons or tuple(
            Pair(arm=name, against=self.control, label=f"{label} against {control}") for name, label in others.items()
        )


_GRID, _STAGES = pydantic.TypeAdapter(Grid), pydantic.TypeAdapter(Stages)


def read_stages(path: Path) -> Stages:
    """Reads stages alone; InputError as `read_grid`."""
    return validated(_STAGES, read_toml(path), str(path))


def read_grid(path: Path) -> Grid:
    """Reads a grid with all that it includes.

    Raises:
        InputError: one line that names the file and what is wrong in it: not TOML, an unknown key, an arm or stage
            that is named and not there, a stage that needs itself.
    """
    values = read_toml(path)
    if "shared" in values:
        raise InputError(f"{path}: shared: unknown key")
    grid = validated(_GRID, values, str(path))
    for name in grid.include:
        more = read_stages(path.parent / name)
        if twice := sorted(more.stages.keys() & grid.stages.keys()):
            raise InputError(f"{path}: stages: {', '.join(twice)}: also in an included file; give it another name")
        grid = replace(
            grid,
            inputs={**more.inputs, **grid.inputs},
            stages={**more.stages, **grid.stages},
            shared=grid.shared | more.stages.keys(),
        )
    _check(grid, path)
    return grid


def names_in(*texts: str) -> set[str]:
    """The stages, inputs and `seed` that texts mention."""
    groups = (match.groups() for text in texts for match in PLACEHOLDER.finditer(text))
    return {name for names in groups for name in names if name is not None}


def _check(grid: Grid, path: Path) -> None:
    """Refuses what is named and not there."""
    named = [(f"comparisons.{n}", arm) for n, pair in enumerate(grid.comparisons) for arm in (pair.arm, pair.against)]
    for place, arm_name in [("control", grid.control), *named]:
        if arm_name not in grid.arms:
            raise InputError(f"{path}: {place}: no arm {arm_name!r}; there are {', '.join(grid.arms)}")
    if both := sorted(grid.inputs.keys() & grid.stages.keys()):
        raise InputError(f"{path}: {', '.join(both)}: an input and a stage; give one of them another name")
    mentioned = {f"stages.{name}": names_in(stage.run) for name, stage in grid.stages.items()}
    for name, arm in grid.arms.items():
        asked = (arm.questions or "", arm.reward or "")
        mentioned[f"arms.{name}"] = names_in(arm.model, *arm.held_out.values(), *arm.runs, *arm.words, *asked)
        if (arm.questions is None) != (arm.reward is None):
            raise InputError(f"{path}: arms.{name}: questions and reward: give both, or none")
    for place, names in mentioned.items():
        if unknown := sorted(names - {SEED, *grid.inputs, *grid.stages}):
            raise InputError(f"{path}: {place}: no stage {', '.join(map(repr, unknown))}; add it under [stages]")
    for name, stage in grid.stages.items():
        try:
            shlex.split(stage.run)
        except ValueError as error:
            raise InputError(f"{path}: stages.{name}: {error}") from None
        runs = {run for match in PLACEHOLDER.finditer(stage.run) for run in match.group("run", "other") if run}
        if wrong := sorted(run for run in runs if not grid.stages[run].run.startswith("train ")):
            raise InputError(f"{path}: stages.{name}: steps: {', '.join(wrong)} is no training")
    _check_order(grid, path)
    held_out = {name for arm in grid.arms.values() for name in arm.held_out}
    possible = {*_OTHER_COLUMNS, *(f"{name}.{measure}" for name in held_out for measure in _MEASURES)}
    if wrong := [column.name for column in grid.columns if column.name not in possible]:
        raise InputError(f"{path}: columns: no {', '.join(wrong)}; there are {', '.join(sorted(possible))}")


def _check_order(grid: Grid, path: Path) -> None:
    """Refuses a stage that needs itself, and more stages one after another than anybody means."""
    needs = {name: names_in(stage.run) & grid.stages.keys() for name, stage in grid.stages.items()}
    try:
        order = tuple(TopologicalSorter(needs).static_order())
    except CycleError as error:
        circle: list[str] = error.args[1][:0:-1]  # each needs the next, the last one the first
        start = circle.index(min(circle, key=list(grid.stages).index))
        named = " <- ".join([*circle[start:], *circle[: start + 1]])
        raise InputError(f"{path}: stages.{circle[start]}: needs itself, by {named}") from None
    depths: dict[str, int] = {}
    for name in order:
        depths[name] = 1 + max((depths[needed] for needed in needs[name]), default=0)
        if depths[name] > _MOST_IN_A_ROW:
            raise InputError(f"{path}: stages.{name}: needs more than {_MOST_IN_A_ROW} stages one after another")
