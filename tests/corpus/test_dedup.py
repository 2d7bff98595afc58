"""Deduplication against a brute-force one in Python, and the laws that it keeps."""

import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import planted
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast import _native
from vikhr_fast.corpus import DedupIndex, Deduplicated, DedupSettings, MinHasher, deduplicate
from vikhr_fast.corpus.minhash import jaccard
from vikhr_fast.errors import InputError

needs_data = pytest.mark.skipif(not planted.paragraphs(), reason=f"no text in {planted.DATA}")
CLUSTERINGS = ["star", "transitive"]
deterministic = settings(max_examples=60, deadline=None)
# Texts over few words, so that every kind of overlap occurs; some are edits of others.
texts_strategy = st.lists(st.lists(st.sampled_from("абвгде"), max_size=14).map(" ".join), min_size=1, max_size=40)


def brute_force(texts: list[str], how: DedupSettings, *, with_bands: bool) -> list[int]:
    """The clusters by the definition, on sets of Python words; without bands every pair is compared."""
    length = int(how.shingle.removeprefix("word:"))
    sets = [planted.shingles(text, length) for text in texts]
    is_short = [len(planted.words(text)) < length for text in texts]
    hasher = MinHasher(how.num_perm, how.bands, how.shingle, how.seed)
    keys = hasher.band_keys(hasher.shingles(texts))
    clusters = list(range(len(texts)))

    def root(i: int) -> int:
        return i if clusters[i] == i else root(clusters[i])

    def match(i: int, j: int) -> bool:
        if sets[i] == sets[j]:
            return True
        if is_short[i] or is_short[j] or (with_bands and not (keys[i] == keys[j]).any()):
            return False
        return planted.jaccard(sets[i], sets[j]) >= how.threshold

    for i in range(len(texts)):
        for j in range(i):
            if how.clustering == "star":
                if clusters[j] == j and match(i, j):
                    clusters[i] = j
                    break
            elif match(i, j):
                low, high = sorted((root(i), root(j)))
                clusters[high] = low
    return [root(i) for i in range(len(texts))]


@deterministic
@given(
    texts=texts_strategy,
    threshold=st.sampled_from([0.2, 0.5, 0.8, 1.0]),
    clustering=st.sampled_from(CLUSTERINGS),
    shape=st.sampled_from([(120, 20), (16, 16), (8, 2)]),
)
def test_is_the_brute_force_result(texts: list[str], threshold: float, clustering: str, shape: tuple[int, int]) -> None:
    how = DedupSettings(*shape, "word:2", 1, threshold, clustering)  # type: ignore[arg-type]
    result = deduplicate(texts, settings=how)
    assert result.clusters.tolist() == brute_force(texts, how, with_bands=True)
    assert result.keep.tolist() == [cluster == i for i, cluster in enumerate(result.clusters)]


@deterministic
@given(texts=texts_strategy, cuts=st.lists(st.integers(0, 40), max_size=5), clustering=st.sampled_from(CLUSTERINGS))
def test_batches_threads_and_instructions_change_nothing(texts: list[str], cuts: list[int], clustering: str) -> None:
    how = DedupSettings(16, 16, "word:2", threshold=0.4, clustering=clustering)  # type: ignore[arg-type]
    expected = deduplicate(texts, settings=how, threads=1)
    index = DedupIndex(how)
    bounds = [0, *sorted(cuts), len(texts)]
    before = np.zeros(0, bool)
    for start, end in pairwise(bounds):
        index.add(texts[start:end], threads=3)
        keep = index.result().keep
        assert not (keep[: len(before)] & ~before).any()  # no text comes back
        assert clustering == "transitive" or (keep[: len(before)] == before).all()
        before = keep
    assert_same(index.result(), expected)
    if clustering == "star":
        assert index.match(texts).tolist() == expected.clusters.tolist()
    for isa in _native.isa_names():
        native = _native.DedupIndex("word", 2, 16, 16, 1, 0.4, clustering == "transitive", isa)
        native.add(_native.Texts.from_sequence(texts), False, 1)
        assert native.clusters().tolist() == expected.clusters.tolist()


def assert_same(one: Deduplicated, other: Deduplicated) -> None:
    assert one.clusters.tolist() == other.clusters.tolist()
    assert one.keep.tolist() == other.keep.tolist()
    assert one.statistics._replace(index_bytes=0) == other.statistics._replace(index_bytes=0)


