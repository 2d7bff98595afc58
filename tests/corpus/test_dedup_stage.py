"""Documents without near-duplicate paragraphs: the result of one large index, in any memory, whatever stops the run."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from corpora import directory_bytes, make_documents, noisy_sources, texts_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast.corpus import multipass_dedup
from vikhr_fast.corpus.dedup import DedupIndex, deduplicate
from vikhr_fast.corpus.dedup_stage import PAIRS, Dedup, dedup
from vikhr_fast.corpus.paragraphs import split
from vikhr_fast.corpus.settings import DedupStage, Machine
from vikhr_fast.corpus.stage import work_of
from vikhr_fast.data.documents import Documents
from vikhr_fast.errors import InputError


def expected_texts(sources: dict[str, list[str]]) -> list[str]:
    """By one index over all paragraphs at once."""
    documents = [text for texts in sources.values() for text in texts]
    paragraphs = [piece for text in documents for piece in text.split("\n\n")]
    long = [piece for piece in paragraphs if len(piece.split()) >= 5]
    kept = iter(deduplicate(long).keep.tolist())
    rebuilt = []
    for text in documents:
        left = [piece for piece in text.split("\n\n") if len(piece.split()) < 5 or next(kept)]
        if left:
            rebuilt.append("\n\n".join(left))
    return rebuilt


@pytest.fixture(scope="module")
def sources() -> dict[str, list[str]]:
    return noisy_sources(130)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory, sources: dict[str, list[str]]) -> Documents:
    """In a dozen parts or so."""
    return make_documents(tmp_path_factory.mktemp("noisy"), sources, part_bytes=9_000)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, documents: Documents) -> Path:
    """What dedup makes of it in one pass."""
    output = tmp_path_factory.mktemp("whole") / "out"
    dedup(Dedup(documents.directory, output, DedupStage(), Machine(threads=1)))
    return output


def test_the_paragraphs_of_one_large_index_are_left(
    documents: Documents, whole: Path, sources: dict[str, list[str]]
) -> None:
    assert len(documents.parts) > 10
    result = Documents.open(whole)
    expected = expected_texts(sources)
    assert texts_of(result) == expected
    before = [piece for texts in sources.values() for text in texts for piece in text.split("\n\n")]
    assert result.total["paragraphs"] == len(before)
    assert result.total["removed_paragraphs"] == len(before) - sum(text.count("\n\n") + 1 for text in expected) > 50
    assert result.total["short_paragraphs"] == sum(len(piece.split()) < 5 for piece in before)
    assert result.total["removed_documents"] == documents.total["documents"] - result.total["documents"] > 0
    assert result.total["bytes"] + result.total["removed_bytes"] == documents.total["bytes"]


def few_texts_fill_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that counts 400 bytes a text, so that a pass holds some parts of so small a corpus."""
    monkeypatch.setattr(multipass_dedup, "_BATCH_CHARACTERS", 3_000)
    monkeypatch.setattr(DedupIndex, "index_bytes", property(lambda self: 400 * self.result().statistics.texts))


@pytest.mark.parametrize("memory", [2e-5, 6e-5])
def test_little_memory_changes_nothing(
    documents: Documents, whole: Path, tmp_path: Path, memory: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_texts_fill_it(monkeypatch)
    batches: list[int] = []
    match = DedupIndex.match
    monkeypatch.setattr(DedupIndex, "match", lambda *a, **k: (batches.append(1), match(*a, **k))[1])
    dedup(Dedup(documents.directory, tmp_path / "out", DedupStage(), Machine(threads=2, memory=memory)))
    assert batches  # several passes
    assert directory_bytes(tmp_path / "out") == directory_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [0, 4, 13, *range(15, 30, 2)])
