"""A table's grid, read from TOML: arms, seeds, and the stages that make them, each a command of this package.

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from vikhr_fast.ablate.results import Column
from vikhr_fast.config import STRICT, read_toml, validated
from vikhr_fast.errors import InputError
from vikhr_fast.model_config import ModelConfig

_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
_Count = Annotated[int, Field(ge=1)]

PLACEHOLDER = re.compile(r"\{(?:steps:(?P<run>[a-z0-9-]+):(?P<other>[a-z0-9-]+)|(?P<name>[^{}]*))\}")
SEED = "seed"
EQUAL_RUSSIAN = "english_at_equal_russian"
"""English bits per byte where both runs of a comparison have first reached the same Russian, interpolated."""
REWARD = "reward"
"""Mean reward of the model's own answers, drawn from its distribution."""
COSTS = ("tokens", "teraflop", "tokens_per_word")
MEASURES = ("perplexity", "bits_per_byte")


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """A word of the commands that the user gives."""

    __pydantic_config__ = STRICT

    help: str
    """What it is."""
    default: str | None = None
    """Without one it must be given."""


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """A command of this package, without --output."""

    __pydantic_config__ = STRICT

    run: Annotated[str, Field(min_length=1)]
    """Its words, as a shell would read them; `inputs ...` are those of `ablate.inputs`."""
    tokens: Annotated[float, Field(gt=0)] | None = None
    """Of a training, for its plan: tokens over all epochs."""
    shape: ModelConfig | None = None
    """Likewise: the model."""


@dataclass(frozen=True, kw_only=True)
class ArmSettings:
    """One way of doing it."""

    __pydantic_config__ = STRICT

    label: str
    model: str
    held_out: Annotated[dict[str, str], Field(min_length=1)]
    runs: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    questions: str | None = None
    """Conversations whose questions the model answers,"""
    reward: str | None = None
    """and the reward model that scores its answers."""

    def mentioned(self) -> tuple[str, ...]:
        """All that may name stages."""
        asked = (word for word in (self.questions, self.reward) if word is not None)
        return (self.model, *self.held_out.values(), *self.runs, *self.words, *asked)


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """Which arms to compare."""

    __pydantic_config__ = STRICT

    arm: str
    against: str
    label: str


@dataclass(frozen=True, kw_only=True)
class ColumnSettings:
    """A column of the table."""

    __pydantic_config__ = STRICT

    name: str
    """HELD_OUT.perplexity, HELD_OUT.bits_per_byte, reward, tokens, teraflop, tokens_per_word,
    english_at_equal_russian."""
    label: str
    digits: Annotated[int, Field(ge=0, le=6)] = 3


@dataclass(frozen=True, kw_only=True)
class _Stages:
    """What an included file has."""

    __pydantic_config__ = STRICT

    inputs: dict[_Name, InputSettings] = field(default_factory=dict)
    stages: dict[_Name, StageSettings] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Grid(_Stages):
    """A table's grid; see the module's docstring."""

    name: Literal["vocab", "filter", "kl", "instruct", "fraction"]
    title: str
    text: str
    control: str
    arms: Annotated[dict[_Name, ArmSettings], Field(min_length=2)]
    columns: Annotated[tuple[ColumnSettings, ...], Field(min_length=1)]
    table: _Count | None = None
    """Of the paper, if it has one."""
    seeds: _Count = 3
    sequence_length: Annotated[int, Field(ge=2)] = 1024
    """Tokens of a held-out text that are read at once."""
    include: tuple[str, ...] = ()
    comparisons: tuple[ComparisonSettings, ...] = ()
    notes: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    """What starts trainings, `torchrun` and its flags; nothing on one device."""
    shared: frozenset[str] = frozenset()
    """The stages that came from included files."""

    @property
    def table_columns(self) -> tuple[Column, ...]:
        """As results have them."""
        return tuple(Column(column.name, column.label, column.digits) for column in self.columns)

    def pairs(self) -> tuple[ComparisonSettings, ...]:
        """The comparisons: those named, or every arm with the control."""
        if self.comparisons:
            return self.comparisons
        control = self.arms[self.control].label
        return tuple(
            ComparisonSettings(arm=name, against=self.control, label=f"{arm.label} against {control}")
            for name, arm in self.arms.items()
            if name != self.control
        )