@pytest.mark.parametrize(
    ("clustering", "expected", "candidates"), [("star", [0, 0, 2, 2], 3), ("transitive", [0, 0, 0, 0], 5)]
)
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_chain_of_neighbours(clustering: str, expected: list[int], candidates: int, batch: int) -> None:
    texts = [" ".join(f"w{i}" for i in range(start, start + 6)) for start in (0, 2, 4, 6)]  # J 1/2 and 1/5
    index = DedupIndex(DedupSettings(128, 128, "word:1", threshold=0.5, clustering=clustering))  # type: ignore[arg-type]
    for start in range(0, 4, batch):
        index.add(texts[start : start + batch])
    assert index.result().clusters.tolist() == expected
    assert index.result().statistics.candidates == candidates  # pairs, however many bands they share


@needs_data
@pytest.mark.parametrize("clustering", CLUSTERINGS)
def test_threads_on_real_text(clustering: str) -> None:
    texts = planted.planted(6_000_000, seed=3).texts  # several blocks
    how = DedupSettings(clustering=clustering)  # type: ignore[arg-type]
    expected = deduplicate(texts, settings=how, threads=1)
    for threads in (0, 2, 5):
        assert_same(deduplicate(texts, settings=how, threads=threads), expected)
    index = DedupIndex(how)
    for start, end in pairwise([0, 50, 5_050, 5_051, 9_500, len(texts)]):  # with tables of every size
        index.add(texts[start:end], threads=2)
    assert_same(index.result(), expected)
    signatures = [
        _native.MinHasher("word", 5, 200, 20, 1, isa).signatures(_native.Texts.from_sequence(texts[:3000]), False, 2)
        for isa in _native.isa_names()
    ]
    assert all((one == signatures[0]).all() for one in signatures)


@pytest.mark.slow
@needs_data
def test_planted_near_duplicates() -> None:
    made = planted.planted(8_000_000, seed=1)
    result = deduplicate(made.texts)
    pairs = list(planted.true_pairs(made, 0.8))
    found = sum(not result.keep[i] for _, i in pairs)
    assert len(pairs) > 2000
    assert found / len(pairs) >= 0.99
    for i in np.flatnonzero(~result.keep):
        kept = result.clusters[i]
        assert kept < i
        assert result.keep[kept]
        assert planted.jaccard(planted.shingles(made.texts[kept]), planted.shingles(made.texts[i])) >= 0.8


@needs_data
def test_5000_real_paragraphs_as_by_brute_force() -> None:
    texts = planted.planted(10_000_000, seed=2).texts[:5000]
    sets = MinHasher().shingles(texts)
    # Candidates off: all pairs, by an inverted index from shingles to texts, so that none is left out.
    owners = np.repeat(np.arange(5000), np.diff(sets.offsets))
    order = np.argsort(sets.values, kind="stable")
    values, owners = sets.values[order], owners[order]
    pairs = set()
    for start, end in _runs(values):
        pairs.update((int(i), int(j)) for n, j in enumerate(owners[start:end]) for i in owners[start : start + n])
    similar = sorted(pairs)
    close = jaccard(sets, np.array(similar)) >= 0.8
    clusters = list(range(5000))
    for (i, j), is_close in sorted(zip(similar, close, strict=True), key=lambda one: (one[0][1], one[0][0])):
        if is_close and clusters[j] == j and clusters[i] == i:
            clusters[j] = i
    assert deduplicate(texts).clusters.tolist() == clusters
    assert sum(cluster != i for i, cluster in enumerate(clusters)) > 700


def _runs(values: np.ndarray) -> list[tuple[int, int]]:  # type: ignore[type-arg]
    bounds = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1], [True]]))
    return [(a, b) for a, b in pairwise(bounds.tolist()) if b - a > 1]


@pytest.mark.slow
@pytest.mark.parametrize(("num_perm", "bands"), [(120, 20), (112, 14), (120, 10)])
@pytest.mark.parametrize("size", [20, 300])
def test_the_s_curve(num_perm: int, bands: int, size: int) -> None:
    """The share of pairs with a common band is the theory's, within five standard errors, over sizes and seeds."""
    draw = random.Random(num_perm + bands + size)
    for common in (0.3, 0.5, 0.7, 0.8, 0.9):
        hits, trials, similarity = 0, 0, 0.0
        for seed in range(10):
            hasher = MinHasher(num_perm, bands, "word:1", seed)
            both = round(size * common)
            texts = []
            for _ in range(200):
                names = [f"w{draw.getrandbits(60)}" for _ in range(2 * size - both)]
                texts += [" ".join(names[:size]), " ".join(names[size - both :])]
            keys = hasher.band_keys(hasher.shingles(texts))
            hits += int((keys[0::2] == keys[1::2]).any(1).sum())
            trials += 200
            similarity = both / (2 * size - both)
        expected = float(hasher.probability(similarity))
        error = max(np.sqrt(expected * (1 - expected) / trials), 1 / trials)
        assert abs(hits / trials - expected) < 5 * error, (similarity, hits / trials, expected)


