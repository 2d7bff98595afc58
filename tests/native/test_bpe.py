"""The encoder against the `sentencepiece` package, on every kind of model and text that we could think of."""

import hashlib
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as protobuf

from vikhr_fast import _native
from vikhr_fast.data.native_texts import Buffer
from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer import BpeEncoder
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer

Pairs = dict[str, tuple[BpeEncoder, sentencepiece.SentencePieceProcessor]]

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"
FRAGMENTS = [
    *"abetheоаеёé 0123456789.,-\t\n\r\0\x1b▁\u00a0\u200b\u200d\ufeff\u0301\u0308\ufffdя",
    *["👍", "👍🏽", "👩‍👩‍👧", "日本語", "\U0010ffff", "e\u0301", "ξξ", "  ", "   ", "        ", "----"],
    *["<s>", "</s>", "<unk>", "<pad>", "<sep>", "<x>", "<0x41>", "foo", "foobar", "the", " the", "▁the", "a b", "a  b"],
    *["\n\n", "▁▁", " ▁", "▁ ", "1990", "slice assignment", "утром туман", "Программа", "деревни", "a" * 40, " x"],
]
text_strategy = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=8)), max_size=30).map("".join)
BYTES = [
    *[b"a", b" ", b"the", b"<sep>", b"\xd0\xb0", b"\xe2\x96\x81", b"\xf0\x9f\x91\x8d", b"\xef\xbf\xbd"],
    # Cut short, stray, overlong, surrogates, beyond U+10FFFF.
    *[b"\xc3", b"\xe2\x96", b"\xf0\x9f", b"\x80", b"\xff", b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80"],
    b"\xf4\x90\x80\x80",
]
byte_strategy = st.lists(st.one_of(st.sampled_from(BYTES), st.binary(max_size=3)), max_size=20).map(b"".join)
# Every run tries the same cases; timing on a busy machine is no failure.
deterministic = settings(max_examples=50, deadline=None)


@pytest.mark.slow
@deterministic
@given(text=text_strategy)
@example(text="")
@example(text=" ")
@example(text="<s>a</s><unk>")
@example(text="".join(FRAGMENTS))
@example(text=" ".join(FRAGMENTS))
def test_ids_and_text_are_sentencepieces(pairs: Pairs, model_name: str, text: str) -> None:
    check_ids_and_text(pairs, model_name, text)


@pytest.mark.nightly
@settings(deadline=None, max_examples=2500)  # of each model: more than 50,000
@given(text=text_strategy)
def test_many_ids_and_texts_are_sentencepieces(pairs: Pairs, model_name: str, text: str) -> None:
    check_ids_and_text(pairs, model_name, text)


def check_ids_and_text(pairs: Pairs, model_name: str, text: str) -> None:
    encoder, peer = pairs[model_name]
    expected = peer.encode(text, out_type=int)
    ids = encoder.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == expected
    assert encoder.decode(ids) == peer.decode(expected)
    assert encoder.encode(text.encode()).tolist() == expected  # bytes go another way than str


@st.composite
def tiny_models(draw: st.DrawFn) -> protobuf.ModelProto:
    """Pieces, types and scores at random over three characters: most pieces can be put together in several ways."""
    model = protobuf.ModelProto()
    model.trainer_spec.model_type = protobuf.TrainerSpec.BPE
    model.normalizer_spec.add_dummy_prefix = draw(st.booleans())
    model.normalizer_spec.remove_extra_whitespaces = draw(st.sampled_from([False, False, False, True]))
    model.pieces.add(piece="<unk>", type="UNKNOWN")
    types = draw(st.sampled_from([["NORMAL"], ["NORMAL", "UNUSED"], ["NORMAL", "UNUSED", "USER_DEFINED", "CONTROL"]]))
    # Without a space inside a piece words are encoded apart; with one they are not.
    pieces = draw(
        st.sampled_from([st.text("ab▁", min_size=1, max_size=5), st.from_regex("▁?[ab]{1,4}", fullmatch=True)])
    )
    for piece in draw(st.lists(pieces, unique=True, min_size=8, max_size=40)):
        score = draw(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0]))
        model.pieces.add(piece=piece, type=draw(st.sampled_from(types)), score=score)
    return model