def test_a_killed_run_goes_on_to_the_same_bytes(
    documents: Documents, whole: Path, tmp_path: Path, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    few_texts_fill_it(monkeypatch)
    monkeypatch.setattr(multipass_dedup, "_CHECKPOINT_SECONDS", 0)
    machine = Machine(threads=1, memory=6e-5)
    writes = 0
    write = multipass_dedup.save_array

    def write_some(path: Path, values: Any) -> None:
        nonlocal writes
        writes += 1
        if writes > killed_at:
            raise KilledError
        write(path, values)

    monkeypatch.setattr(multipass_dedup, "save_array", write_some)
    with pytest.raises(KilledError):
        dedup(Dedup(documents.directory, tmp_path / "out", DedupStage(), machine))
    monkeypatch.setattr(multipass_dedup, "save_array", write)
    dedup(Dedup(documents.directory, tmp_path / "out", DedupStage(), machine))
    assert directory_bytes(tmp_path / "out") == directory_bytes(whole)


def test_removed_pairs_are_shown_beside_what_was_kept(whole: Path) -> None:
    pairs = [json.loads(line) for line in (whole / PAIRS).read_text().splitlines()]
    assert len(pairs) > 50
    assert all(pair["similarity"] >= 0.8 for pair in pairs)
    assert any(pair["removed"].strip() != pair["kept"].strip() for pair in pairs)
    assert [pair["similarity"] for pair in pairs] == sorted(pair["similarity"] for pair in pairs)


def test_whole_documents_and_lines(tmp_path: Path) -> None:
    text = "Один два три четыре пять шесть.\nСемь восемь девять десять одиннадцать."
    other = "Совсем другое начало у этого текста.\nСемь восемь девять десять одиннадцать."
    documents = make_documents(tmp_path, {"s": [text, other, text]})
    for mode, expected in (
        ("document", [text, other]),
        ("line", [text, "Совсем другое начало у этого текста."]),
        ("blank-line", [text, other]),
    ):
        dedup(Dedup(documents.directory, tmp_path / mode, DedupStage(paragraphs=mode), Machine()))  # type: ignore[arg-type]
        assert texts_of(Documents.open(tmp_path / mode)) == expected


def test_what_separates_paragraphs_is_no_part_of_them(tmp_path: Path) -> None:
    stars, words = "* * * * * * *", "один два три четыре пять шесть семь"
    documents = make_documents(tmp_path, {"s": [f"{stars}\n\n{words}\n \n\n{stars}", f"{words}\n\n\nконец", stars]})
    dedup(Dedup(documents.directory, tmp_path / "out", DedupStage(), Machine()))
    assert texts_of(Documents.open(tmp_path / "out")) == [f"{stars}\n\n{words}", "конец"]


def test_short_paragraphs_stay(tmp_path: Path) -> None:
    documents = make_documents(tmp_path, {"s": ["— Да.\n\n— Нет, никогда.\n\n— Да.", "— Да."]})
    dedup(Dedup(documents.directory, tmp_path / "kept", DedupStage(), Machine()))
    assert texts_of(Documents.open(tmp_path / "kept")) == texts_of(documents)
    dedup(Dedup(documents.directory, tmp_path / "gone", DedupStage(minimum_words=0), Machine()))
    assert texts_of(Documents.open(tmp_path / "gone")) == ["— Да.\n\n— Нет, никогда."]


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="аб \n\t\r", max_size=60), mode=st.sampled_from(["blank-line", "line", "document"]))
def test_paragraphs_make_up_their_document(text: str, mode: str) -> None:
    pieces = split(text, mode)
    assert "".join(pieces) == text
    if mode == "blank-line":
        assert not any("\n\n" in piece.strip() for piece in pieces)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("абвг"), min_size=1, max_size=12).map(" ".join), max_size=60), st.data())
def test_a_match_is_what_adding_would_find(texts: list[str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(texts)))
    index = DedupIndex(multipass_dedup.index_settings(DedupStage(shingle="word:2", threshold=0.5)))
    index.add(texts[:cut], threads=1)
    for text in texts[cut:]:
        found = int(index.match([text], threads=1)[0])
        before = index.result().clusters.tolist()
        assert index.match([text], threads=1).tolist() == [found]
        index.add([text], threads=1)
        clusters = index.result().clusters.tolist()
        assert clusters[:-1] == before
        assert clusters[-1] == (len(before) if found < 0 else found)


def test_only_star_clustering_can_match() -> None:
    from dataclasses import replace

    index = DedupIndex(replace(multipass_dedup.index_settings(DedupStage()), clustering="transitive"))
    with pytest.raises(ValueError, match="star"):
        index.match(["раз"])


def npy(shape: str) -> bytes:
    """The beginning of an .npy file, with a header of any content."""
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({shape},)}}\n".encode()
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header


def test_bad_settings_and_damaged_state_are_refused(documents: Documents, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bands 7: must divide num_perm 120"):
        dedup(Dedup(documents.directory, tmp_path / "out", DedupStage(bands=7), Machine()))
    for machine, complaint in (
        (Machine(memory=0), "machine: memory: 0"),
        (Machine(memory=math.nan), "machine: memory: nan"),
        (Machine(threads=-1), "machine: threads: -1"),
    ):
        with pytest.raises(InputError, match=complaint):
            dedup(Dedup(documents.directory, tmp_path / "out", DedupStage(), machine))
    state = tmp_path / "passes.json"
    for damaged in ('{"phase": "ad', "[]", '{"phase": "other"}', '{"part": -1}', '{"index": "../x"}', "[" * 100_000):
        state.write_text(damaged)
        with pytest.raises(InputError, match=r"passes\.json: damaged: .*; remove .* and begin anew"):
            multipass_dedup.Passes(documents.parts, DedupStage(), tmp_path, 1e9, 1)
    for damaged_array in (
        b"",
        b"\x93NUMPY",
        b"x" * 200,
        b"PK\5\6" + bytes(18),
        npy("10**12"),
        npy("10**23"),
        npy("1" * 24),
    ):
        multipass_dedup.owners_file(tmp_path, 0).write_bytes(damaged_array)
        with pytest.raises(InputError, match=r"owners-00000\.npy: damaged: .*; remove .* and begin anew"):
            multipass_dedup.read_owners(tmp_path, 0)


def test_a_cluster_that_is_not_there_costs_no_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = make_documents(tmp_path, noisy_sources(20), part_bytes=2000)
    (tmp_path / "out.partial" / "result").mkdir(parents=True)
    (tmp_path / "out.partial" / "result" / "part-00000.parquet").write_bytes(b"of an earlier try")
    work = json.dumps(work_of("dedup", DedupStage(), input=documents.sha256))
    (tmp_path / "out.partial" / "work.json").write_text(work)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="needs the package ray"):
        dedup(Dedup(documents.directory, tmp_path / "out", DedupStage(), Machine(engine="ray")))
    assert (tmp_path / "out.partial" / "result" / "part-00000.parquet").exists()
