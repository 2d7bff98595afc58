"""`vikhr-fast demo`: the whole pipeline on a small scale, a grid of commands run one after another."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vikhr_fast.config import PRESETS, config_with_gaps, read_toml
from vikhr_fast.errors import InputError, require
from vikhr_fast.experiments.demo.paths import DemoPaths
from vikhr_fast.experiments.grid import read_stages
from vikhr_fast.experiments.inputs import HEAD_SIZE
from vikhr_fast.experiments.sample.text import ENGLISH, MINIMUM_BYTES, RUSSIAN, Source, text_source
from vikhr_fast.experiments.works import Works, check_commands
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import sha256_of
from vikhr_fast.io.html import write_report
from vikhr_fast.io.plain import plain
from vikhr_fast.io.run_directory import CONFIG, record_run
from vikhr_fast.io.stage_runner import run_stages

_STAGES = PRESETS / "demo" / "stages.toml"


@dataclass(frozen=True)
class Demo:
    """Shows the whole pipeline: a tiny English model gets a Russian vocabulary, learns Russian, then to answer.

    Takes minutes on two CPU cores and nothing from the network. The same command goes on where an earlier one
    stopped. Ends with a table and OUTPUT/report.html.
    """

    output: Path = Path("runs/demo")
    """Directory of all stages; finished ones in it are not done again."""
    russian: tuple[Path, ...] = ()
    """Your own Russian text (.txt, .jsonl, .parquet), 100 KB or more; without it the sample corpus of the package."""
    english: tuple[Path, ...] = ()
    """Your own English text, likewise; without it the language reference that is part of Python."""
    seeds: int = 1
    """Train base and CPT so many times, with seeds 0, 1, ..., for the comparison's standard error."""
    max_bytes: int = 1_000_000
    """Training text of a language, in UTF-8 bytes; of more, documents from all over the files are taken."""
    english_vocab: int = 2048
    """Pieces of the base model's tokenizer, trained on the English text."""
    russian_vocab: int = 3072
    """Pieces of the new tokenizer, trained on the Russian and the English text; the base's is extended to as many."""
    hidden_size: int = 192
    """Width of the model, a multiple of 64."""
    layers: int = 4
    """Layers of the model."""
    base: Path = Path("demo-base")
    """Preset or TOML file that trains the English base."""
    pretrain: Path = Path("demo-pretrain")
    """Preset or TOML file of the continued pre-training; its [kl] is that of the runs with KL."""
    instruct: Path = Path("demo-instruct")
    """Preset or TOML file of the instruction tuning that follows CPT."""
    dry_run: bool = False
    """Check inputs and settings, say which stages are to do, and stop."""


def run_demo(options: Demo) -> None:
    """Runs every stage that isn't done yet, prints the table and writes OUTPUT/report.html and OUTPUT/results.json.

    Raises:
        InputError: an impossible option, too little or unreadable text, or an output that other settings or inputs
            made.
    """
    from vikhr_fast.experiments.demo.page import demo_page
    from vikhr_fast.experiments.demo.results import collect_results, print_results, write_results

    started = time.monotonic()
    require(
        options,
        seeds=(options.seeds >= 1, "1 or more"),
        max_bytes=(options.max_bytes >= MINIMUM_BYTES, f"{MINIMUM_BYTES} or more"),
        russian_vocab=(
            options.russian_vocab > options.english_vocab,
            "more than --english-vocab, which is extended",
        ),
        hidden_size=(options.hidden_size > 0 and options.hidden_size % (2 * HEAD_SIZE) == 0, "a multiple of 64"),
        layers=(options.layers >= 1, "1 or more"),
    )
    presets = {name: read_toml(getattr(options, name)) for name in ("base", "pretrain", "instruct")}
    configs = {name: config_with_gaps(own, str(getattr(options, name)), None) for name, own in presets.items()}
    for name, purpose in (("pretrain", "curves to compare"), ("instruct", "scores before tuning")):
        if configs[name].schedule.validate_every == 0:
            path = getattr(options, name)
            raise InputError(f"{path}: schedule.validate_every: must be positive, for {purpose}")
    sources = {ENGLISH: text_source(ENGLISH, options.english), RUSSIAN: text_source(RUSSIAN, options.russian)}
    works = demo_works(options, configs["instruct"].data.sequence_length)
    check_commands(works.works.values(), _STAGES)
    if not options.dry_run or (options.output / CONFIG).exists():
        values, defaults = ({**one, **presets} for one in (_settings(options, sources), _settings(Demo(), {})))
        record_run(options.output, values, may_change=("output", "seeds"), defaults=defaults)
    if options.dry_run:
        print(plain("\n".join(work.described() for work in works.works.values())))
        return
    run_stages(work.as_stage() for work in works.works.values())
    paths = DemoPaths(options.output)
    results = collect_results(paths, options.seeds)
    write_results(paths.results, results)
    write_report(paths.report, *demo_page(options.output))
    print_results(results)
    logger.info(f"demo: took {time.monotonic() - started:.0f} s in all")
    print(plain(f"Report: {paths.report}"))


def demo_works(options: Demo, sequence_length: int) -> Works:
    """The demo's commands: seed by seed base, adaptation and continued pre-training, then tuning of the first."""
    inputs: dict[str, str | tuple[str, ...]] = {
        name.replace("_", "-"): tuple(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in vars(options).items()
    }
    for name in ("base", "pretrain", "instruct"):  # stages are named so
        inputs[f"{name}-preset"] = inputs.pop(name)
    inputs["sequence-length"] = str(sequence_length)
    works = Works(read_stages(_STAGES), options.output, inputs)
    for seed in range(options.seeds):
        for name in ("cpt", "cpt-kl", "cpt-kl-shared", "cpt-extended"):
            works.add_stage(name, seed)
    works.add_stage("instruct", 0)
    return works


def _settings(options: Demo, sources: dict[str, Source]) -> dict[str, Any]:
    """The options as JSON values, with the user's files by their content and the other texts by their description."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    del settings["dry_run"]
    for language, source in sources.items():
        settings[language] = [sha256_of(file) for file in getattr(options, language)] or source.description
    return settings
