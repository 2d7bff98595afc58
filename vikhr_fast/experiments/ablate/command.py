"""`vikhr-fast ablate`: the paper's tables 7 to 10, several seeds, resumable."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from vikhr_fast.config import PRESETS
from vikhr_fast.errors import InputError, require
from vikhr_fast.experiments.ablate.collect import collect
from vikhr_fast.experiments.grid import Grid, names_in, read_grid
from vikhr_fast.experiments.results import ABLATION, Ablation, write_ablation
from vikhr_fast.experiments.works import SHARED, Work, check_commands, parse, works_of
from vikhr_fast.io.console import PlainConsole, logger
from vikhr_fast.io.files import json_text, write_text
from vikhr_fast.io.guarded import parse_json
from vikhr_fast.io.run_directory import locked, record_run
from vikhr_fast.io.stage_runner import run_stages_at_once
from vikhr_fast.plan.command import Plan, estimate

GRIDS = PRESETS / "ablations"
_WIDTH_OF_FILES = 200  # a table isn't cut where nobody's window is
_PRELOADED = ("vikhr_fast.commands", "vikhr_fast.train.loop")  # with PyTorch, once for all stages


@dataclass(frozen=True)
class Ablate:
    """Measures what each choice buys: tables 7 to 10 of the paper as grids of runs (section 4.3).

    vocab is table 7, filter 8, kl 9, instruct 10; fraction is of `kl.fraction`, at the demo's scale. Arms that are
    compared begin with the same weights and see the same order of data; differences are paired by seed. The same
    command takes an interrupted ablation up again.
    Each table's OUTPUT/TABLE has ablation.json, table.md and report.html.
    """

    tables: Annotated[tuple[Literal["vocab", "filter", "kl", "instruct", "fraction"], ...], Positional]
    """Which; several share what they have in common."""
    output: Path = Path("runs/ablations")
    """Directory of all tables; what is finished in it is not done again."""
    scale: Path = Path("demo")
    """demo: a model of 3 million parameters, minutes on two cores; real and replay: a pretrained one of 135 million,
    for which `make real` and `make replay` have the inputs; paper: 7B; or a directory of such grids."""
    data: Path | None = None
    """Text for the demo's scale instead of the bundled one: a directory with ru/*.txt and en/*.txt."""
    inputs: dict[str, str] = field(default_factory=dict)
    """What a grid asks for by name, --inputs NAME WORD NAME WORD ...; --dry-run names them."""
    seeds: int | None = None
    """How many, 0, 1, ...; none is what the grid says."""
    jobs: int = 0
    """Commands run at once, with one thread each; 0 is one a core, or a single one where several devices train."""
    dry_run: bool = False
    """Check grids and commands, say what would be run and what the trainings would cost, and stop."""


def ablate(options: Ablate) -> None:
    """Runs what isn't done yet; writes and prints the tables.

    Raises:
        InputError: impossible options, a wrong grid, a command that fails, an output of another ablation.
    """
    if not options.tables:
        raise InputError("ablate: no table; give vocab, filter, kl, instruct or fraction")
    require(
        options,
        seeds=(options.seeds is None or options.seeds >= 1, "1 or more"),
        jobs=(options.jobs >= 0, "0 or more"),
    )
    directory = options.scale if options.scale.is_dir() else GRIDS / options.scale
    if not directory.is_dir():
        known = ", ".join(sorted(path.name for path in GRIDS.iterdir()))
        raise InputError(f"--scale {options.scale}: no such directory of grids; give one, or {known}")
    if absent := [table for table in options.tables if not (directory / f"{table}.toml").is_file()]:
        raise InputError(f"ablate: {directory} has no grid for {', '.join(absent)}")
    grids = [read_grid(directory / f"{table}.toml") for table in dict.fromkeys(options.tables)]
    given = _given(options, grids)
    needed = {name for grid in grids for name in grid.inputs}
    if unknown := sorted(given.keys() - needed):
        known = ", ".join(sorted(needed)) or "none"
        raise InputError(f"--inputs {', '.join(unknown)}: no such input; there are {known}")
    inputs = {name: given.get(name, name.upper()) for name in needed}
    works: dict[str, dict[Path, Work]] = {}
    units: dict[str, dict[str, list[Path]]] = {}
    for grid in grids:
        seeds = range(grid.seeds if options.seeds is None else options.seeds)
        works[grid.name], units[grid.name] = works_of(grid, options.output, inputs, seeds)
        check_commands(works[grid.name].values(), directory / f"{grid.name}.toml")
    if options.dry_run:
        _show_plan(grids, works)
        return
    if missing := sorted(needed - given.keys()):
        raise InputError(f"--inputs: {', '.join(missing)}: must be given; --dry-run says what they are")
    for name in sorted(name for grid in grids for name, one in grid.inputs.items() if one.is_path):
        if not (path := Path(inputs[name])).exists() or (path.is_file() and path.stat().st_size == 0):
            problem = "empty" if path.exists() else "no such file or directory"
            raise InputError(f"--inputs {name} {path}: {problem}; --dry-run says what it is")
    with locked(options.output):
        for grid in grids:
            _record(grid, options.output, inputs)
        jobs = options.jobs or (1 if any(grid.launcher for grid in grids) else os.cpu_count() or 1)
        every = {done: work.as_stage() for own in works.values() for done, work in own.items()}
        run_stages_at_once(list(every.values()), options.output / "logs", jobs, _PRELOADED)
        for grid in grids:
            _write(collect(grid, options.scale.name, units[grid.name]), options.output / grid.name)