_GRID, _INCLUDED = pydantic.TypeAdapter(Grid), pydantic.TypeAdapter(_Stages)


def read_grid(path: Path) -> Grid:
    """Reads a grid with all that it includes.

    Raises:
        InputError: one line that names the file and what is wrong in it: not TOML, an unknown key, an arm or stage
            that is named and not there, a stage that needs itself.
    """
    values = read_toml(path)
    if "shared" in values:
        raise InputError(f"{path}: shared: unknown key")
    inputs: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for name in values.get("include", ()):
        file = path.parent / str(name)
        more = validated(_INCLUDED, read_toml(file), str(file))
        inputs, shared = {**inputs, **more.inputs}, {**shared, **more.stages}
    grid = validated(_GRID, values, str(path))
    if twice := sorted(shared.keys() & grid.stages.keys()):
        raise InputError(f"{path}: stages: {', '.join(twice)}: also in an included file; give it another name")
    grid = validated(
        _GRID,
        {
            **values,
            "inputs": {**inputs, **grid.inputs},
            "stages": {**shared, **grid.stages},
            "shared": frozenset(shared),
        },
        str(path),
    )
    _check(grid, path)
    return grid


def names_in(text: str) -> set[str]:
    """The stages, inputs and `seed` that a text mentions."""
    return {name for match in PLACEHOLDER.finditer(text) for name in match.groups() if name is not None}


def _check(grid: Grid, path: Path) -> None:
    """Refuses what is named and not there."""
    arms = ", ".join(grid.arms)
    if grid.control not in grid.arms:
        raise InputError(f"{path}: control: no arm {grid.control!r}; there are {arms}")
    for number, pair in enumerate(grid.comparisons):
        for side in (pair.arm, pair.against):
            if side not in grid.arms:
                raise InputError(f"{path}: comparisons.{number}: no arm {side!r}; there are {arms}")
    if both := sorted(grid.inputs.keys() & grid.stages.keys()):
        raise InputError(f"{path}: {', '.join(both)}: an input and a stage; give one of them another name")
    known = {SEED, *grid.inputs, *grid.stages}
    texts = {f"stages.{name}": stage.run for name, stage in grid.stages.items()}
    for name, arm in grid.arms.items():
        texts[f"arms.{name}"] = " ".join(arm.mentioned())
        if (arm.questions is None) != (arm.reward is None):
            raise InputError(f"{path}: arms.{name}: questions and reward: give both, or none")
    for place, text in texts.items():
        if unknown := sorted(names_in(text) - known):
            raise InputError(f"{path}: {place}: no stage {', '.join(map(repr, unknown))}; add it under [stages]")
    for name, stage in grid.stages.items():
        try:
            shlex.split(stage.run)
        except ValueError as error:
            raise InputError(f"{path}: stages.{name}: {error}") from None
        _refuse_circle(grid, name, (), path)
        runs = {run for match in PLACEHOLDER.finditer(stage.run) for run in (match["run"], match["other"]) if run}
        if wrong := sorted(run for run in runs if not grid.stages[run].run.startswith("train ")):
            raise InputError(f"{path}: stages.{name}: steps: {', '.join(wrong)} is no training")
    held_out = {name for arm in grid.arms.values() for name in arm.held_out}
    possible = {EQUAL_RUSSIAN, REWARD, *COSTS, *(f"{name}.{measure}" for name in held_out for measure in MEASURES)}
    if wrong := [column.name for column in grid.columns if column.name not in possible]:
        raise InputError(f"{path}: columns: no {', '.join(wrong)}; there are {', '.join(sorted(possible))}")


def _refuse_circle(grid: Grid, name: str, above: tuple[str, ...], path: Path) -> None:
    if name in above:
        raise InputError(f"{path}: stages.{name}: needs itself, by {' <- '.join((*above, name))}")
    for needed in sorted(names_in(grid.stages[name].run) & grid.stages.keys()):
        _refuse_circle(grid, needed, (*above, name), path)
