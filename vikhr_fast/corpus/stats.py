"""`corpus stats`: what a corpus is made of (table 2 of the paper), and what each stage left of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.table import Table as ConsoleTable
from tyro.conf import Positional

from vikhr_fast.corpus.layout import (
    DOCUMENT_STAGES,
    SCRUBBED,
    TOKENS,
    read_quality,
    read_shard_tokens,
    read_times,
    read_token_counts,
)
from vikhr_fast.corpus.scrub import REPLACED
from vikhr_fast.data.documents import MANIFEST, Documents
from vikhr_fast.data.read import read_objects
from vikhr_fast.errors import InputError
from vikhr_fast.io.console import console
from vikhr_fast.io.html import Figure, Line, Page, Section, Table, bar_plot, line_plot

_MEGA = 1e6


@dataclass(frozen=True)
class Stats:
    """Prints what a corpus is made of: documents, bytes and tokens by source. `vikhr-fast report` makes its page."""

    input: Annotated[Path, Positional]
    """Directory that `corpus build` works in."""


def stats(options: Stats) -> None:
    """Prints table 2; InputError where there is no corpus."""
    table = _sources_table(options.input, _finished(options.input))
    shown = ConsoleTable(title=table.caption, title_justify="left")
    for name in table.header:
        shown.add_column(name, justify="left" if name == "source" else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)


def corpus_page(directory: Path) -> Page:
    """The page of a corpus: tokens by source, what each stage removed, how long it took."""
    stages = _finished(directory)
    sampled = f"`vikhr-fast report {directory / SCRUBBED}` shows a sample of what was scrubbed: personal data."
    said = (sampled,) if (directory / SCRUBBED / REPLACED).exists() else ()
    sections = [
        Section("Sources", parts=(_sources_table(directory, stages), *_tokens_plot(directory))),
        Section("Stages", parts=(_stages_table(directory, stages), _stages_plot(stages))),
        Section("What was found", said, tuple(counts_table(name, own) for name, own in stages.items())),
    ]
    if quality := read_quality(directory):
        rows = tuple((name.replace("_", " "), f"{value:.4g}") for name, value in quality.items())
        sections.append(Section("Quality filter", parts=(Table("On held-out documents.", ("", ""), rows),)))
    total = list(stages.values())[-1].total
    summary = f"{total['documents']:,} documents, {total['bytes'] / _MEGA:,.1f} MB of text."
    return Page("The corpus", summary, sections)


def scrub_page(directory: Path) -> Page:
    """The page of what `corpus scrub` made: a sample of the strings that it replaced, each where it stood."""
    documents = Documents.open(directory)
    sample = [note for _, note in read_objects(directory / REPLACED)]
    parts = [counts_table("Strings replaced, by source", documents)]
    for kind in dict.fromkeys(note["kind"] for note in sample):
        own = [note for note in sample if note["kind"] == kind]
        rows = tuple((note["source"], *(_line(note[key]) for key in ("before", "found", "after"))) for note in own)
        shown = f"[{kind.upper()}]: {len(own):,} of {documents.total[kind]:,}, drawn at random."
        parts.append(Table(shown, ("source", "before", "replaced", "after"), rows))
    said = "This page holds personal data, those that were to leave the corpus: look at it, and don't publish it."
    return Page("What was scrubbed", said, [Section("Replaced by tags", parts=tuple(parts))])


def _line(text: str) -> str:
    return " ".join(text.split())


def _finished(directory: Path) -> dict[str, Documents]:
    """The stages' documents by name, in order."""
    stages = {
        name: Documents.open(directory / name) for name in DOCUMENT_STAGES if (directory / name / MANIFEST).exists()
    }
    if not stages:
        raise InputError(f"{directory}: no stage of a corpus is finished in it; see `vikhr-fast corpus build`")
    return stages


def _sources_table(directory: Path, stages: dict[str, Documents]) -> Table:
    """Table 2: by source what was read, what is left of it, and what of that is in the shards."""
    first, last = next(iter(stages.values())).counts, list(stages.values())[-1].counts
    counted = read_token_counts(directory / TOKENS)
    ends = (next(iter(stages)), list(stages)[-1])
    before, after = (counted[name].tokens if name in counted else {} for name in ends)
    shards = read_shard_tokens(directory)
    train, held_out = ({name: shards.get(f"{split}/{name}", 0) for name in first} for split in ("train", "validation"))
    trained = sum(train.values())  # may be none: all of a small corpus held out, or shards of other sources
    rows = []
    for name in first:
        documents, size = (last.get(name, {}).get(key, 0) for key in ("documents", "bytes"))
        row = [name, f"{first[name].get('documents', 0):,}", f"{documents:,}", f"{size / _MEGA:,.2f}"]
        if shards:
            row += [f"{tokens.get(name, 0):,}" for tokens in (before, after, train, held_out)]
            row.append(f"{train[name] / trained:.1%}" if trained else "")
            row.append(f"{size / after[name]:.2f}" if after.get(name) else "")
        rows.append(tuple(row))
    header = ["source", "documents read", "left", "MB left"]
    if shards:
        header += ["tokens read", "left", "to train on", "held out", "share of training", "bytes a token"]
    caption = "By source." if not shards else f"By source; {trained:,} tokens to train on, weights applied."
    return Table(caption, tuple(header), tuple(rows))


def _tokens_plot(directory: Path) -> tuple[Figure, ...]:
    shards = read_shard_tokens(directory)
    train = {name.removeprefix("train/"): own for name, own in shards.items() if name.startswith("train/")}
    if not train:
        return ()
    values = [tokens / _MEGA for tokens in train.values()]
    alt = "Bars: millions of training tokens of each source."
    return (bar_plot("Training tokens by source.", alt, "million tokens", list(train), {"tokens": values}),)


def _stages_table(directory: Path, stages: dict[str, Documents]) -> Table:
    times = read_times(directory)
    first = next(iter(stages.values())).total
    rows = []
    for name in sorted({*stages, *times}):
        total = stages[name].total if name in stages else {}
        row = (
            name,
            f"{total['documents']:,}" if total else "",
            f"{total['bytes'] / _MEGA:,.2f}" if total else "",
            f"{total['bytes'] / max(first['bytes'], 1):.1%}" if total else "",
            f"{times[name]:,.1f}" if name in times else "",
        )
        rows.append(row)
    header = ("stage", "documents", "MB", "of the text read", "seconds")
    return Table("What each stage left. Seconds are those of the last, uninterrupted try.", header, tuple(rows))


def _stages_plot(stages: dict[str, Documents]) -> Figure:
    sources = list(next(iter(stages.values())).counts)
    lines = [
        Line(
            source,
            range(len(stages)),
            [own.counts.get(source, {}).get("bytes", 0) / _MEGA for own in stages.values()],
            colour=index,
            style=index // 5,
            markers=True,
        )
        for index, source in enumerate(sources)
    ]
    caption = f"Text left after each stage: {', '.join(stages)}."
    return line_plot(caption, "Lines: megabytes of each source, falling from stage to stage.", "stage", "MB", lines)


def counts_table(name: str, documents: Documents) -> Table:
    """All that a stage counted, by source."""
    names = list(dict.fromkeys(key for counts in documents.counts.values() for key in counts))
    rows = [(source, *(f"{counts.get(key, 0):,}" for key in names)) for source, counts in documents.counts.items()]
    rows.append(("all", *(f"{documents.total.get(key, 0):,}" for key in names)))
    return Table(f"{name}.", ("source", *(key.replace("_", " ") for key in names)), tuple(rows))