def _given(options: Ablate, grids: list[Grid]) -> dict[str, str]:
    """The inputs that have a value."""
    defaults = {name: one.default for grid in grids for name, one in grid.inputs.items() if one.default is not None}
    data = {} if options.data is None else {"data": str(options.data)}
    return {**defaults, **data, **options.inputs}


def _record(grid: Grid, output: Path, inputs: Mapping[str, str]) -> None:
    """Writes down what the outputs depend on, or compares it with what was written before."""
    commands = {name: stage.run for name, stage in grid.stages.items()}
    shared = {name: run for name, run in commands.items() if name in grid.shared}
    arms = {name: {key: value for key, value in vars(arm).items() if key != "label"} for name, arm in grid.arms.items()}
    config = {
        "inputs": {name: inputs[name] for name in grid.inputs},
        "sequence_length": grid.sequence_length,
        "stages": {name: run for name, run in commands.items() if name not in shared},
        "arms": arms,
    }
    record_run(output / grid.name, parse_json(json_text(config)))  # tuples as lists, as they are read again
    if shared:
        used = {name: inputs[name] for name in sorted(names_in(*shared.values()) & inputs.keys())}
        record_run(output / SHARED, {"inputs": used, "stages": shared})


def _write(ablation: Ablation, directory: Path) -> None:
    from vikhr_fast.experiments.ablate.page import ablation_page, markdown, tables, terminal
    from vikhr_fast.io.html import write_report

    write_ablation(directory / ABLATION, ablation)
    write_text(directory / "table.md", markdown(ablation))
    write_report(directory / "report.html", *ablation_page(directory))
    console = PlainConsole()
    if not console.is_terminal:
        console.width = _WIDTH_OF_FILES
    for table in tables(ablation):
        console.print(f"{table.caption}:")
        console.print(terminal(table))
    for note in ablation.notes:
        console.print(note)
    logger.info(f"{directory / 'report.html'}: the same as a page, with plots")


def _show_plan(grids: list[Grid], works: Mapping[str, Mapping[Path, Work]]) -> None:
    """Prints every command, done or to do, and what the trainings would cost where the grid says how large they are."""
    console = PlainConsole(soft_wrap=True)
    shown: set[Path] = set()
    total = 0.0
    for grid in grids:
        table = "" if grid.table is None else f", table {grid.table}"
        console.print(f"{grid.name}{table}: {grid.title}. Perplexity on {grid.text}.")
        for name, one in grid.inputs.items():
            default = "" if one.default is None else f" (default: {one.default})"
            console.print(f"  input {name}: {one.help}{default}")
        for note in grid.notes:
            console.print(f"  {note}")
        for done, work in works[grid.name].items():
            if done not in shown:
                shown.add(done)
                hours = _gpu_hours(grid, work)
                total += hours
                cost = f" [{hours:,.0f} GPU-hours]" if hours else ""
                console.print(f"  {work.described(cost)}")
    if total:
        console.print(f"{total:,.0f} GPU-hours of trainings in all, on A100-80GB as `vikhr-fast plan` reckons")
    console.print(f"{len(shown)} commands in all")


def _gpu_hours(grid: Grid, work: Work) -> float:
    """What a training would take on the paper's hardware; 0 where the grid gives no tokens and shape."""
    stage = None if work.stage is None else grid.stages[work.stage]
    if stage is None or stage.tokens is None or stage.shape is None:
        return 0.0
    _, options = parse(work.parsable_words())
    return float(estimate(Plan(tokens=stage.tokens), options.settings, stage.shape)["gpu_hours"])
