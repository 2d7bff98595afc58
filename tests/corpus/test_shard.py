import errno
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast.corpus import TokenShards, read_documents, shard
from vikhr_fast.corpus.shard import Shard, write_shards
from vikhr_fast.errors import InputError
from vikhr_fast.io.files import sha256_of
from vikhr_fast.io.manifest import manifest_sha256
from vikhr_fast.tokenizer.byte_level import token_text

texts = st.lists(st.text(st.characters(codec="utf-8")).filter(str.strip), min_size=1, max_size=8)


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="session")
def peer(tokenizer: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))


@pytest.fixture(scope="session")
def written(folder: Path, russian: Path, tokenizer: Path) -> Path:
    """Shards of real paragraphs, in several files."""
    write_shards(Shard(input=(russian,), tokenizer=tokenizer, output=folder / "written", shard_tokens=4000))
    return folder / "written"


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    """Shards that a test may damage."""
    shutil.copytree(written, tmp_path / "copied")
    return tmp_path / "copied"


def test_documents_are_their_ids_between_bos_and_eos(
    written: Path, russian: Path, tokenizer: Path, peer: sentencepiece.SentencePieceProcessor
) -> None:
    shards = TokenShards.open(written)
    expected = [[1, *peer.encode(document.text), 2] for document in read_documents([russian])]
    assert [shards.document(i).tolist() for i in range(shards.num_documents)] == expected
    assert shards.lengths.tolist() == list(map(len, expected))
    assert shards.num_tokens == sum(map(len, expected))
    assert (shards.vocab_size, shards.bos_id, shards.eos_id) == (700, 1, 2)
    assert shards.tokenizer_sha256 == sha256_of(tokenizer / "tokenizer.model")
    assert shards.document(0).dtype == np.uint16
    assert not shards.document(0).flags.writeable
    assert len(list(written.glob("tokens-*.bin"))) > 2
    for index in (-1, shards.num_documents):
        with pytest.raises(IndexError, match=f"document {index} of {shards.num_documents}"):
            shards.document(index)