def test_the_estimate_is_unbiased() -> None:
    draw = random.Random(5)
    for size, common in [(6, 3), (40, 30), (400, 200)]:
        texts = []
        for _ in range(500):
            names = [f"w{draw.getrandbits(60)}" for _ in range(2 * size - common)]
            texts += [" ".join(names[:size]), " ".join(names[size - common :])]
        signatures = MinHasher(shingle="word:1").signatures(texts)
        share = (signatures[0::2] == signatures[1::2]).mean(1)
        expected = common / (2 * size - common)
        assert abs(share.mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / 120 / 500)
        assert np.sqrt(share.var() / (expected * (1 - expected) / 120)) == pytest.approx(1, abs=0.15)


def test_the_signature_of_a_long_text_is_the_least_of_its_shingles() -> None:
    words = [f"w{i}" for i in range(5000)]
    hasher = MinHasher(shingle="word:1")
    assert (hasher.signatures([" ".join(words)])[0] == hasher.signatures(words).min(0)).all()


def test_boilerplate_costs_no_square() -> None:
    copies = [f"одно и то же предложение стоит на каждой странице сайта {' ' * (i % 3)}" for i in range(200_000)]
    statistics = deduplicate(copies).statistics
    assert (statistics.kept, statistics.identical, statistics.candidates) == (1, 199_999, 0)


@pytest.mark.parametrize("clustering", CLUSTERINGS)
def test_a_saved_index_goes_on(tmp_path: Path, clustering: str) -> None:
    draw = random.Random(1)
    texts = [" ".join(draw.choices("абвг", k=draw.randrange(12))) for _ in range(600)]
    how = DedupSettings(24, 12, "word:2", 9, 0.5, clustering)  # type: ignore[arg-type]
    index = DedupIndex(how)
    index.add(texts[:400])
    index.save(tmp_path / "index")
    again = DedupIndex.load(tmp_path / "index")
    assert again.settings == how
    assert_same(again.result(), index.result())
    again.add(texts[400:])
    assert_same(again.result(), deduplicate(texts, settings=how))


