"""The demo's stages, each the real one on a small scale: text, tokenizers, shards, base, adaptation, CPT,
instruction tuning, report."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vikhr_fast.adapt import Adapt, adapt
from vikhr_fast.config import TrainConfig, read_toml, train_config
from vikhr_fast.console import logger
from vikhr_fast.corpus.shard import Shard, write_shards
from vikhr_fast.demo.instructions import instruction_stages
from vikhr_fast.demo.paths import DemoPaths
from vikhr_fast.demo.start import HEAD_SIZE, write_start
from vikhr_fast.demo.text import ENGLISH, MINIMUM_BYTES, RUSSIAN, Source, text_source, write_texts
from vikhr_fast.demo.tuning import BEFORE, TUNED
from vikhr_fast.errors import InputError
from vikhr_fast.files import sha256_of
from vikhr_fast.report import write_report
from vikhr_fast.run_directory import CONFIG, record_run
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer


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
    """Pieces of the new tokenizer, trained on the Russian and the English text."""
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


class _Stages:
    """Runs stages, or with `dry_run` only says which are still to do."""

    def __init__(self, dry_run: bool) -> None:
        self._dry_run = dry_run

    def run(self, title: str, output: Path, work: Callable[[], object]) -> None:
        """Does the work unless its output is there already: outputs are complete or absent."""
        if output.exists():
            logger.info(f"{title}: done before, {output}")
        elif self._dry_run:
            logger.info(f"{title}: to do, {output}")
        else:
            logger.info(f"{title}: begins")
            started = time.monotonic()
            work()
            logger.info(f"{title}: took {time.monotonic() - started:.1f} s")


def run_demo(options: Demo) -> None:
    """Runs every stage that isn't done yet, prints the table and writes OUTPUT/report.html and OUTPUT/results.json.

    Raises:
        InputError: an impossible option, too little or unreadable text, or an output that other settings or inputs
            made.
    """
    from vikhr_fast.demo.page import demo_page
    from vikhr_fast.demo.results import collect_results, print_results, write_results

    started = time.monotonic()
    paths = DemoPaths(options.output)
    _refuse_impossible(options)
    base, pretrain, instruct = (read_toml(path) for path in (options.base, options.pretrain, options.instruct))
    tuning = _tuning_config(paths, instruct)
    if tuning.schedule.validate_every == 0:
        raise InputError(f"{options.instruct}: schedule.validate_every: must be positive, for scores before tuning")
    for config in _training_configs(paths, base, pretrain, seed=0).values():  # their mistakes show before any work
        if config.schedule.validate_every == 0 and config.data.train.keys() == {RUSSIAN}:
            raise InputError(f"{options.pretrain}: schedule.validate_every: must be positive, for curves to compare")
    sources = {ENGLISH: text_source(ENGLISH, options.english), RUSSIAN: text_source(RUSSIAN, options.russian)}
    settings = {**_settings(options, sources), "base": base, "pretrain": pretrain, "instruct": instruct}
    if not options.dry_run or (options.output / CONFIG).exists():
        record_run(options.output, settings, may_change=("output", "seeds"))

    stages = _Stages(options.dry_run)
    stages.run("text", paths.text, partial(write_texts, paths.text, sources, options.max_bytes))
    _tokenize(options, paths, stages)
    for seed in range(options.seeds):
        _train_seed(options, paths, _training_configs(paths, base, pretrain, seed), seed, stages)
    _tune(paths, tuning, stages)
    if options.dry_run:
        return
    results = collect_results(paths, options.seeds)
    write_results(paths.results, results)
    write_report(paths.report, *demo_page(options.output))
    print_results(results)
    logger.info(f"demo: took {time.monotonic() - started:.0f} s in all")
    print(f"Report: {paths.report}")


def _refuse_impossible(options: Demo) -> None:
    for name, possible, wanted in (
        ("seeds", options.seeds >= 1, "1 or more"),
        ("max-bytes", options.max_bytes >= MINIMUM_BYTES, f"{MINIMUM_BYTES} or more"),
        ("hidden-size", options.hidden_size > 0 and options.hidden_size % (2 * HEAD_SIZE) == 0, "a multiple of 64"),
        ("layers", options.layers >= 1, "1 or more"),
    ):
        if not possible:
            raise InputError(f"--{name} {getattr(options, name.replace('-', '_'))}: must be {wanted}")


def _settings(options: Demo, sources: dict[str, Source]) -> dict[str, Any]:
    """The options as JSON values, with the user's files by their content and the other texts by their description."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    del settings["dry_run"]
    for language, source in sources.items():
        settings[language] = [sha256_of(file) for file in getattr(options, language)] or source.description
    return settings