@settings(max_examples=60, deadline=None)
@given(contents=texts, shard_tokens=st.integers(1, 60), batch=st.integers(1, 60))
def test_any_text_in_any_split_comes_back(
    folder: Path,
    tokenizer: Path,
    peer: sentencepiece.SentencePieceProcessor,
    contents: list[str],
    shard_tokens: int,
    batch: int,
) -> None:
    source, output = folder / "any.jsonl", folder / "any"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in contents))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard, "_BATCH_CHARACTERS", batch)
        write_shards(Shard(input=(source,), tokenizer=tokenizer, output=output, shard_tokens=shard_tokens))
    try:
        shards = TokenShards.open(output)
        documents = [shards.document(i).tolist() for i in range(shards.num_documents)]
        assert documents == [[1, *peer.encode(text), 2] for text in contents]
        sizes = [file.stat().st_size // 2 for file in sorted(output.glob("tokens-*.bin"))]
        assert all(size <= shard_tokens or size in shards.lengths for size in sizes)
        assert all(left + right > shard_tokens for left, right in pairwise(sizes))
    finally:
        shutil.rmtree(output)


def test_bytes_depend_on_input_and_tokenizer_alone(
    written: Path, russian: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "_BATCH_CHARACTERS", 1000)
    model = tokenizer / "tokenizer.model"
    for name, threads in (("a", 1), ("b", 2)):
        options = Shard((russian,), model, tmp_path / name, shard_tokens=4000, threads=threads)
        write_shards(options)
        assert contents(tmp_path / name) == contents(written)
    write_shards(replace(options, output=tmp_path / "c", shard_tokens=5000))
    assert contents(tmp_path / "c") != contents(written)


def test_sources_are_counted(russian: Path, tokenizer: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("один\n\nдва", encoding="utf-8")
    write_shards(Shard((russian, other), tokenizer, tmp_path / "out"))
    shards = TokenShards.open(tmp_path / "out")
    sources = json.loads((tmp_path / "out" / "manifest.json").read_text())["sources"]
    assert sources[str(other)] == {"documents": 2, "tokens": int(shards.lengths[-2:].sum()), "bytes": 14}
    assert sum(source["tokens"] for source in sources.values()) == shards.num_tokens
    assert shards.num_bytes == 14 + sum(len(document.text.encode()) for document in read_documents([russian]))


def test_large_vocabulary_takes_four_bytes(
    russian: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Encoder:
        vocab_size, bos_id, eos_id, sha256 = 1 << 17, 1, 2, "0" * 64
        missing_bytes = b""

        def encode_batch(self, batch: list[str], threads: int) -> tuple[Any, Any]:
            assert threads == 3
            return np.full(len(batch), (1 << 17) - 1, np.int32), np.arange(len(batch) + 1)

    monkeypatch.setattr(shard, "load_encoder", lambda _: Encoder())
    write_shards(Shard((russian,), tokenizer, tmp_path / "out", threads=3))
    first = TokenShards.open(tmp_path / "out").document(0)
    assert first.dtype == np.uint32
    assert first.tolist() == [1, (1 << 17) - 1, 2]


@pytest.mark.parametrize("name", ["tokens-00001.bin", "documents.bin"])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_changed_byte_is_noticed(written: Path, name: str, data: st.DataObject) -> None:
    content = (written / name).read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[place] ^= data.draw(st.integers(1, 255))
    (written / name).write_bytes(flipped)
    try:
        with pytest.raises(InputError, match=f"^{re.escape(str(written / name))}: damaged: .*rebuild the shards with"):
            TokenShards.open(written)
    finally:
        (written / name).write_bytes(content)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_changed_byte_of_the_manifest_is_believed(written: Path, data: st.DataObject) -> None:
    manifest = written / "manifest.json"
    content = manifest.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[place] ^= data.draw(st.integers(1, 255))
    manifest.write_bytes(flipped)
    try:
        if parsed(flipped) == json.loads(content):  # only the spaces between values changed
            assert TokenShards.open(written, verify=False).vocab_size == 700
        else:
            with pytest.raises(InputError, match=f"^{re.escape(str(manifest))}: "):
                TokenShards.open(written, verify=False)
    finally:
        manifest.write_bytes(content)


def parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["tokens-00000.bin", "documents.bin"])
def test_sizes_are_always_checked(copied: Path, name: str, verify: bool) -> None:
    content = (copied / name).read_bytes()
    for changed in (content[:-1], content + b"\0", b""):
        (copied / name).write_bytes(changed)
        with pytest.raises(InputError, match=f"{name}: damaged: {len(changed)} bytes, must be {len(content)}; rebuild"):
            TokenShards.open(copied, verify)
    (copied / name).unlink()
    with pytest.raises(InputError, match=f"{name}: missing, but manifest.json names it; rebuild"):
        TokenShards.open(copied, verify)


def test_unverified_index_must_still_increase(copied: Path) -> None:
    index = np.memmap(copied / "documents.bin", "<i8", mode="r+")
    index[1] = index[2]
    index.flush()
    with pytest.raises(InputError, match=r"documents\.bin: damaged"):
        TokenShards.open(copied, verify=False)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "damaged: line 1, column 1: not JSON: .*"),
        (b"\xff", "damaged: byte 0: not UTF-8"),
        (b"[]", "damaged: must hold a JSON object, holds a list"),
        (b'{"format": "other"}', "not a manifest of token shards"),
        (b'{"format": "vikhr-fast token shards", "version": 1}', "version 1, this program reads 2"),
        (b'{"format": "vikhr-fast token shards", "version": 2}', "damaged: its checksum does not fit"),
    ],
)
def test_bad_manifest_is_named(copied: Path, content: bytes, complaint: str) -> None:
    (copied / "manifest.json").write_bytes(content)
    with pytest.raises(
        InputError, match=rf"manifest\.json: {complaint}; rebuild the shards with `vikhr-fast corpus shard`"
    ):
        TokenShards.open(copied)


Manifest = dict[str, Any]


@pytest.mark.parametrize(
    ("lie", "complaint"),
    [
        (lambda manifest: manifest.update(bos_id="1"), "bos_id: '1': input should be a valid integer"),
        (lambda manifest: manifest.update(vocab_size=700.0), "vocab_size: 700.0: input should be a valid integer"),
        (lambda manifest: manifest.update(num_tokens=True), "num_tokens: True: input should"),
        (lambda manifest: manifest.update(num_bytes=-1), "num_bytes: -1: input should"),
        (lambda manifest: manifest.update(dtype="<u8"), "dtype: '<u8': input should"),
        (lambda manifest: manifest.update(files=None), "files: None: input should"),
        (lambda manifest: manifest["files"][0].update(name="../x.bin"), "files.0.name: '../x.bin': string should"),
        (lambda manifest: manifest["files"][1].pop("sha256"), "files.1.sha256: missing"),
        (lambda manifest: manifest.pop("index"), "index: missing"),
        (lambda manifest: manifest.update(num_documents=1), "sizes that don't fit each other"),
        (lambda manifest: manifest["files"].pop(), "sizes that don't fit each other"),
        (lambda manifest: manifest["files"][0].update(tokens=3), "sizes that don't fit each other"),
        (
            lambda manifest: manifest["files"][0].update(trained={**manifest["index"]}),
            "sizes that don't fit each other",
        ),
        (lambda manifest: manifest["index"].update(name="tokens-00000.bin"), "sizes that don't fit each other"),
    ],
)
def test_a_manifest_that_lies_under_its_own_checksum_is_refused(
    copied: Path, lie: Callable[[Manifest], object], complaint: str
) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    lie(manifest)
    (copied / "manifest.json").write_text(json.dumps({**manifest, "sha256": manifest_sha256(manifest)}))
    with pytest.raises(InputError, match=rf"manifest\.json: damaged: .*{re.escape(complaint)}.*; rebuild the shards"):
        TokenShards.open(copied)


