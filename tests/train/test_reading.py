"""What a reference with another vocabulary reads, and where it is compared, on hard strings."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from byte_level import HARD_PARTS, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from two_vocabularies import aligned, bucket_strings, prefixes

from vikhr_fast.data.packing import IGNORED, Batch, Reading
from vikhr_fast.tokenizer.buckets import common_buckets
from vikhr_fast.tokenizer.spelling import Spelling
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer
from vikhr_fast.train.reading import Reader, Side

PARTS = [*HARD_PARTS, "Утром", "туман", " поднялся", " над рекой", ", and 42", "▁", "<s>", "</s>", "<|end|>", "<0x41>"]
TEXTS = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=4)), max_size=14).map("".join)
PAIRS = [("sentencepiece", "gpt-2"), ("gpt-2", "sentencepiece"), ("sentencepiece", "coarse"), ("smollm", "gpt-2")]
MOST = 10_000


@pytest.fixture(scope="module")
def spellings(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Spelling]:
    root = tmp_path_factory.mktemp("spellings")
    text = (workspace / "train.txt").read_text(encoding="utf-8")
    train_tokenizer(TrainTokenizer(input=(workspace / "other.txt",), output=root / "coarse", vocab_size=900))
    sizes = {"gpt-2": 400, "smollm": 700, "qwen2": 500}
    byte_level = {kind: make_tokenizer(root / kind, [text], size, kind).parent for kind, size in sizes.items()}
    paths = {"sentencepiece": workspace / "tokenizer", "coarse": root / "coarse", **byte_level}
    return {name: Spelling.of(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def reader_of(spellings: dict[str, Spelling]) -> Callable[..., Reader]:
    def make(own: str, ref: str, most: int = MOST) -> Reader:
        sides = [spellings[name] for name in (own, ref)]
        ends = [(side.encoder.bos_id, side.encoder.eos_id) for side in sides]
        buckets = common_buckets(*(side.contents for side in sides), *(eos for _, eos in ends))
        return Reader(*(Side(*each) for each in zip(sides, *zip(*ends, strict=True), buckets, strict=True)), most)

    return make


def document(side: Side, text: str) -> list[int]:
    return [side.bos, *map(int, side.spelling.encoder.encode(text)), side.eos]


def batch_of(windows: list[list[int]], padding: int = 0) -> Batch:
    """Windows of documents: each a stretch of tokens, the last of which is only predicted."""
    tokens = [token for window in windows for token in window[:-1]] + [0] * padding
    targets = [token for window in windows for token in window[1:]] + [IGNORED] * padding
    bounds = np.cumsum([0, *(len(window) - 1 for window in windows), *([padding] if padding else [])])
    return Batch(
        torch.tensor(tokens, dtype=torch.int64), torch.tensor(targets, dtype=torch.int64),
        torch.tensor(bounds, dtype=torch.int32), torch.zeros(len(tokens), dtype=torch.int64),
    )  # fmt: skip


def read(reader: Reader, batch: Batch) -> tuple[Batch, Reading]:
    found = reader.read(batch)
    assert found.reading is not None
    assert torch.equal(torch.as_tensor(found.kl_factor > 0), found.reading.rows >= 0)
    assert len(found.reading.tokens) % 128 == 0
    assert found.reading.cu_seqlens[-1] == len(found.reading.tokens)
    return found, found.reading


@pytest.mark.parametrize(("own", "ref"), PAIRS)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
@settings(deadline=None)
def test_documents_are_compared_wherever_both_have_a_boundary(
    reader_of: Callable[..., Reader], own: str, ref: str, texts: list[str]
) -> None:
    reader = reader_of(own, ref)
    if ref == "sentencepiece":  # which reads this sign as a space
        texts = [text.replace("▁", " ") for text in texts]
    windows = [document(reader.own, text) for text in texts]
    _, reading = read(reader, batch_of(windows, padding=5))
    strings = bucket_strings(reader.own.spelling.contents, reader.ref.spelling.contents)
    ref_strings = bucket_strings(reader.ref.spelling.contents, reader.own.spelling.contents)
    rows, apart, read_before = [], 0, 0
    for text, window in zip(texts, windows, strict=True):
        others = document(reader.ref, text.replace("▁", " ") if own == "sentencepiece" else text)
        pairs = aligned(prefixes(reader.own.spelling, window[1:-1]), prefixes(reader.ref.spelling, others[1:-1]))
        rows += [pairs[place] + read_before if place in pairs else -1 for place in range(len(window) - 1)]
        for place, other in pairs.items():
            nexts = (window[place + 1], others[other + 1])
            is_end = [token == side.eos for token, side in zip(nexts, (reader.own, reader.ref), strict=True)]
            apart += is_end[0] != is_end[1] or (not any(is_end) and strings[nexts[0]] != ref_strings[nexts[1]])
        assert reading.tokens[read_before : read_before + len(others) - 1].tolist() == others[:-1]
        read_before += len(others) - 1
    assert reading.rows.tolist() == [*rows, *[-1] * 5]
    assert (reading.num_tokens, reading.num_cut, reading.num_apart) == (read_before, 0, apart)


def test_normalised_text_is_compared_as_far_as_it_is_spelt(reader_of: Callable[..., Reader]) -> None:
    """NFC makes one character of two: what comes after has other bytes before it."""
    reader = reader_of("gpt-2", "qwen2")
    plain, changed = "Утром туман", "Утром е\u0308лки"
    _, reading = read(reader, batch_of([document(reader.own, text) for text in (plain, changed)]))
    bounds = reading.cu_seqlens.tolist()
    texts = [reader.ref.spelling.spell(reading.tokens[a:b].tolist()).decode() for a, b in pairwise(bounds[:-1])]
    assert texts == [plain, "Утром "]
    assert int(reading.rows[-1]) == -1


@pytest.mark.parametrize(("own", "ref"), PAIRS)
@given(text=TEXTS, cuts=st.lists(st.integers(1, 40), min_size=1, max_size=3))
@settings(deadline=None)
def test_in_windows_both_have_read_the_same(
    reader_of: Callable[..., Reader], own: str, ref: str, text: str, cuts: list[int]
) -> None:
    """But for the part of a word that a window begins with, and an added space."""
    reader = reader_of(own, ref)
    ids = document(reader.own, text)
    starts = sorted({0, *(cut for cut in cuts if cut < len(ids) - 1)})
    windows = [ids[start : stop + 1] for start, stop in pairwise([*starts, len(ids) - 1])]
    batch, reading = read(reader, batch_of(windows))
    bounds = reading.cu_seqlens.tolist()
    for place in (reading.rows >= 0).nonzero().flatten().tolist():
        window = next(n for n, end in enumerate(batch.cu_seqlens.tolist()[1:]) if place < end)
        start, row = int(batch.cu_seqlens[window]), int(reading.rows[place])
        begun = max(bound for bound in bounds if bound <= row)
        mine = reader.own.spelling.spell(batch.tokens[start : place + 1].tolist())
        other = reader.ref.spelling.spell(reading.tokens[begun : row + 1].tolist())
        if window == 0:  # from the document's beginning: all of it
            assert without_space(reader.own, mine) == without_space(reader.ref, other)
        else:
            assert other
            assert mine.endswith((other, without_space(reader.ref, other)))
            assert b" " not in mine[: -len(other)]


def without_space(side: Side, text: bytes) -> bytes:
    """Of a document's beginning, without the space that the tokenizer adds."""
    return text[int(side.spelling.begins_with_space) :]