def _training_configs(
    paths: DemoPaths, base: dict[str, Any], pretrain: dict[str, Any], seed: int
) -> dict[str, TrainConfig]:
    """The training runs of a seed by name; those of CPT differ in the KL term alone."""

    def config(name: str, preset: dict[str, Any], model: Path, language: str) -> TrainConfig:
        tokenizer = language  # the base trains on English in English pieces, CPT on Russian in Russian ones
        data = {
            **preset.get("data", {}),
            "train": {language: paths.shards(tokenizer, language, "train")},
            "validation": {other: paths.shards(tokenizer, other, "validation") for other in (RUSSIAN, ENGLISH)},
        }
        values = {**preset, "model": model, "output": paths.run(seed, name), "data": data, "seed": seed}
        return train_config(values, f"config of {name}")

    adapted = paths.run(seed, "adapted")
    with_kl = pretrain.get("kl", {})
    terms = {"cpt": {"weight": 0.0}, "cpt-kl": with_kl, "cpt-kl-shared": {**with_kl, "support": "shared"}}
    return {
        "base": config("base", base, paths.run(seed, "start"), ENGLISH),
        **{name: config(name, {**pretrain, "kl": kl}, adapted, RUSSIAN) for name, kl in terms.items()},
    }


def _tokenize(options: Demo, paths: DemoPaths, stages: _Stages) -> None:
    """Tokenizers and shards, which all seeds share."""
    english, russian = (paths.text_file(language, "train") for language in (ENGLISH, RUSSIAN))
    for language, vocab_size, texts in (
        (ENGLISH, options.english_vocab, (english,)),
        (RUSSIAN, options.russian_vocab, (russian, english)),  # with English, or adaptation would break its words up
    ):
        tokenizer = TrainTokenizer(input=texts, output=paths.tokenizer(language), vocab_size=vocab_size)
        stages.run(f"{language} tokenizer", tokenizer.output, partial(train_tokenizer, tokenizer))
        for text_language, part in ((language, "train"), (RUSSIAN, "validation"), (ENGLISH, "validation")):
            shard = Shard(
                input=(paths.text_file(text_language, part),),
                tokenizer=paths.tokenizer(language),
                output=paths.shards(language, text_language, part),
            )
            title = f"{text_language} {part} shards, {language} tokenizer"
            stages.run(title, shard.output, partial(write_shards, shard))


def _train_seed(options: Demo, paths: DemoPaths, configs: dict[str, TrainConfig], seed: int, stages: _Stages) -> None:
    """Random weights, English base, Russian vocabulary, continued pre-training without and with KL."""
    from vikhr_fast.train.loop import train

    start, base, adapted = (paths.model(seed, name) for name in ("start", "base", "adapted"))
    adapting = Adapt(base=base, tokenizer=paths.tokenizer(RUSSIAN), output=adapted)
    works: dict[str, Callable[[], object]] = {
        "start": partial(write_start, start, paths.tokenizer(ENGLISH), options.hidden_size, options.layers, seed),
        "base": partial(train, configs["base"]),
        "adapted": partial(adapt, adapting),
        **{name: partial(train, configs[name]) for name in ("cpt", "cpt-kl", "cpt-kl-shared")},
    }
    for name, work in works.items():
        stages.run(f"seed {seed}: {name}", paths.model(seed, name), work)


def _tuning_config(paths: DemoPaths, preset: dict[str, Any]) -> TrainConfig:
    """The instruction tuning of seed 0's CPT."""
    shards = paths.instructions / "shards"
    data = {
        **preset.get("data", {}),
        **{split: {name: shards / split / name for name in (RUSSIAN, ENGLISH)} for split in ("train", "validation")},
    }
    values = {**preset, "model": paths.model(0, BEFORE), "output": paths.run(0, TUNED), "data": data}
    return train_config(values, f"config of {TUNED}")


def _tune(paths: DemoPaths, config: TrainConfig, stages: _Stages) -> None:
    """Instructions, cleaned, then the tuning of seed 0's CPT on them."""
    from vikhr_fast.train.loop import train

    for title, output, work in instruction_stages(paths, config.data.sequence_length):
        stages.run(title, output, work)
    stages.run(f"seed 0: {TUNED}", paths.model(0, TUNED), partial(train, config))