def test_documents_that_are_shared_out_otherwise_than_the_index_says_are_refused(copied: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    first, second = manifest["files"][:2]
    first["documents"], second["documents"] = first["documents"] - 1, second["documents"] + 1
    (copied / "manifest.json").write_text(json.dumps({**manifest, "sha256": manifest_sha256(manifest)}))
    with pytest.raises(InputError, match=r"documents\.bin: damaged: not increasing as it must"):
        TokenShards.open(copied)


def test_a_long_line_is_refused_or_allowed(tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "раз"}\n' + json.dumps({"text": "два " * 500}))
    with pytest.raises(InputError, match=r"a\.jsonl: line 2: more than 0.001 MB; cut it up"):
        write_shards(Shard((file,), tokenizer, tmp_path / "out", max_line=0.001))
    write_shards(Shard((file,), tokenizer, tmp_path / "out", max_line=0.02))
    assert TokenShards.open(tmp_path / "out").num_documents == 2
    for impossible in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"--max-line .*: must be a number of MB"):
            write_shards(Shard((file,), tokenizer, tmp_path / "other", max_line=impossible))


def test_directory_without_shards_is_named(tmp_path: Path, russian: Path) -> None:
    for directory in (tmp_path, tmp_path / "absent", russian):
        with pytest.raises(InputError, match=f"^{re.escape(str(directory / 'manifest.json'))}: no such file"):
            TokenShards.open(directory)


def test_failure_leaves_nothing(
    russian: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"fine\n\n\xff")
    options = Shard((russian, bad), tokenizer, tmp_path / "sub" / "out")
    with pytest.raises(InputError, match=f"^{re.escape(str(bad))}: line 3, byte 6"):
        write_shards(options)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard._Writer, "add", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_shards(replace(options, input=(russian,)))
    assert list((tmp_path / "sub").iterdir()) == []


def test_unusable_tokenizer_and_options_are_named(
    folder: Path, russian: Path, tokenizer: Path, other_tokenizer: Path, tmp_path: Path
) -> None:
    alone = folder / "alone"  # nothing says which tokens begin and end a document
    alone.mkdir()
    shutil.copy(other_tokenizer / "tokenizer.json", alone)
    options = Shard((russian,), tokenizer, tmp_path / "out")
    for changes, complaint in (
        ({"tokenizer": folder}, f"{re.escape(str(folder))}: neither tokenizer.model nor tokenizer.json in it"),
        ({"tokenizer": tmp_path / "absent"}, "absent: no such file or directory; give a directory"),
        ({"tokenizer": tmp_path / "absent.json"}, "absent.json: no such file or directory; give a directory"),
        ({"tokenizer": tokenizer / "tokenizer_config.json"}, "no tokenizer that can be read"),
        ({"tokenizer": alone}, "alone: no BOS or no EOS piece"),
        ({"tokenizer": russian}, re.escape(str(russian))),
        ({"shard_tokens": 0}, "--shard-tokens 0: must be positive"),
        ({"threads": -1}, "--threads -1: must be 0 or more"),
        ({"output": tokenizer}, "exists already"),
    ):
        with pytest.raises(InputError, match=complaint):
            write_shards(replace(options, **changes))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=20, deadline=None)
@given(contents=texts)
def test_a_tokenizer_without_a_sentencepiece_model(folder: Path, other_tokenizer: Path, contents: list[str]) -> None:
    contents = [*contents, "a document that spells <|end|> is one document"]
    source, output = folder / "other.jsonl", folder / "other"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in contents), encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    write_shards(Shard(input=(source,), tokenizer=other_tokenizer, output=output))
    shards = TokenShards.open(output)
    library = tokenizers.Tokenizer.from_file(str(other_tokenizer / "tokenizer.json"))
    documents = [shards.document(number).tolist() for number in range(shards.num_documents)]
    assert [library.decode(ids[1:-1]) for ids in documents] == contents
    for ids in documents:
        assert (ids[0], ids[-1], ids.count(0), ids.count(1)) == (0, 1, 1, 1)
    assert (shards.vocab_size, shards.tokenizer_sha256) == (400, sha256_of(other_tokenizer / "tokenizer.json"))


def test_bytes_without_a_token_are_counted(
    other_tokenizer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As SmolLM2 has eight; the library makes nothing of them."""
    shutil.copytree(other_tokenizer, tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    for token in (token_text(b"\x04"), token_text(b"\xf1")):
        del values["model"]["vocab"][token]
    file.write_text(json.dumps(values), encoding="utf-8")
    for name, text in (("clean", "а b"), ("lossy", "а\x04b\x04 \U00050000\n\nc\x04")):
        caplog.clear()
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
        write_shards(Shard((tmp_path / f"{name}.txt",), tmp_path / "tokenizer", tmp_path / name))
        lost = "4 bytes of the text have no token in this tokenizer and are lost: 0x04 (3), 0xf1 (1)"
        assert caplog.messages == ([lost] if name == "lossy" else [])