@pytest.mark.parametrize("ref", ["gpt-2", "coarse"])
def test_windows_of_prose_are_read_in_the_tokens_of_the_whole(
    reader_of: Callable[..., Reader], workspace: Path, ref: str
) -> None:
    reader = reader_of("sentencepiece", ref)
    compared = whole = 0
    for text in (workspace / "train.txt").read_text(encoding="utf-8").split("\n\n"):
        ids, others = document(reader.own, text), document(reader.ref, text)
        windows = [ids[start : start + 41] for start in range(0, len(ids) - 1, 40)]
        _, reading = read(reader, batch_of(windows))
        for window, (start, end) in zip(windows, pairwise(reading.cu_seqlens.tolist()), strict=False):
            inner = reading.tokens[start + 1 : end].tolist()
            has_space = b" " in reader.own.spelling.spell(window)  # or it is a part of a word, read as it is
            assert not has_space or any(others[n : n + len(inner)] == inner for n in range(len(others)))
        compared += int((reading.rows >= 0).sum())
        whole += int((read(reader, batch_of([ids]))[1].rows >= 0).sum())
    assert 0.9 * whole < compared < whole  # a word at each cut is left out


def test_a_batch_reads_as_its_documents_alone(reader_of: Callable[..., Reader]) -> None:
    """So that nothing depends on ranks."""
    reader = reader_of("sentencepiece", "gpt-2")
    windows = [document(reader.own, text) for text in ("Утром туман", "", "поднялся 42", "над рекой")]
    _, together = read(reader, batch_of(windows))
    rows, tokens = [], []
    for window in windows:
        _, alone = read(reader, batch_of([window]))
        rows += [int(row) + len(tokens) if row >= 0 else -1 for row in alone.rows]
        tokens += alone.tokens[: alone.num_tokens].tolist()
    assert together.rows.tolist() == rows
    assert together.tokens[: together.num_tokens].tolist() == tokens


