"""The page of a single stage of a corpus, and of the token shards that training reads."""

from pathlib import Path
from typing import Any

from vikhr_fast.corpus.documents import Documents
from vikhr_fast.corpus.stats import counts_table
from vikhr_fast.corpus.token_shards import FORMAT, MANIFEST_NAME, TokenShards
from vikhr_fast.report import Page, Section, Table, bar_plot
from vikhr_fast.run_report.making import flat, read_values, value_table

_MEGA = 1e6


def stage_page(directory: Path) -> Page:
    """The page of what one of the `corpus` commands wrote."""
    manifest = read_values(directory / MANIFEST_NAME)
    name = directory.resolve().name
    if manifest.get("format") == FORMAT:
        return _shards({name: directory}, f"Token shards {name}")
    work = Section("What it was made with", parts=(value_table("Settings and inputs.", flat(manifest["work"])),))
    if "parts" not in manifest:
        known = {key: value for key, value in manifest.items() if key not in ("stage", "work")}
        found = Section("What came out", parts=(value_table("Figures.", flat(known)),))
        return Page(f"{manifest['stage']}: {name}", f"The output of {manifest['stage']}.", [found, work])
    documents = Documents.open(directory)
    sections = [Section("What was found", parts=(counts_table(name, documents),))]
    total = documents.total
    said = f"{total['documents']:,} documents, {total['bytes'] / _MEGA:,.1f} MB of text."
    return Page(f"{manifest['stage']}: {name}", said, [*sections, work])


def shards_page(directory: Path) -> Page:
    """The page of shards by split and source, as `corpus mix` and `instruct shard` write them."""
    found = {
        path.parent.relative_to(directory).as_posix(): path.parent
        for path in sorted(directory.glob(f"*/*/{MANIFEST_NAME}"))
    }
    return _shards(found, f"Token shards {directory.resolve().name}")


def _shards(directories: dict[str, Path], title: str) -> Page:
    shards = {name: TokenShards.open(directory, verify=False) for name, directory in directories.items()}
    rows = tuple(
        (
            name,
            *(f"{count:,}" for count in (own.num_documents, own.num_tokens, own.num_trained)),
            f"{own.num_bytes / own.num_trained:.2f}",
            *(f"{value:,}" for value in (int(own.lengths.mean()), int(own.lengths.max()))),
        )
        for name, own in shards.items()
    )
    header = ("shards", "documents", "tokens", "predicted", "bytes a token", "mean length", "longest")
    millions = [own.num_trained / _MEGA for own in shards.values()]
    said = ", ".join(f"{name} {count:.2f}" for name, count in zip(shards, millions, strict=True))
    caption = "Millions of tokens that are predicted."
    plot = bar_plot(
        caption, f"Bars of millions of predicted tokens. {said}.", "million tokens", list(shards), {"tokens": millions}
    )
    values: dict[str, Any] = {name: own.sha256 for name, own in shards.items()}
    sections = [
        Section("Tokens", parts=(Table("Lengths are of documents, in tokens.", header, rows), plot)),
        Section("Checksums", parts=(value_table("SHA-256 of the manifests.", values),)),
    ]
    return Page(title, f"{sum(own.num_tokens for own in shards.values()):,} tokens.", sections)
