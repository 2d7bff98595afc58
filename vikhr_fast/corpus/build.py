"""`corpus build`: every stage of a corpus.toml, one after another; what is done stays done."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from tyro.conf import Positional, arg

from vikhr_fast.corpus import layout
from vikhr_fast.corpus.annotate import Annotate, annotate
from vikhr_fast.corpus.collect import Collect, collect
from vikhr_fast.corpus.decontaminate import Decontaminate, decontaminate, evaluation_files
from vikhr_fast.corpus.dedup_stage import Dedup, dedup
from vikhr_fast.corpus.mix import Mix, mix
from vikhr_fast.corpus.quality_filter import Filter, filter_corpus
from vikhr_fast.corpus.scrub import Scrub, scrub
from vikhr_fast.corpus.settings import CorpusSettings, Machine, check_machine, read_settings
from vikhr_fast.corpus.shard import encoder_for_shards
from vikhr_fast.corpus.stage import read_work
from vikhr_fast.corpus.stats import corpus_page
from vikhr_fast.corpus.token_counts import write_token_counts
from vikhr_fast.corpus.train_filter import TrainFilter, train_filter
from vikhr_fast.data.documents import Documents
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import write_json
from vikhr_fast.io.html import write_report
from vikhr_fast.io.run_directory import locked
from vikhr_fast.io.stage_runner import Stage, run_stages
from vikhr_fast.llm.endpoint import ChatEndpoint


@dataclass(frozen=True)
class Build:
    """Runs every stage of a corpus.toml, from its sources to token shards and a report.

    Stages without settings are left out. Interrupted, the same command goes on where it was.
    """

    config: Annotated[Path, Positional]
    """The corpus.toml."""
    output: Path
    """Directory of the stages' outputs, made if missing."""
    machine: Annotated[Machine, arg(name="")] = field(default_factory=Machine)
    """How it runs."""


def build(options: Build) -> None:
    """Runs the stages that are not done.

    Raises:
        InputError: what a stage raises; or an output of other settings or input is in its place.
    """
    settings, output = read_settings(options.config), options.output
    with locked(output):
        _check_late_stages(options, settings)
        if options.machine.threads:
            torch.set_num_threads(options.machine.threads)
        times = layout.read_times(output)

        def note_time(stage: Stage, seconds: float) -> None:
            times[stage.name] = round(seconds, 2)
            write_json(output / layout.TIMES, times)

        run_stages(_stages(options, settings), note_time)
        if settings.mix:
            stages = (settings.dedup, settings.scrub, settings.decontaminate, settings.filter)
            names = [name for name, chosen in zip(layout.DOCUMENT_STAGES, (True, *stages), strict=True) if chosen]
            ends = {name: Documents.open(output / name) for name in (names[0], names[-1])}
            write_token_counts(output / layout.TOKENS, ends, settings.mix.tokenizer, options.machine.threads)
        write_report(output / layout.REPORT, *corpus_page(output))
        logger.info(f"{output / layout.REPORT}: what became of the text")


def _check_late_stages(options: Build, settings: CorpusSettings) -> None:
    """Finds at once what would end the run hours later."""
    check_machine(options.machine)
    if settings.decontaminate:
        evaluation_files(settings.decontaminate)
    if settings.annotate and not (options.output / layout.ANNOTATED).exists():
        ChatEndpoint(settings.annotate)
    if settings.classifier:
        read_work(settings.classifier)
    if settings.mix:
        encoder_for_shards(settings.mix.tokenizer)


def _stages(options: Build, settings: CorpusSettings) -> Iterator[Stage]:
    """The stages that the settings name, each reading what an earlier one wrote."""
    machine, output = options.machine, options.output

    def stage(run: Callable[[Any], object], chosen: Any) -> Stage:
        return Stage(chosen.output.name, chosen.output, partial(run, chosen), compares=True)

    documents = output / layout.COLLECTED
    yield stage(collect, Collect(options.config, documents))
    if settings.dedup:
        yield stage(dedup, Dedup(documents, output / layout.DEDUPLICATED, settings.dedup, machine))
        documents = output / layout.DEDUPLICATED
    if settings.scrub:
        yield stage(scrub, Scrub(documents, output / layout.SCRUBBED, settings.scrub))
        documents = output / layout.SCRUBBED
    if settings.decontaminate:
        yield stage(decontaminate, Decontaminate(documents, output / layout.DECONTAMINATED, settings.decontaminate))
        documents = output / layout.DECONTAMINATED
    classifier = settings.classifier
    if settings.annotate:
        yield stage(annotate, Annotate(documents, output / layout.ANNOTATED, settings.annotate))
        if settings.train_filter:
            classifier = output / layout.CLASSIFIER
            yield stage(train_filter, TrainFilter(output / layout.ANNOTATED, classifier, settings.train_filter))
    if settings.filter and classifier:
        yield stage(filter_corpus, Filter(documents, classifier, output / layout.FILTERED, settings.filter))
        documents = output / layout.FILTERED
    if settings.mix:
        weights = {name: source.weight for name, source in settings.sources.items()}
        kl_weights = {name: source.kl_weight for name, source in settings.sources.items()}
        shards = output / layout.SHARDS
        yield stage(
            mix, Mix(documents, shards, settings.mix, weights, kl_weights, machine.threads, tuple(settings.sources))
        )
