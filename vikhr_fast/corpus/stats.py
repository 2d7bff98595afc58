"""`corpus stats`: what a corpus is made of (table 2 of the paper), and what each stage left of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table as ConsoleTable
from tyro.conf import Positional

from vikhr_fast.console import console
from vikhr_fast.corpus.documents import MANIFEST, Documents
from vikhr_fast.errors import InputError
from vikhr_fast.report import Figure, Line, Section, Table, bar_plot, line_plot, write_report

_STAGES = ("1-collect", "2-dedup", "3-scrub", "4-decontaminate", "7-filter")
_MEGA = 1e6


@dataclass(frozen=True)
class Stats:
    """Writes the report page of a corpus: tokens by source, what each stage removed, how long it took."""

    input: Annotated[Path, Positional]
    """Directory that `corpus build` works in."""
    output: Path
    """HTML page to write."""


def stats(options: Stats) -> None:
    """Writes the page and prints table 2.

    Raises:
        InputError: there is no corpus.
    """
    write_stats(options.input, options.output)
    table = _sources_table(options.input)
    shown = ConsoleTable(title=table.caption, title_justify="left")
    for name in table.header:
        shown.add_column(name, justify="left" if name == "source" else "right")
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)


def write_stats(directory: Path, page: Path) -> None:
    """Writes the page."""
    stages = {name: Documents.open(directory / name) for name in _STAGES if (directory / name / MANIFEST).exists()}
    if not stages:
        raise InputError(f"{directory}: no stage of a corpus is finished in it; see `vikhr-fast corpus build`")
    sections = [
        Section("Sources", parts=(_sources_table(directory), *_tokens_plot(directory))),
        Section("Stages", parts=(_stages_table(directory, stages), _stages_plot(stages))),
        Section("What was found", parts=tuple(_counts_table(name, own) for name, own in stages.items())),
    ]
    filter_file = directory / "6-classifier" / MANIFEST
    if filter_file.exists():
        quality = json.loads(filter_file.read_bytes())["quality"]
        rows = tuple((name.replace("_", " "), f"{value:.4g}") for name, value in quality.items())
        sections.append(Section("Quality filter", parts=(Table("On held-out documents.", ("", ""), rows),)))
    total = list(stages.values())[-1].total
    summary = f"{total['documents']:,} documents, {total['bytes'] / _MEGA:,.1f} MB of text."
    write_report(page, "The corpus", summary, sections)


def _shards(directory: Path) -> dict[str, dict[str, Any]]:
    path = directory / "8-shards" / MANIFEST
    shards: dict[str, dict[str, Any]] = json.loads(path.read_bytes())["shards"] if path.exists() else {}
    return shards


def _sources_table(directory: Path) -> Table:
    """Table 2: documents and tokens by source."""
    shards = _shards(directory)
    if not shards:
        counts = Documents.open(directory / "1-collect").counts
        found = {n: (str(c.get("documents", 0)), f"{c.get('bytes', 0) / _MEGA:,.2f}") for n, c in counts.items()}
        return Table("Text by source.", ("source", "documents", "MB"), tuple((n, *row) for n, row in found.items()))
    tokens = sum(own["tokens"] for name, own in shards.items() if name.startswith("train/"))
    rows = []
    for name, own in shards.items():
        share = f"{own['tokens'] / tokens:.1%}" if name.startswith("train/") else ""
        per_byte = f"{own['bytes'] / own['tokens']:.2f}"
        row = (name, f"{own['documents']:,}", f"{own['tokens']:,}", share, f"{own['bytes'] / _MEGA:,.2f}", per_byte)
        rows.append(row)
    header = ("source", "documents", "tokens", "share of training", "MB", "bytes a token")
    return Table(f"Tokens by source; {tokens:,} to train on.", header, tuple(rows))


def _tokens_plot(directory: Path) -> tuple[Figure, ...]:
    shards = {n.removeprefix("train/"): s for n, s in _shards(directory).items() if n.startswith("train/")}
    if not shards:
        return ()
    values = [own["tokens"] / _MEGA for own in shards.values()]
    alt = "Bars: millions of training tokens of each source."
    return (bar_plot("Training tokens by source.", alt, "million tokens", list(shards), {"tokens": values}),)


def _stages_table(directory: Path, stages: dict[str, Documents]) -> Table:
    path = directory / "times.json"
    times: dict[str, float] = json.loads(path.read_bytes()) if path.exists() else {}
    first = next(iter(stages.values())).total
    rows = []
    for name in sorted({*stages, *times}):
        total = stages[name].total if name in stages else {}
        row = (
            name,
            f"{total['documents']:,}" if total else "",
            f"{total['bytes'] / _MEGA:,.2f}" if total else "",
            f"{total['bytes'] / first['bytes']:.1%}" if total else "",
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


def _counts_table(name: str, documents: Documents) -> Table:
    names = list(dict.fromkeys(key for counts in documents.counts.values() for key in counts))
    rows = [(source, *(f"{counts.get(key, 0):,}" for key in names)) for source, counts in documents.counts.items()]
    rows.append(("all", *(f"{documents.total.get(key, 0):,}" for key in names)))
    return Table(f"{name}.", ("source", *(key.replace("_", " ") for key in names)), tuple(rows))
