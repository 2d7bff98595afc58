"""What the stages hand on: a directory of Parquet parts with one schema, and a manifest with their checksums.

A part carries its own summary in its footer, so that a stage that was killed takes up its finished parts as they are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic
from pydantic import Field

from vikhr_fast.config import validated
from vikhr_fast.errors import InputError
from vikhr_fast.io.files import atomic_file, json_text, sha256_of, write_json
from vikhr_fast.io.guarded import parse_json
from vikhr_fast.io.manifest import manifest_sha256, read_manifest

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.large_string()), ("source", pa.string()), ("meta", pa.string())])
"""`meta` is a JSON object."""

Counts = dict[str, dict[str, int]]
"""Source -> what is counted -> how many."""

MANIFEST = "manifest.json"
_FORMAT, _VERSION = "vikhr-fast documents", 1
_FOOTER = b"vikhr-fast"
_ADVICE = "give what a corpus stage wrote, or have it write that again"

_Count = Annotated[int, Field(strict=True, ge=0)]
_Counts = dict[str, dict[str, _Count]]


@dataclass(frozen=True)
class _Part:
    name: Annotated[str, Field(pattern=r"^part-[0-9]+\.parquet$")]
    file_bytes: _Count


@dataclass(frozen=True)
class _Manifest:
    parts: list[_Part]
    counts: _Counts
    sha256: str


@dataclass(frozen=True)
class _Footer:
    counts: _Counts


_MANIFEST, _PART_FOOTER = pydantic.TypeAdapter(_Manifest), pydantic.TypeAdapter(_Footer)


def part_name(number: int) -> str:
    """The name of a part file."""
    return f"part-{number:05d}.parquet"


def write_part(path: Path, table: pa.Table, footer: Mapping[str, Any]) -> None:
    """Writes a part with JSON values in its footer, complete or not at all; the same bytes every time."""
    content = json_text(footer, sort_keys=True)
    schema = SCHEMA.with_metadata({_FOOTER: content})
    # Statistics of the texts would put the longest of them into the footer twice.
    with (
        atomic_file(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=["source"], write_statistics=False) as writer,
    ):
        writer.write_table(table.cast(schema), row_group_size=4096)


def read_footer(path: Path) -> dict[str, Any]:
    """The JSON values of a part's footer; InputError where it is no part."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        footer: dict[str, Any] = parse_json(metadata[_FOOTER])
    except (pa.ArrowException, OSError, KeyError, ValueError):
        raise InputError(f"{path}: not a part of a document directory; {_ADVICE}") from None
    validated(_PART_FOOTER, footer, f"{path}: damaged", _ADVICE)
    return footer


def read_part(path: Path) -> pa.Table:
    """A part as a table of `SCHEMA`; InputError where it is damaged."""
    try:
        table = pq.read_table(path, partitioning=None).cast(SCHEMA)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged: {' '.join(str(error).split())}; {_ADVICE}") from None
    if empty := [name for name in SCHEMA.names if table[name].null_count]:
        raise InputError(f"{path}: damaged: a row without {' and without '.join(empty)}; {_ADVICE}")
    return table


def count_documents(table: pa.Table) -> Counts:
    """Documents and bytes of text by source."""
    sizes = pa.table({"source": table["source"], "bytes": pc.binary_length(table["text"])})
    groups = sizes.group_by("source").aggregate([("bytes", "count"), ("bytes", "sum")])
    return {
        row["source"]: {"documents": row["bytes_count"], "bytes": row["bytes_sum"]}
        for row in sorted(groups.to_pylist(), key=lambda row: str(row["source"]))
    }


def with_meta(table: pa.Table, more: Mapping[int, Mapping[str, Any]]) -> pa.Table:
    """The documents with more in their `meta`, by row."""
    metas = table["meta"].to_pylist()
    for row, values in more.items():
        try:
            metas[row] = json_text({**parse_json(metas[row]), **values}, sort_keys=True)
        except (ValueError, TypeError):
            raise InputError(f"document {table['id'][row]}: its `meta` is no JSON object; {_ADVICE}") from None
    return table.set_column(3, "meta", pa.array(metas, pa.string()))


def add_counts(total: Counts, more: Mapping[str, Mapping[str, int]]) -> None:
    """Adds `more` to `total`."""
    for source, counts in more.items():
        own = total.setdefault(source, {})
        for name, count in counts.items():
            own[name] = own.get(name, 0) + count


@dataclass(frozen=True)
class Documents:
    """A document directory, opened for reading."""

    directory: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, directory: Path) -> "Documents":
        """Opens a directory that a stage wrote; sizes are checked, checksums are not.

        Raises:
            InputError: it is missing, unfinished, damaged or something else.
        """
        manifest = read_manifest(directory / MANIFEST, _FORMAT, _VERSION, _ADVICE)
        validated(_MANIFEST, manifest, f"{directory / MANIFEST}: damaged", _ADVICE)
        for part in manifest["parts"]:
            file = directory / part["name"]
            if not file.is_file() or file.stat().st_size != part["file_bytes"]:
                raise InputError(f"{file}: missing or cut short; {_ADVICE}")
        return cls(directory, manifest)

    @property
    def parts(self) -> list[Path]:
        """The part files in order."""
        return [self.directory / part["name"] for part in self.manifest["parts"]]

    @property
    def sha256(self) -> str:
        """The checksum of the manifest, thus of everything here."""
        return str(self.manifest["sha256"])

    @property
    def counts(self) -> Counts:
        """What the stage counted, by source."""
        counts: Counts = self.manifest["counts"]
        return counts

    @property
    def total(self) -> dict[str, int]:
        """`counts` of all sources together."""
        total: Counts = {"": {"documents": 0, "bytes": 0}}
        for counts in self.counts.values():
            add_counts(total, {"": counts})
        return total[""]

    def tables(self) -> Iterator[pa.Table]:
        """The parts, one after another."""
        return map(read_part, self.parts)


def write_manifest(directory: Path, stage: str, work: Mapping[str, Any], counts: Counts) -> None:
    """Writes the manifest of a directory whose parts are complete."""
    parts = [
        {
            "name": part.name,
            "documents": pq.read_metadata(part).num_rows,
            "file_bytes": part.stat().st_size,
            "sha256": sha256_of(part),
        }
        for part in sorted(directory.glob("part-*.parquet"))
    ]
    head = {"format": _FORMAT, "version": _VERSION, "stage": stage}
    manifest = {**head, "work": work, "counts": counts, "parts": parts}
    write_json(directory / MANIFEST, {**manifest, "sha256": manifest_sha256(manifest)})
