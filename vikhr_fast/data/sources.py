"""Where text comes from: files, patterns of file names, and data sets of the Hugging Face Hub."""

import fnmatch
import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vikhr_fast.data.read import Columns, Document, documents_of, read_documents, read_records, refuse
from vikhr_fast.data.text_lines import MAX_LINE, OnBad
from vikhr_fast.errors import InputError
from vikhr_fast.io.files import sha256_of

_HUB = "hf:"
_HUB_FILES = r"hf:([\w.-]+/[\w.-]+)@([0-9a-f]{40}):(.+)$"
_HUB_FORM = f"{_HUB}OWNER/NAME@COMMIT[/CONFIG[/SPLIT]], or :PATTERN after COMMIT for its raw files"


def named_sources(flag: str, values: Iterable[str]) -> dict[str, Path]:
    """NAME=SOURCE, each name once; InputError, which names the flag, otherwise."""
    found: dict[str, Path] = {}
    for value in values:
        name, _, source = value.partition("=")
        if not source or not re.fullmatch(r"[\w-]+", name) or name in found:
            raise InputError(f"{flag} {value}: must be NAME=SOURCE, a name of letters, digits, - and _ only once")
        found[name] = Path(source)
    return found


def read_texts(source: Path, text_field: str = "text", max_line: int = MAX_LINE) -> Iterator[str]:
    """Streams the documents of one source, always in the same order.

    Args:
        source: a file that `read_documents` knows; a pattern such as `news/*.jsonl.gz`, whose files are taken in the
            order of their names; or a data set of the Hub, pinned to a commit: hf:OWNER/NAME@COMMIT[/CONFIG[/SPLIT]]
            (the split is "train" if not given), streamed, which needs the extra `datasets` and never runs code of the
            set; or its raw files, hf:OWNER/NAME@COMMIT:PATTERN.
        text_field: JSONL field, or column of Parquet files and data sets, that holds the text.
        max_line: see `read_documents`; a row of a data set may be of any length.

    Raises:
        InputError: nothing to read there, or something that cannot be read.
    """
    if _is_rows(source):
        yield from (record.text for record in _hub_records(str(source), Columns((text_field,)), refuse))
    else:
        yield from (document.text for document in read_documents(source_files(source), text_field, max_line))


def read_source(source: Path, columns: Columns, on_bad: OnBad = refuse, max_line: int = MAX_LINE) -> Iterator[Document]:
    """As `read_texts`, with further fields, and `on_bad` decides what becomes of bad records; see `read_records`."""
    if _is_rows(source):
        yield from _hub_records(str(source), columns, on_bad)
    else:
        yield from read_records(source_files(source), columns, on_bad, max_line)


def source_files(source: Path) -> list[Path]:
    """The files of a source in the order in which they are read; none for rows of a data set, pinned by its name.

    Files of the Hub are fetched into its cache.
    """
    if _is_rows(source):
        return []
    if str(source).startswith(_HUB):
        return _hub_files(str(source))
    found = [str(source)]
    if not source.exists() and glob.has_magic(str(source)):
        found = sorted(glob.glob(str(source), recursive=True))  # noqa: PTH207  absolute patterns, too
    if not found:
        raise InputError(f"{source}: no file has such a name")
    for name in found:
        if re.search("[\ud800-\udfff]", name):
            raise InputError(f"{os.fsencode(name)!r}: the name is not UTF-8; rename it")
    return list(map(Path, found))


def _is_rows(source: Path) -> bool:
    """Whether it is a data set of the Hub that is streamed by rows."""
    return str(source).startswith(_HUB) and not re.match(_HUB_FILES, str(source))


def _hub_files(source: str) -> list[Path]:
    """The files of a data set that a pattern names: for sets whose loading script nobody runs any more."""
    match = re.match(_HUB_FILES, source)
    assert match
    name, commit, pattern = match.groups()
    import huggingface_hub

    where = {"repo_id": name, "repo_type": "dataset", "revision": commit}
    try:
        names = sorted(fnmatch.filter(huggingface_hub.HfApi().list_repo_files(**where), pattern))
        if not names:
            raise InputError(f"{source}: no file of the data set has such a name")
        return [Path(huggingface_hub.hf_hub_download(filename=file, **where)) for file in names]
    except InputError:
        raise
    except Exception as error:  # the Hub's, its HTTP library's, the network's
        raise InputError(f"{source}: cannot be fetched: {' '.join(str(error).split())}") from None


def checksum(file: Path) -> str:
    """The SHA-256 of a source's file; InputError where there is no such file."""
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    return sha256_of(file)


def checksums(patterns: Iterable[str]) -> dict[str, str]:
    """The files of several sources with their checksums; InputError where one is missing."""
    return {str(file): checksum(file) for pattern in patterns for file in source_files(Path(pattern))}


def _hub_records(source: str, columns: Columns, on_bad: OnBad) -> Iterator[Document]:
    name, at, rest = source.removeprefix(_HUB).partition("@")
    commit, *parts = rest.split("/")
    if not at or not re.fullmatch(r"[0-9a-f]{40}", commit) or len(parts) > 2:
        raise InputError(f"{source}: must be {_HUB_FORM}; COMMIT is the 40 digits that pin the data set's revision")
    config, split = (*parts, None, None)[:2]
    try:
        import datasets
    except ImportError:
        raise InputError(f"{source}: needs the package datasets; pip install 'vikhr-fast[datasets]'") from None
    try:
        rows: Any = datasets.load_dataset(
            name, config, split=split or "train", revision=commit, streaming=True, trust_remote_code=False
        )
        number = 0
        for number, row in enumerate(rows, start=1):
            yield from documents_of(Path(source), [(number, row)], columns, ("row", "column"), on_bad)
    except InputError:
        raise
    except Exception as error:  # the Hub's, its HTTP library's, the network's
        raise InputError(f"{source}: cannot be read: {' '.join(str(error).split())}") from None
    if number == 0:
        raise InputError(f"{source}: no rows at all")
