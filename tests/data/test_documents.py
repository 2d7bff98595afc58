"""What the stages hand on, where somebody changed it: one line that names the file."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import make_documents

from vikhr_fast.corpus import layout
from vikhr_fast.corpus.stats import corpus_page
from vikhr_fast.data.documents import SCHEMA, Documents, read_footer, read_part, with_meta
from vikhr_fast.errors import InputError
from vikhr_fast.io.manifest import manifest_sha256

ADVICE = "give what a corpus stage wrote, or have it write that again"


@pytest.fixture
def documents(tmp_path: Path) -> Documents:
    return make_documents(tmp_path, {"news": ["раз", "два"], "books": ["три"]})


@pytest.mark.parametrize(
    ("lie", "complaint"),
    [
        (lambda manifest: manifest.update(parts={}), "parts: {}: input should be a valid list"),
        (lambda manifest: manifest.pop("parts"), "parts: missing"),
        (lambda manifest: manifest["parts"][0].update(name="/dev/zero"), "parts.0.name: '/dev/zero': string should"),
        (lambda manifest: manifest["parts"][0].update(name="../x.parquet"), "parts.0.name: '../x.parquet'"),
        (lambda manifest: manifest["parts"][0].update(file_bytes="9"), "parts.0.file_bytes: '9': input should"),
        (lambda manifest: manifest.update(counts=[1]), "counts: [1]: input should"),
        (lambda manifest: manifest["counts"]["news"].update(documents=None), "counts.news.documents: None: input"),
        (lambda manifest: manifest["counts"]["news"].update(bytes="7"), "counts.news.bytes: '7': input should"),
    ],
)
def test_a_manifest_that_lies_under_its_own_checksum_is_refused(
    documents: Documents, lie: Callable[[dict[str, Any]], object], complaint: str
) -> None:
    file = documents.directory / "manifest.json"
    manifest = json.loads(file.read_text())
    lie(manifest)
    file.write_text(json.dumps({**manifest, "sha256": manifest_sha256(manifest)}))
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}: damaged: {re.escape(complaint)}.*; {ADVICE}$"):
        Documents.open(documents.directory)


def rewrite(part: Path, footer: bytes | None = None, **columns: list[str | None]) -> None:
    """A part with another footer, or other columns."""
    table = pq.read_table(part, partitioning=None)
    for name, values in columns.items():
        table = table.set_column(SCHEMA.get_field_index(name), name, pa.array(values, SCHEMA.field(name).type))
    pq.write_table(table.replace_schema_metadata({b"vikhr-fast": footer or b"{}"}), part)


@pytest.mark.parametrize("footer", [b"", b"[]", b"{}", b'{"counts": {"a": 1}}', b"[" * 100_000, b"1" * 5000, b"\xff"])
def test_a_footer_of_another_shape_is_one_line(documents: Documents, footer: bytes) -> None:
    rewrite(documents.parts[0], footer or b"x")
    with pytest.raises(InputError, match=f"^{re.escape(str(documents.parts[0]))}: .*; {ADVICE}$"):
        read_footer(documents.parts[0])


@pytest.mark.parametrize("name", SCHEMA.names)
def test_a_row_without_a_value_is_one_line(documents: Documents, name: str) -> None:
    rewrite(documents.parts[0], **{name: ["a", None]})
    with pytest.raises(InputError, match=f"part-00000.parquet: damaged: a row without {name}; {ADVICE}$"):
        read_part(documents.parts[0])


@pytest.mark.parametrize("meta", ["[1]", "null", "", "{", "[" * 100_000])
def test_a_meta_that_is_no_object_is_one_line(documents: Documents, meta: str) -> None:
    rewrite(documents.parts[0], meta=["{}", meta])
    with pytest.raises(InputError, match=rf"^document news/2: its `meta` is no JSON object; {ADVICE}$"):
        with_meta(read_part(documents.parts[0]), {0: {"a": 1}, 1: {"a": 1}})


NOTES = {
    layout.TIMES: ['{"1-collect": null}', '{"1-collect": "9s"}', '{"1-collect": []}'],
    layout.TOKENS: ['{"1-collect": null}', '{"1-collect": {"of": 1, "tokens": {}}}', '{"1-collect": {"tokens": {}}}'],
    f"{layout.SHARDS}/manifest.json": ['{"shards": []}', '{"shards": {"a": 1}}', '{"shards": {"a": {"tokens": null}}}'],
    f"{layout.CLASSIFIER}/manifest.json": ['{"quality": 1}', '{"quality": {"f1": "high"}}'],
}


@pytest.mark.parametrize("name", NOTES)
def test_notes_beside_a_corpus_of_another_shape_are_one_line(documents: Documents, tmp_path: Path, name: str) -> None:
    corpus = tmp_path / "corpus"
    (corpus / name).parent.mkdir(parents=True)
    documents.directory.rename(corpus / layout.COLLECTED)
    assert corpus_page(corpus).title == "The corpus"
    for damaged in ("[]", "null", "[" * 100_000, *NOTES[name]):
        (corpus / name).write_text(damaged)
        with pytest.raises(InputError, match=f"^{re.escape(str(corpus / name))}: damaged: .*; remove it$"):
            corpus_page(corpus)