def test_what_it_has_no_positions_for_is_counted(reader_of: Callable[..., Reader]) -> None:
    reader, short = reader_of("sentencepiece", "gpt-2"), reader_of("sentencepiece", "gpt-2", most=9)
    batch = batch_of([document(reader.own, "Утром туман поднялся над рекой"), document(reader.own, "да")])
    _, whole = read(reader, batch)
    _, cut = read(short, batch)
    lengths = whole.cu_seqlens.diff()[:2].tolist()
    assert cut.cu_seqlens.diff()[:2].tolist() == [9, lengths[1]]
    assert cut.num_cut == lengths[0] - 9 > 0
    assert (cut.rows >= 0).sum() < (whole.rows >= 0).sum()
    assert int(cut.rows.max()) == 9 + lengths[1] - 1
    for most in range(2, lengths[0]):  # what follows the last token that is read isn't known, and not the end
        assert read(reader_of("sentencepiece", "gpt-2", most), batch)[1].num_apart <= whole.num_apart


@pytest.mark.parametrize(("own", "ref"), [("sentencepiece", "gpt-2"), ("gpt-2", "sentencepiece")])
def test_a_token_of_the_references_that_is_no_text_ends_what_it_reads(
    reader_of: Callable[..., Reader], own: str, ref: str
) -> None:
    """As the unknown piece where there are no pieces for bytes: what it read isn't the text any more."""
    reader = reader_of(own, ref)
    text = "Утром туман поднялся"
    _, whole = read(reader, batch_of([document(reader.own, text)]))
    place = whole.num_tokens // 2
    assert whole.tokens[place] not in whole.tokens[:place]
    contents = [b"" if index == whole.tokens[place] else x for index, x in enumerate(reader.ref.spelling.contents)]
    spelling = Spelling(reader.ref.spelling.encoder, contents)
    changed = Reader(reader.own, replace(reader.ref, spelling=spelling), MOST)
    _, reading = read(changed, batch_of([document(reader.own, text)]))
    assert reading.tokens[: reading.num_tokens].tolist() == whole.tokens[:place].tolist()
    assert reading.rows.tolist() == [row if row < place else -1 for row in whole.rows.tolist()]


def test_no_part_of_the_kl_reads_nothing(reader_of: Callable[..., Reader]) -> None:
    reader = reader_of("sentencepiece", "gpt-2")
    windows = [document(reader.own, text) for text in ("Утром", "туман")]
    batch = batch_of(windows)
    factor = torch.zeros(len(batch.tokens), dtype=torch.float64)
    _, nothing = read(reader, replace(batch, kl_factor=factor))
    assert (nothing.num_tokens, len(nothing.tokens)) == (0, 128), "ranks run the reference together"
    factor[len(windows[0]) - 1 :] = 2.0
    found, half = read(reader, replace(batch, kl_factor=factor))
    assert reader.ref.spelling.spell(half.tokens[: half.num_tokens].tolist()) == "туман".encode()
    assert set(torch.as_tensor(found.kl_factor).tolist()) == {0.0, 2.0}


def test_text_ends_where_a_token_is_none(reader_of: Callable[..., Reader]) -> None:
    reader = reader_of("sentencepiece", "gpt-2")
    ids = document(reader.own, "Утром туман")
    ids.insert(-1, reader.own.spelling.encoder.unk_id)
    _, reading = read(reader, batch_of([ids]))
    assert reader.ref.spelling.spell(reading.tokens[: reading.num_tokens].tolist()).decode() == "Утром"
    assert (reading.rows[-3:] == -1).all()


