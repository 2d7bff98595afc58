"""Document directories for tests of the corpus stages."""

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from vikhr_fast.corpus.collect import Collect, collect
from vikhr_fast.corpus.settings import SourceSettings
from vikhr_fast.data.documents import Documents, part_name, write_manifest, write_part


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def write_config(path: Path, sources: Mapping[str, SourceSettings], part_bytes: int = 1 << 20) -> Path:
    """A corpus.toml of these sources."""
    lines = [f"part_bytes = {part_bytes}"]
    for name, source in sources.items():
        values = {key: value for key, value in asdict(source).items() if value is not None}
        lines += [f"[sources.{name}]", *(f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in values.items())]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def make_documents(directory: Path, sources: Mapping[str, Iterable[str]], part_bytes: int = 1 << 20) -> Documents:
    """Documents of the texts by source."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = {
        name: SourceSettings(input=(str(write_jsonl(directory / f"{name}.jsonl", [{"text": text} for text in texts])),))
        for name, texts in sources.items()
    }
    config = write_config(directory / "documents.toml", settings, part_bytes)
    collect(Collect(config, directory / "documents"))
    return Documents.open(directory / "documents")


def write_documents(directory: Path, sources: Iterable[str], **counted: int) -> Path:
    """A document of each source, whatever its name, but for halves of characters, which Parquet can't hold."""
    directory.mkdir(parents=True)
    names = [source.replace("\ud800", "") for source in sources]
    rows = [{"id": "1", "text": "текст", "source": name, "meta": "{}"} for name in names]
    counts = {name: {"documents": 1, "bytes": 9, **counted} for name in names}
    write_part(directory / part_name(0), pa.Table.from_pylist(rows), {"counts": counts})
    write_manifest(directory, "collect", {"inputs": names}, counts)
    return directory


def texts_of(documents: Documents) -> list[str]:
    return [text for table in documents.tables() for text in table["text"].to_pylist()]


def directory_bytes(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, by its relative name."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


WORDS = [f"слово{number}" for number in range(300)]


def noisy_sources(documents: int, seed: int = 0) -> dict[str, list[str]]:
    """Documents of several paragraphs; a third of these repeat an earlier one, some exactly, some nearly."""
    chance = random.Random(seed)
    paragraphs: list[str] = []
    sources: dict[str, list[str]] = {"first": [], "second": []}
    for number in range(documents):
        pieces = []
        for _ in range(chance.randint(1, 5)):
            words = chance.choices(WORDS, k=chance.randint(3, 60))
            if paragraphs and chance.random() < 0.35:
                words = chance.choice(paragraphs).split()
                if chance.random() < 0.7:
                    words[chance.randrange(len(words))] = chance.choice(WORDS)
            paragraphs.append(" ".join(words))
            pieces.append(paragraphs[-1])
        sources["first" if number < documents * 2 // 3 else "second"].append("\n\n".join(pieces))
    return sources