def test_a_damaged_index_is_one_error(tmp_path: Path) -> None:
    index = DedupIndex(DedupSettings(8, 4, "word:2"))
    index.add([f"слово {i} и ещё {i % 3}" for i in range(31)] + ["раз", ""])
    path = tmp_path / "index"
    index.save(path)
    good = path.read_bytes()
    assert len(good) % 8 != 0  # the checksum ends with a part of a word
    for at in {*range(0, len(good), 7), *range(len(good) - 12, len(good))}:
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        with pytest.raises(InputError, match="make the index anew"):
            DedupIndex.load(path)
    for size in (0, 1, 8, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(InputError, match="make the index anew"):
            DedupIndex.load(path)
    with pytest.raises(InputError, match="No such file"):
        DedupIndex.load(tmp_path / "absent")


def mix(a: int, b: int) -> int:
    product = a * b
    return (product ^ product >> 64) % 2**64


def signed(body: bytes) -> bytes:
    """A saved index with the checksum that its bytes have: csrc/dedup/index_file.cpp."""
    state = 0
    for at in range(0, len(body), 8):
        word = int.from_bytes(body[at : at + 8], "little")
        state = (mix(state ^ word, 0x9FB21C651E98DF25) + word) % 2**64
    checksum = mix(state ^ len(body) ^ 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93)
    return body + checksum.to_bytes(8, "little")


def test_a_forged_index_is_one_error(tmp_path: Path) -> None:
    index = DedupIndex(DedupSettings(8, 4, "word:1"))
    index.add(["один два", "три четыре", "один два", "пять"])
    path = tmp_path / "index"
    index.save(path)
    good = path.read_bytes()
    body = good[:-8]
    assert signed(body) == good
    values = len(body) - 5 * 8  # 2 + 2 + 1 of them behind u32 [4 parents + 3 texts + 3 sizes]
    parents, texts, sizes = values - 40, values - 24, values - 12
    one, two, three, four = (body[values + 8 * i : values + 8 * i + 8] for i in range(4))
    forged = {
        "equal sets": (values, one + two + one + two),
        "not ascending": (values, two + one),
        "twice in a set": (values, one + one),
        "a parent behind it": (parents, b"\1"),
        "a parent that was removed": (parents + 12, b"\2"),
        "an entry of a removed text": (texts + 8, b"\2"),
        "entries out of order": (texts, b"\1\0\0\0\0"),
        "one value more": (sizes, b"\3"),
        "one value fewer": (sizes, b"\1"),
    }
    for what, (at, change) in forged.items():
        path.write_bytes(signed(body[:at] + change + body[at + len(change) :]))
        with pytest.raises(InputError, match="its parts contradict each other"):
            pytest.fail(f"{what}: {DedupIndex.load(path).result()}")
    path.write_bytes(signed(body[:values] + three + four + one + two + body[values + 32 :]))  # right again
    assert DedupIndex.load(path).match(["один два", "четыре три", "шесть"]).tolist() == [1, 0, -1]


def test_shingles_of_removed_texts_do_not_stay() -> None:
    text = " ".join(f"w{i}" for i in range(20_000))
    index = DedupIndex()
    index.add([text])
    alone = index.index_bytes
    index.add(99 * [text + " и ещё"])
    assert index.result().statistics.kept == 1
    assert index.index_bytes < 2 * alone


def test_an_index_is_asked_while_it_is_saved() -> None:
    """Whoever asks waits for the lock, and the one that saves for the interpreter: in a process that may hang."""
    code = """if True:
        import threading, time
        from vikhr_fast.corpus import DedupIndex
        index, begun = DedupIndex(), threading.Event()
        index.add(["один два"])
        def write(piece):
            begun.set()
            time.sleep(0.2)
        saving = threading.Thread(target=index._native.save, args=(write,))
        saving.start()
        begun.wait()
        assert index.index_bytes > 0
        assert index.result().keep.tolist() == [True]
        saving.join()
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_full_disk_is_the_systems_error() -> None:
    index = DedupIndex()
    index.add(["текст"])
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError, match="No space"):
        index._native.save(full.write)


@pytest.mark.parametrize("threads", [1, 4])
def test_invalid_utf8_names_the_place_and_adds_nothing(threads: int) -> None:
    index = DedupIndex()
    texts = ["хорошо " * 50_000] * 5 + [b"abc\xff", b"\xff"]
    with pytest.raises(ValueError, match=r"^document 5: byte 3: not valid UTF-8"):
        index.add(texts, threads=threads)
    assert index.result().statistics.texts == 0
    index.add(texts, errors="replace")
    assert index.result().keep.tolist() == [True, False, False, False, False, True, True]


@pytest.mark.parametrize(
    "bad", [b"\x80", b"\xd0", b"\xd0 ", b"\xd1\xd1\x80", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"]
)
@pytest.mark.parametrize("before", ["", "слово ", "x" * 63, "б" * 31 + "x", "я" * 40_000 + " "])
def test_every_kind_of_invalid_utf8(bad: bytes, before: str) -> None:
    text = before.encode() + bad + b" word"
    with pytest.raises(UnicodeDecodeError) as error:
        text.decode()
    with pytest.raises(ValueError, match=f"byte {error.value.start}: not valid"):
        MinHasher().signatures([text])
    repaired = MinHasher(shingle="word:1").shingles([text, text.decode(errors="replace")], errors="replace")
    one, other = np.split(repaired.values, repaired.offsets[1:2])
    assert one.tolist() == other.tolist()


def test_wrong_arguments() -> None:
    for arguments in ({"num_perm": 0}, {"num_perm": 5000}, {"bands": 7}, {"bands": 0}, {"seed": -1}, {"num_perm": -1}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            MinHasher(**arguments)  # type: ignore[arg-type]
    for shingle in ("word", "word:0", "word:-1", "word:1001", "line:3", "word:٣", "char:9999999999999"):
        with pytest.raises(ValueError, match="shingle"):
            MinHasher(shingle=shingle)
    for threshold in (0, -1, 1.01, float("nan")):
        with pytest.raises(ValueError, match="threshold"):
            deduplicate([], threshold)
    with pytest.raises(ValueError, match="default, fineweb, strict"):
        deduplicate([], settings="loose")
    with pytest.raises(ValueError, match="clustering"):
        DedupIndex(DedupSettings(clustering="best"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="put it into a list"):
        deduplicate("text")
    with pytest.raises(TypeError, match="document 1 is neither"):
        deduplicate(["a", 1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="threads"):
        deduplicate(["a"], threads=-1)
    with pytest.raises(IndexError, match="names set 2"):
        jaccard(MinHasher().shingles(["a", "b"]), [(0, 2)])


def test_nothing_and_every_form_of_texts() -> None:
    assert deduplicate([]).clusters.tolist() == []
    texts = ["один два три", "", "Один, два, три", "четыре"]
    expected = deduplicate(texts).clusters.tolist()
    assert expected == [0, 1, 0, 3]
    array = pa.array(texts, pa.large_string())
    buffer = "".join(texts).encode()
    offsets = np.cumsum([0] + [len(text.encode()) for text in texts])
    for form in (array, array.cast(pa.string()), pa.chunked_array([texts[:1], texts[1:]]), (buffer, offsets)):
        assert deduplicate(form).clusters.tolist() == expected
    assert deduplicate([text.encode() for text in texts]).clusters.tolist() == expected