@pytest.mark.slow
@settings(deterministic, max_examples=500)
@given(model=tiny_models(), text=st.text("aab ", max_size=25), repeats=st.sampled_from([1, 1, 20]))
def test_random_vocabularies(model: protobuf.ModelProto, text: str, repeats: int) -> None:
    serialized = model.SerializeToString()
    encoder = BpeEncoder(_native.BpeEncoder(serialized), "")
    peer = sentencepiece.SentencePieceProcessor(model_proto=serialized)
    expected = peer.encode(repeats * text, out_type=int)  # repeated: long enough for the heap
    assert encoder.encode(repeats * text).tolist() == expected
    assert encoder.decode(expected) == peer.decode(expected)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 12, 25, 51, 102, 204])  # one less and their table had 2^k slots
def test_any_number_of_merges(count: int) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    for seed in range(40):
        draw = random.Random(seed)
        model = protobuf.ModelProto()
        model.trainer_spec.model_type = protobuf.TrainerSpec.BPE
        model.normalizer_spec.add_dummy_prefix = False
        model.normalizer_spec.remove_extra_whitespaces = False
        model.pieces.add(piece="<unk>", type="UNKNOWN")
        merged = draw.sample([a + b for a in letters for b in letters], count)
        for piece in [*letters, *merged]:
            model.pieces.add(piece=piece, score=-len(model.pieces))
        encoder = BpeEncoder(_native.BpeEncoder(model.SerializeToString()), "")
        ids, _ = encoder.encode_batch(merged)
        assert ids.tolist() == list(range(27, 27 + count))


@settings(deterministic, max_examples=20)
@given(data=st.data())
def test_any_ids_decode_as_sentencepiece(pairs: Pairs, model_name: str, data: st.DataObject) -> None:
    encoder, peer = pairs[model_name]
    # The first ids are the special and byte pieces; runs of bytes make characters, whole and broken.
    ids = data.draw(st.lists(st.one_of(st.integers(0, 270), st.integers(0, encoder.vocab_size - 1)), max_size=30))
    assert encoder.decode(ids) == peer.decode(ids)


@settings(deterministic, max_examples=20)
@given(text=byte_strategy)
def test_invalid_utf8_is_replaced_as_sentencepiece_does(pairs: Pairs, model_name: str, text: bytes) -> None:
    encoder, peer = pairs[model_name]
    assert encoder.encode(text, errors="replace").tolist() == peer.encode(text, out_type=int)


@settings(deterministic, max_examples=200)
@given(text=byte_strategy)
def test_invalid_utf8_is_an_error_that_names_the_place(pairs: Pairs, text: bytes) -> None:
    encoder, _ = pairs["byte_fallback"]
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        with pytest.raises(ValueError, match=rf"^document 1: byte {error.start}: not valid UTF-8"):
            encoder.encode_batch([b"good", text])
    else:
        encoder.encode_batch([b"good", text])


def test_pieces_are_sentencepieces(pairs: Pairs, model_name: str) -> None:
    encoder, peer = pairs[model_name]
    assert encoder.vocab_size == peer.vocab_size()
    special = (encoder.unk_id, encoder.bos_id, encoder.eos_id, encoder.pad_id)
    assert special == (peer.unk_id(), peer.bos_id(), peer.eos_id(), peer.pad_id())
    for id_ in range(encoder.vocab_size):
        assert encoder.piece(id_) == peer.id_to_piece(id_)
        assert encoder.piece_to_id(encoder.piece(id_)) == id_


