"""`corpus dedup`: paragraphs that are near-duplicates of an earlier one leave their documents."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from tyro.conf import Positional, arg

from vikhr_fast.corpus.minhash import MinHasher, jaccard
from vikhr_fast.corpus.multipass_dedup import Passes, read_owners
from vikhr_fast.corpus.paragraphs import numbers_of, texts_of, without
from vikhr_fast.corpus.settings import DedupStage, Machine, check_bands, check_machine
from vikhr_fast.corpus.stage import Transformed, document_stage, gather, is_finished, transform_part, work_of
from vikhr_fast.data.documents import Documents
from vikhr_fast.io.files import write_json_lines
from vikhr_fast.io.progress import tracked

PAIRS = "removed_pairs.jsonl"
_PAIRS = 100


@dataclass(frozen=True)
class Dedup:
    """Removes near-duplicate paragraphs; the first of each kind stays, in the order of the sources."""

    input: Annotated[Path, Positional]
    """Documents that an earlier stage wrote."""
    output: Path
    """Directory to make. removed_pairs.jsonl in it is a sample of what was removed beside what was kept for it."""
    settings: Annotated[DedupStage, arg(name="")] = field(default_factory=DedupStage)
    """What counts as a near-duplicate."""
    machine: Annotated[Machine, arg(name="")] = field(default_factory=Machine)
    """How it runs."""


def dedup(options: Dedup) -> None:
    """Writes `options.output`, complete or not at all; interrupted, the same command goes on.

    The result depends on the documents and settings alone, not on memory, threads or engine.

    Raises:
        InputError: unreadable documents or impossible settings.
    """
    documents, settings, machine = Documents.open(options.input), options.settings, options.machine
    check_bands(settings)
    check_machine(machine)
    work = work_of("dedup", settings, input=documents.sha256)
    if is_finished(options.output, work, settings):
        return
    parts = documents.parts
    if machine.engine == "ray":
        from vikhr_fast.corpus.dedup_ray import connected, find_owners

        connected(machine)  # in there, its absence would clear away what an earlier try did
    with document_stage(options.output, work, settings) as (directory, scratch, counts):
        if machine.engine == "ray":
            find_owners(parts, settings, scratch, machine)
        else:
            Passes(parts, settings, scratch, machine.memory * 2**30, machine.threads).run()
        for number, part in enumerate(tracked("dedup, rebuild", parts)):
            owners = read_owners(scratch, number)
            removed = owners != numbers_of(number, len(owners))

            def rebuild(table: pa.Table, removed: Any = removed) -> Transformed:
                return Transformed(*without(table, removed, settings), notes=[])

            transform_part(part, directory, scratch, rebuild)
        gather(directory, scratch, counts)
        _write_pairs(directory / PAIRS, parts, scratch, settings)


def _write_pairs(path: Path, parts: list[Path], scratch: Path, settings: DedupStage) -> None:
    """A sample of removed paragraphs beside those kept in their place, to be looked at; the least similar first."""
    pairs = _sample(scratch, len(parts))
    texts = texts_of({number for pair in pairs for number in pair}, parts, settings)
    shown = [(texts[removed], texts[kept]) for removed, kept in pairs]
    hasher = MinHasher(settings.num_perm, settings.bands, settings.shingle)
    sets = hasher.shingles([text for pair in shown for text in pair], threads=1)
    similarities = jaccard(sets, np.arange(2 * len(shown)).reshape(-1, 2)).tolist()
    rows = sorted(zip(similarities, shown, strict=True))
    write_json_lines(
        path, ({"similarity": similarity, "removed": gone, "kept": kept} for similarity, (gone, kept) in rows)
    )


def _sample(scratch: Path, parts: int) -> list[tuple[int, int]]:
    """Removed paragraphs and the kept ones, those with the least hashes."""
    chosen = np.empty((0, 3), np.int64)
    for part in range(parts):
        owners = read_owners(scratch, part)
        numbers = numbers_of(part, len(owners))
        is_removed = owners != numbers
        hashes = (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(1)).astype(np.int64)
        rows = np.stack([hashes, numbers, owners], axis=1)[is_removed]
        chosen = np.concatenate([chosen, rows])
        chosen = chosen[np.argsort(chosen[:, 0], kind="stable")[:_PAIRS]]
    return [(int(removed), int(kept)) for _, removed, kept in chosen]