def test_a_word_before_a_token_that_is_no_text_is_not_read(reader_of: Callable[..., Reader]) -> None:
    reader = reader_of("sentencepiece", "gpt-2")
    ids = document(reader.own, "туман")
    ids.insert(-1, reader.own.spelling.encoder.unk_id)
    _, reading = read(reader, batch_of([ids]))
    assert reader.ref.spelling.spell(reading.tokens[: reading.num_tokens].tolist()) != "туман".encode()
    assert (reading.rows[-3:] == -1).all()


def test_half_a_character_ends_what_is_read(reader_of: Callable[..., Reader]) -> None:
    reader = reader_of("gpt-2", "sentencepiece")
    byte = reader.own.spelling.contents.index(b"\xd0")
    ids = [*document(reader.own, "туман")[:-1], byte, reader.own.eos]
    _, reading = read(reader, batch_of([ids]))
    text = reader.ref.spelling.spell(reading.tokens[: reading.num_tokens].tolist()).decode()
    assert " туман".startswith(text)
    assert len(text) < len(" туман")
    assert (reading.rows[-2:] == -1).all()


def test_a_space_that_a_window_begins_with_is_not_its_last(reader_of: Callable[..., Reader]) -> None:
    reader = reader_of("sentencepiece", "gpt-2")
    ids = document(reader.own, "а туманутром")
    start = next(n for n, token in enumerate(ids) if n > 1 and reader.own.spelling.contents[token].startswith(b" "))
    _, reading = read(reader, batch_of([ids[start:-1]]))
    text = reader.ref.spelling.spell(reading.tokens[: reading.num_tokens].tolist())
    assert text.startswith(" туман".encode())
    assert (reading.rows >= 0).any()


def test_where_spaces_are_rare_one_of_them_decides_nothing(reader_of: Callable[..., Reader]) -> None:
    reader = reader_of("sentencepiece", "gpt-2")
    texts = {space: "中文没有空格" * 12 + space + "的文字也可以" * 12 for space in ("", " ")}
    compared = []
    for text in texts.values():
        ids = document(reader.own, text)
        middle = ids[20 : len(ids) - 20]
        _, reading = read(reader, batch_of([middle]))
        compared.append(int((reading.rows >= 0).sum()) / len(middle))
    assert compared[1] > 0.95 * compared[0] > 0


def test_without_a_bos_nothing_that_was_read_is_left_out(reader_of: Callable[..., Reader]) -> None:
    reader = reader_of("sentencepiece", "gpt-2")
    without = Reader(reader.own, replace(reader.ref, bos=-1), MOST)
    ids = document(reader.own, "Утром туман поднялся над рекой")
    windows = [ids[:6], ids[5:]]
    rows, others = (read(own, batch_of(windows))[1].rows >= 0 for own in (reader, without))
    assert rows[2:].equal(others[2:])
    assert (bool(rows[1]), bool(others[1])) == (True, False)  # after the added space: before all that the other reads


def test_texts_that_cannot_be_spelt_are_counted(reader_of: Callable[..., Reader]) -> None:
    reader = reader_of("gpt-2", "qwen2")
    texts = ("Утром туман", "Утром е\u0308лки", "туман")
    _, reading = read(reader, batch_of([document(reader.own, text) for text in texts]))
    assert reading.num_unspelt == 1


@pytest.mark.parametrize("side", ["own", "ref"])
def test_what_begins_and_ends_documents_is_no_text_whatever_it_spells(
    reader_of: Callable[..., Reader], side: str
) -> None:
    reader = reader_of("sentencepiece", "gpt-2")
    changed: Side = getattr(reader, side)
    words = {index: content for index, content in enumerate(changed.spelling.contents) if len(content) > 3}
    bos, eos = list(words)[:2]
    spelling = changed.spelling.of_documents(len(changed.spelling.contents), bos, eos)
    assert [spelling.contents[index] for index in (bos, eos)] == [b"", b""]
    sides = {"own": reader.own, "ref": reader.ref, side: replace(changed, spelling=spelling, bos=bos, eos=eos)}
    other, text = Reader(**sides, most_tokens=MOST), "да и 42"
    assert not {bos, eos} & set(document(changed, text))
    expected, found = (read(own, batch_of([document(own.own, text)]))[1].rows for own in (reader, other))
    assert found.equal(expected)