@pytest.mark.parametrize("unit", ["a", "-", "the", "ab12", "▁", " ", "\0", "туман", "the рекой\n", "👍🏽"])
def test_one_huge_word(pairs: Pairs, model_name: str, unit: str) -> None:
    # Long enough for the heap, and hopeless in quadratic time.
    encoder, peer = pairs[model_name]
    text = unit * (20_000 // len(unit))
    assert encoder.encode(text).tolist() == peer.encode(text, out_type=int)


def test_a_word_of_megabytes_is_no_quadratic_time(pairs: Pairs) -> None:
    encoder, _ = pairs["byte_fallback"]
    draw = random.Random(3)
    text = "".join(draw.choices("theslicrnao", k=3_000_000))
    assert encoder.decode(encoder.encode(text)) == text


def test_a_forgetful_cache_changes_nothing(pairs: Pairs) -> None:
    encoder, peer = pairs["byte_fallback"]
    words = [f"w{i * 7919 % 1_000_003}" for i in range(300_000)]  # more than the cache holds
    text = " ".join(words + words[::3])
    expected = peer.encode(text, out_type=int)
    assert encoder.encode(text).tolist() == expected
    assert encoder.encode(text).tolist() == expected


@pytest.mark.slow
@pytest.mark.parametrize("threads", [0, 1, 2, 5])
@pytest.mark.parametrize("name", ["byte_fallback", "user_defined_unknown", "unused"])
def test_any_number_of_threads_gives_the_same_ids(pairs: Pairs, name: str, threads: int, documents: list[str]) -> None:
    encoder, peer = pairs[name]
    expected = peer.encode(documents, out_type=int)
    ids, offsets = encoder.encode_batch(documents, threads=threads)
    assert ids.dtype == np.int32
    assert offsets.dtype == np.int64
    assert offsets.tolist() == np.cumsum([0] + [len(one) for one in expected]).tolist()
    assert ids.tolist() == [id_ for one in expected for id_ in one]
    assert encoder.decode_batch(ids, offsets) == peer.decode(expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_first_bad_document_is_named(pairs: Pairs, threads: int) -> None:
    encoder, _ = pairs["byte_fallback"]
    texts = [b"good " * 50_000] * 20
    texts[7:] = [b"abc\xff"] * 13
    with pytest.raises(ValueError, match=r"^document 7: byte 3: not valid UTF-8"):
        encoder.encode_batch(texts, threads=threads)


def test_python_threads_share_an_encoder(pairs: Pairs, documents: list[str]) -> None:
    encoder, peer = pairs["byte_fallback"]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(encoder.encode, documents))
    assert [ids.tolist() for ids in results] == peer.encode(documents, out_type=int)


@pytest.fixture(scope="module")
def documents() -> list[str]:
    draw = random.Random(4)
    return ["".join(draw.choices(FRAGMENTS, k=draw.randrange(800))) for _ in range(1200)] + ["", "a"]


ARROW: dict[str, Callable[[list[str]], pa.Array | pa.ChunkedArray]] = {
    "string": lambda texts: pa.array(texts, pa.string()),
    "large_string": lambda texts: pa.array(texts, pa.large_string()),
    "binary": lambda texts: pa.array([text.encode() for text in texts], pa.binary()),
    "large_binary": lambda texts: pa.array([text.encode() for text in texts], pa.large_binary()),
    "string_view": lambda texts: pa.array(texts, pa.string_view()),
    "binary_view": lambda texts: pa.array([text.encode() for text in texts], pa.binary_view()),
    "chunks of views": lambda texts: pa.chunked_array([texts[:2], [], texts[2:]], pa.string_view()),
    "slice": lambda texts: pa.array(["before", *texts, "after"])[1:-1],
    "chunks": lambda texts: pa.chunked_array([texts[:2], [], texts[2:]], pa.string()),
}


@pytest.mark.parametrize("kind", sorted(ARROW))
@pytest.mark.parametrize("texts", [[], [""], ["one", "", "два слова", "three"]], ids=len)
def test_arrow_arrays(pairs: Pairs, kind: str, texts: list[str]) -> None:
    encoder, _ = pairs["byte_fallback"]
    ids, offsets = encoder.encode_batch(ARROW[kind](texts))
    expected_ids, expected_offsets = encoder.encode_batch(texts)
    assert ids.tolist() == expected_ids.tolist()
    assert offsets.tolist() == expected_offsets.tolist()


def test_buffers_and_bytes(pairs: Pairs) -> None:
    encoder, _ = pairs["byte_fallback"]
    expected = [ids.tolist() for ids in encoder.encode_batch(["one", "", "два"])]
    text = "oneдва".encode()
    buffers: list[Buffer] = [text, bytearray(text), memoryview(text), np.frombuffer(text, np.uint8), pa.py_buffer(text)]
    for buffer in buffers:
        assert [ids.tolist() for ids in encoder.encode_batch((buffer, np.array([0, 3, 3, 9])))] == expected
    assert [ids.tolist() for ids in encoder.encode_batch([b"one", "", "два"])] == expected


@pytest.mark.parametrize("offsets", [[], [0, 4, 2], [-1, 2], [0, 7], [0.0, 1.0], [[0, 1]]])
def test_wrong_offsets(pairs: Pairs, offsets: list[int]) -> None:
    encoder, _ = pairs["byte_fallback"]
    with pytest.raises(ValueError, match="offset"):
        encoder.encode_batch((b"abcdef", np.array(offsets)))
    with pytest.raises(ValueError, match="offset"):
        encoder.decode_batch([1, 2, 3, 4, 5, 6], np.array(offsets))


def test_wrong_arguments(pairs: Pairs) -> None:
    encoder, _ = pairs["byte_fallback"]
    with pytest.raises(ValueError, match="document 1 is null"):
        encoder.encode_batch(pa.array(["a", None]))
    with pytest.raises(TypeError, match="pyarrow array of int64"):
        encoder.encode_batch(pa.array([1]))
    with pytest.raises(TypeError, match="document 1 is neither str nor bytes"):
        encoder.encode_batch(["a", 1])
    with pytest.raises(TypeError, match="many texts are wanted"):
        encoder.encode_batch("a")
    with pytest.raises(ValueError, match="threads"):
        encoder.encode_batch(["a"], threads=-1)
    with pytest.raises(ValueError, match="errors is 'ignore'"):
        encoder.encode("a", errors="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"document 0: longer than 2 GiB"):
        encoder.encode_batch((np.zeros(2**31, np.uint8), np.array([0, 2**31])))


def test_documents_are_numbered_through_chunks(pairs: Pairs) -> None:
    encoder, _ = pairs["byte_fallback"]
    with pytest.raises(ValueError, match="document 3: byte 1"):
        encoder.encode_batch(pa.chunked_array([[b"a", b"b"], [b"c", b"d\xff"]]))
    with pytest.raises(ValueError, match="document 3 is null"):
        encoder.encode_batch(pa.chunked_array([["a", "b"], ["c", None]]))


@pytest.mark.parametrize("text", ["", "plain", "caf\xe9 \xff\x80 x", "\u07ff\u0800 тест ▁", "\U0001f44d\uffff б a\xe9"])
def test_every_width_of_str(pairs: Pairs, text: str) -> None:
    # Python keeps a str in 1, 2 or 4 bytes a character.
    encoder, peer = pairs["byte_fallback"]
    for repeats in (1, 50):
        assert encoder.encode(repeats * text).tolist() == peer.encode(repeats * text, out_type=int)


@pytest.mark.parametrize("place", range(60, 70))
@pytest.mark.parametrize(
    "bad", [b"\xff", b"\xc1\x81", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xd0", b"\xe2\x96", b"\x80", b"\xf5"]
)
def test_invalid_utf8_around_the_end_of_a_block(pairs: Pairs, place: int, bad: bytes) -> None:
    # Text is checked 64 bytes at a time.
    encoder, peer = pairs["byte_fallback"]
    for filler in (b"a", "б".encode(), "—".encode()):
        text = b"b" * (place % len(filler)) + filler * (place // len(filler)) + bad + filler * 50
        with pytest.raises(ValueError, match=rf"^document 0: byte {place}: not valid UTF-8"):
            encoder.encode(text)
        assert encoder.encode(text, errors="replace").tolist() == peer.encode(text, out_type=int)


@deterministic
@given(
    text=st.lists(st.sampled_from([*"abт «»,.-—'1 \n▁", "(the)", "...", "»,"])).map("".join), shift=st.integers(0, 70)
)
@example(text="", shift=0)
def test_units_at_any_place_of_a_block(pairs: Pairs, model_name: str, text: str, shift: int) -> None:
    check_ids_and_text(pairs, model_name, shift * "б" + text)


def test_lone_surrogates(pairs: Pairs) -> None:
    encoder, peer = pairs["byte_fallback"]
    with pytest.raises(ValueError, match="document 0: byte 3: not valid UTF-8"):
        encoder.encode("é \ud800")
    assert encoder.encode("é \ud800", errors="replace").tolist() == peer.encode("é \ufffd\ufffd\ufffd", out_type=int)


@pytest.mark.parametrize("wrong", [-1, 700, 2**31, -(2**31), 2**40])
def test_ids_outside_the_vocabulary(pairs: Pairs, wrong: int) -> None:
    encoder, _ = pairs["byte_fallback"]
    assert encoder.vocab_size == 700
    with pytest.raises(IndexError, match=f"id {wrong} at position 2 is not one of the vocabulary's 700"):
        encoder.decode([5, 6, wrong])
    with pytest.raises(IndexError, match=str(wrong)):
        encoder.piece(wrong)
    with pytest.raises(ValueError, match="integers"):
        encoder.decode([1.5])  # type: ignore[list-item]
    with pytest.raises(KeyError, match="no such piece"):
        encoder.piece_to_id("no such piece")


def test_the_model_file_is_identified(models: dict[str, Path]) -> None:
    path = models["unknown"]
    assert BpeEncoder.from_file(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram", "vocab_size": 300}, "a unigram model"),
        ({"model_type": "word", "vocab_size": 100}, "a word model"),
        ({"model_type": "char", "vocab_size": 80}, "a char model"),
        ({"normalization_rule_name": "nmt_nfkc"}, "its normaliser is nmt_nfkc"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix is set"),
    ],
)
def test_other_kinds_of_models_are_refused(
    train: Callable[..., bytes], tmp_path: Path, options: dict[str, object], message: str
) -> None:
    path = tmp_path / "other.model"
    path.write_bytes(train(**options))
    with pytest.raises(
        InputError, match=rf"^{path}: {message}.*train a fitting model with `vikhr-fast tokenizer train`"
    ):
        BpeEncoder.from_file(path)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.model: No such file"):
        BpeEncoder.from_file(tmp_path / "absent.model")
    with pytest.raises(InputError, match="Is a directory"):
        BpeEncoder.from_file(tmp_path)
    foreign = tmp_path / "tokenizer.json"
    foreign.write_text('{"version": "1.0"}')
    with pytest.raises(InputError, match=r"tokenizer\.json: byte 0: .*no SentencePiece model"):
        BpeEncoder.from_file(foreign)


def small_model() -> protobuf.ModelProto:
    model = protobuf.ModelProto()
    model.trainer_spec.model_type = protobuf.TrainerSpec.BPE
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    kinds = {"<unk>": "UNKNOWN", "<s>": "CONTROL", "ab": "USER_DEFINED", "the": "UNUSED"}
    for rank, piece in enumerate(["<unk>", "<s>", "ab", "th", "▁th", "the", "he", "▁the", "▁", "t", "h", "e", "ё"]):
        model.pieces.add(piece=piece, score=-float(rank), type=kinds.get(piece, "NORMAL"))
    return model


def load_or_refuse(model: bytes) -> None:
    try:
        encoder = _native.BpeEncoder(model)
    except _native.ModelError:
        return
    ids, offsets = encoder.encode_texts(["the ab тё  theab", "t" * 100], False, 1)
    encoder.decode(ids.astype(np.int64), offsets)


def test_damaged_models_are_refused_or_work() -> None:
    model = small_model().SerializeToString()
    for length in range(len(model)):
        load_or_refuse(model[:length])
    for position in range(len(model)):
        for bit in range(8):
            flipped = bytearray(model)
            flipped[position] ^= 1 << bit
            load_or_refuse(bytes(flipped))


@settings(deterministic, max_examples=300)
@given(junk=st.binary(max_size=200))
def test_junk_is_refused_or_works(junk: bytes) -> None:
    load_or_refuse(junk)
    load_or_refuse(small_model().SerializeToString() + junk)


def test_truncation_names_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "short.model"
    model = small_model().SerializeToString()
    path.write_bytes(model[:-1])
    last = len(model) - small_model().normalizer_spec.ByteSize() - 2
    with pytest.raises(InputError, match=rf"short\.model: byte {last}: a field longer than its message"):
        BpeEncoder.from_file(path)


def add_piece(piece: str, kind: str = "NORMAL") -> Callable[[protobuf.ModelProto], None]:
    def edit(model: protobuf.ModelProto) -> None:
        model.pieces.add(piece=piece, type=kind)

    return edit


def no_unknown(model: protobuf.ModelProto) -> None:
    model.pieces[0].type = protobuf.ModelProto.SentencePiece.NORMAL


def fall_back(model: protobuf.ModelProto) -> None:
    model.trainer_spec.byte_fallback = True


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (add_piece(""), "piece 13 is empty"),
        (add_piece("th"), "piece 13 occurs a second time"),
        (add_piece("a\0"), "piece 13 contains a NUL"),
        (add_piece("a" * 8000), "piece 13 is longer than"),
        (add_piece("<u>", "UNKNOWN"), "piece 13 is a second piece of type UNKNOWN"),
        (add_piece("<0x41>", "BYTE"), "byte_fallback is off"),
        (fall_back, "byte_fallback is on, but there are 0 byte pieces"),
        (no_unknown, "no piece of type UNKNOWN"),
    ],
)
def test_impossible_vocabularies(edit: Callable[[protobuf.ModelProto], None], message: str) -> None:
    model = small_model()
    edit(model)
    # SentencePiece refuses them too.
    with pytest.raises(RuntimeError):
        sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    with pytest.raises(_native.ModelError, match=message):
        _native.BpeEncoder(model.SerializeToString())


@pytest.mark.parametrize("length", [50, 99, 100, 101, 102, 103, 150])
def test_deep_chains_of_unused_pieces(tmp_path: Path, length: int) -> None:
    model = small_model()
    for count in range(2, length + 2):
        model.pieces.add(piece="t" * count, score=float(count), type="UNUSED")
    path = tmp_path / "deep.model"
    path.write_bytes(model.SerializeToString())
    encoder, peer = BpeEncoder.from_file(path), sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in ("t" * length, "t" * (length + 1), "the " + "t" * (2 * length)):
        assert encoder.encode(text).tolist() == peer.encode(text, out_type=int)


def real_text(file: str) -> list[str]:
    path = SHARED_DATA / file
    if not path.exists():
        pytest.skip(f"no {path}")
    return path.read_text(encoding="utf-8", errors="replace").split("\n\n")


def assert_identical(model: Path, paragraphs: list[str]) -> None:
    encoder, peer = BpeEncoder.from_file(model), sentencepiece.SentencePieceProcessor(model_file=str(model))
    for texts in (paragraphs, ["\n\n".join(paragraphs)]):
        expected = peer.encode(texts, out_type=int)
        ids, offsets = encoder.encode_batch(texts)
        assert [one.tolist() for one in np.split(ids, offsets[1:-1])] == expected
        assert encoder.decode_batch(ids, offsets) == peer.decode(expected)


@pytest.mark.parametrize("file", ["ru/news.txt", "ru/wiki.txt", "ru/manpages.txt", "en/docs.txt"])
def test_real_text_with_mistrals_model(file: str) -> None:
    paragraphs = "\n\n".join(real_text(file))[:300_000].split("\n\n")
    assert_identical(SHARED_DATA / "tokenizer" / "mistral-7b-v0.1.model", paragraphs)


@pytest.mark.nightly
def test_all_real_text(tmp_path: Path) -> None:
    files = sorted(path.relative_to(SHARED_DATA) for path in SHARED_DATA.glob("*/*.txt"))
    texts = [real_text(str(file)) for file in files or ["ru/news.txt"]]
    russian = tuple(SHARED_DATA / file for file in files if file.parts[0] == "ru")
    train_tokenizer(TrainTokenizer(input=russian, output=tmp_path / "ours", vocab_size=40_000))
    for model in (SHARED_DATA / "tokenizer" / "mistral-7b-v0.1.model", tmp_path / "ours" / "tokenizer.model"):
        for paragraphs in texts:
            assert_identical(model, paragraphs)
