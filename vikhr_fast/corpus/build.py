"""`corpus build`: every stage of a corpus.toml, one after another; what is done stays done."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from tyro.conf import Positional, arg

from vikhr_fast.console import logger
from vikhr_fast.corpus.annotate import annotate_documents, annotate_work
from vikhr_fast.corpus.chat import endpoint_of
from vikhr_fast.corpus.collect import collect_sources, collect_work
from vikhr_fast.corpus.decontaminate import decontaminate_documents, decontaminate_work, evaluation_files
from vikhr_fast.corpus.dedup_stage import dedup_documents, dedup_work
from vikhr_fast.corpus.documents import Documents
from vikhr_fast.corpus.layout import (
    ANNOTATED,
    CLASSIFIER,
    COLLECTED,
    DECONTAMINATED,
    DEDUPLICATED,
    FILTERED,
    REPORT,
    SCRUBBED,
    SHARDS,
    TIMES,
    TOKENS,
    read_object,
)
from vikhr_fast.corpus.mix import mix_documents, mix_work
from vikhr_fast.corpus.quality_filter import filter_documents, filter_work
from vikhr_fast.corpus.scrub import scrub_documents, scrub_work
from vikhr_fast.corpus.settings import CorpusSettings, Machine, check_machine, read_settings
from vikhr_fast.corpus.shard import encoder_for_shards
from vikhr_fast.corpus.stage import read_work
from vikhr_fast.corpus.stats import corpus_page
from vikhr_fast.corpus.token_counts import write_token_counts
from vikhr_fast.corpus.train_filter import TrainFilter, train_filter, train_filter_work
from vikhr_fast.errors import InputError
from vikhr_fast.files import write_text
from vikhr_fast.report import write_report
from vikhr_fast.run_directory import locked


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
    settings = read_settings(options.config)
    with locked(options.output):
        _Builder(settings, options.output, options.machine).run()


class _Builder:
    def __init__(self, settings: CorpusSettings, output: Path, machine: Machine) -> None:
        self._settings, self._output, self._machine = settings, output, machine

    def run(self) -> None:
        settings, machine = self._settings, self._machine
        self._check_late_stages()
        if machine.threads:
            torch.set_num_threads(machine.threads)
        self._stage(COLLECTED, collect_work(settings), lambda output: collect_sources(settings, output))
        documents = collected = Documents.open(self._output / COLLECTED)
        if dedup := settings.dedup:
            documents = self._documents(
                DEDUPLICATED,
                dedup_work(documents, dedup),
                lambda output, before: dedup_documents(before, output, dedup, machine),
                documents,
            )
        if scrub := settings.scrub:
            documents = self._documents(
                SCRUBBED,
                scrub_work(documents, scrub),
                lambda output, before: scrub_documents(before, output, scrub),
                documents,
            )
        if sets := settings.decontaminate:
            documents = self._documents(
                DECONTAMINATED,
                decontaminate_work(documents, sets),
                lambda output, before: decontaminate_documents(before, output, sets),
                documents,
            )
        documents = self._filtered(documents)
        if mix := settings.mix:
            sources, threads = settings.sources, machine.threads
            work = mix_work(documents, mix, sources)
            self._stage(SHARDS, work, lambda output: mix_documents(documents, output, mix, sources, threads))
            ends = {COLLECTED: collected, documents.directory.name: documents}
            write_token_counts(self._output / TOKENS, ends, mix.tokenizer, threads)
        write_report(self._output / REPORT, *corpus_page(self._output))
        logger.info(f"{self._output / REPORT}: what became of the text")

    def _check_late_stages(self) -> None:
        """Finds at once what would end the run hours later."""
        settings = self._settings
        check_machine(self._machine)
        if settings.decontaminate:
            evaluation_files(settings.decontaminate)
        if settings.annotate and not (self._output / ANNOTATED).exists():
            endpoint_of(settings.annotate)
        if settings.classifier:
            read_work(settings.classifier)
        if settings.mix:
            encoder_for_shards(settings.mix.tokenizer)

    def _filtered(self, documents: Documents) -> Documents:
        """The stages of the quality filter."""
        settings = self._settings
        classifier = settings.classifier
        if annotate := settings.annotate:
            annotations = self._output / ANNOTATED
            work = annotate_work(documents, annotate)
            self._stage(ANNOTATED, work, lambda output: annotate_documents(documents, output, annotate))
            if train := settings.train_filter:
                classifier = self._output / CLASSIFIER
                work = train_filter_work(annotations, train)
                self._stage(CLASSIFIER, work, lambda output: train_filter(TrainFilter(annotations, output, train)))
        if settings.filter and classifier:
            directory, chosen = classifier, settings.filter
            documents = self._documents(
                FILTERED,
                filter_work(documents, directory, chosen),
                lambda output, before: filter_documents(before, directory, output, chosen),
                documents,
            )
        return documents

    def _documents(
        self, name: str, work: dict[str, Any], run: Callable[[Path, Documents], None], before: Documents
    ) -> Documents:
        self._stage(name, work, lambda output: run(output, before))
        return Documents.open(self._output / name)

    def _stage(self, name: str, work: dict[str, Any], run: Callable[[Path], None]) -> None:
        """Runs a stage, unless its output is there; notes down how long it took."""
        output = self._output / name
        if output.exists():
            if read_work(output) != json.loads(json.dumps(work)):
                raise InputError(f"{output}: made of other input or settings; remove it or take another output")
            return
        logger.info(f"{name}: begins")
        start = time.monotonic()
        run(output)
        path = self._output / TIMES
        times = read_object(path)
        times[name] = round(time.monotonic() - start, 2)
        write_text(path, json.dumps(times, indent=2) + "\n")
