"""User-defined pieces that are control tokens, as in Mistral's v3 and v7 vocabularies."""

import io
import os
from itertools import pairwise
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from vikhr_fast.adapt.rows import find_sources
from vikhr_fast.adapt.vocabularies import base_vocabulary, new_vocabulary
from vikhr_fast.chat.encode import ChatEncoder
from vikhr_fast.chat.template import Message
from vikhr_fast.chat.verify import VerifyTokenizer, verify
from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer import BpeEncoder
from vikhr_fast.tokenizer.export import ExportTokenizer, export, export_tokenizer, read_model
from vikhr_fast.tokenizer.extend import ExtendTokenizer, extend_tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
INSERTED = ["[INST]", "[/INST]"]
DEFINED = ["[REFERENCE_DOC_1]", "[REFERENCE_DOC_0]", "[/REF]", "[REF]", "<doc>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST][REFERENCE_DOC_0]{{ message['content'] }}[/INST]{% else %}"
    "{% generation %}[REF]{{ message['content'] }}[/REF]{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
words = st.sampled_from([*INSERTED, *DEFINED, "[", "REF", "]", " ", "  ", "\n", "в", "мир", "the ", "▁"])
texts = st.lists(words, max_size=12).map("".join)


def train(corpus: tuple[Path, ...], file: Path, user_defined: list[str]) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus[0].read_text(encoding="utf-8").split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        control_symbols=INSERTED,
        user_defined_symbols=user_defined,
        minloglevel=2,
    )
    file.write_bytes(model.getvalue())
    return file


@pytest.fixture(scope="module")
def raw(corpus: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as its maker would publish it."""
    directory = tmp_path_factory.mktemp("raw")
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return train(corpus, directory / "tokenizer.model", DEFINED).parent


@pytest.fixture(scope="module")
def exported(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("out") / "tokenizer"
    export(ExportTokenizer(raw, output=directory, chat_template=raw / "chat_template.jinja"))
    return directory


@pytest.mark.slow
def test_all_encoders_give_the_same_ids(raw: Path, exported: Path) -> None:
    from transformers import AutoTokenizer

    read, written = BpeEncoder.from_file(raw / "tokenizer.model"), BpeEncoder.from_file(exported / "tokenizer.model")
    peer = sentencepiece.SentencePieceProcessor(model_file=str(exported / "tokenizer.model"))
    fast = AutoTokenizer.from_pretrained(exported)
    assert read.sha256 == written.sha256
    settings_of_training = read_model(exported / "tokenizer.model").trainer_spec
    assert [*settings_of_training.control_symbols] == [*INSERTED, *DEFINED]
    assert not settings_of_training.user_defined_symbols
    assert all(peer.is_control(peer.piece_to_id(piece)) for piece in (*INSERTED, *DEFINED))

    @settings(max_examples=150, deadline=None)
    @given(text=texts)
    def same(text: str) -> None:
        expected = peer.encode(text)
        assert not {peer.piece_to_id(piece) for piece in DEFINED} & set(expected)
        assert read.encode(text).tolist() == written.encode(text).tolist() == expected
        assert fast(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == expected
        assert read.decode(expected) == fast.decode(expected) == peer.decode(expected)

    same()
    counts = verify(VerifyTokenizer(exported, generated=300, chats=50))
    assert counts["differences"] == 0


def test_sentencepiece_finds_the_pieces_of_the_raw_file_and_verify_says_so(raw: Path) -> None:
    peer = sentencepiece.SentencePieceProcessor(model_file=str(raw / "tokenizer.model"))
    assert peer.piece_to_id("[REF]") in peer.encode("см. [REF]")
    with pytest.raises(InputError, match=r"SentencePiece finds '\[REFERENCE_DOC_1\]' .* in text; .*tokenizer export"):
        verify(VerifyTokenizer(raw))


def test_what_becomes_of_them_is_said_once(
    corpus: tuple[Path, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = train(corpus, tmp_path / "model.v3", DEFINED)
    for _ in range(2):
        BpeEncoder.from_file(file)
        read_model(file)
    said = [record.message for record in caplog.records if str(file) in record.message]
    assert len(said) == 1
    assert "5 user-defined pieces are control pieces here: '[REFERENCE_DOC_1]' (5)" in said[0]


def test_a_model_with_other_user_defined_pieces_is_read_as_sentencepiece_reads_it(
    corpus: tuple[Path, ...], tmp_path: Path
) -> None:
    file = train(corpus, tmp_path / "words.model", ["[REF]", "мир"])
    peer, ours = sentencepiece.SentencePieceProcessor(model_file=str(file)), BpeEncoder.from_file(file)
    text = "см. [REF] миру мир"
    assert peer.piece_to_id("[REF]") in ours.encode(text)
    assert ours.encode(text).tolist() == peer.encode(text)
    with pytest.raises(InputError, match=r"piece 6 \('мир'\): user-defined and no control token.*; keep .*adapt"):
        export_tokenizer(file, tmp_path / "out")


def test_an_unused_piece_is_refused_whatever_its_form(corpus: tuple[Path, ...], tmp_path: Path) -> None:
    file = train(corpus, tmp_path / "unused.model", [])
    model = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
    model.pieces.add(piece="[REF]", score=0, type=5)
    file.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"piece 700 \('\[REF\]'\): unused"):
        export_tokenizer(file, tmp_path / "out")


def test_a_chat_is_what_transformers_makes_of_it(raw: Path, exported: Path) -> None:
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(exported)
    chat = [Message("user", "Где мир?"), Message("assistant", "Там"), Message("user", "А?"), Message("assistant", "")]
    theirs = fast.apply_chat_template(
        [message._asdict() for message in chat], return_dict=True, return_assistant_tokens_mask=True
    )
    for directory in (raw, exported):
        ours = ChatEncoder(directory).encode([chat])[0]
        assert ours.ids.tolist() == theirs["input_ids"]
        assert ours.is_trained.tolist() == [bool(value) for value in theirs["assistant_masks"]]
    assert fast.convert_tokens_to_ids("[REFERENCE_DOC_0]") in theirs["input_ids"]


def test_extending_keeps_them_as_control_pieces(raw: Path, corpus: tuple[Path, ...], tmp_path: Path) -> None:
    extend_tokenizer(ExtendTokenizer(base=raw, input=corpus[:2], output=tmp_path / "out", vocab_size=900))
    old, new = (read_model(directory / "tokenizer.model") for directory in (raw, tmp_path / "out"))
    assert [(p.piece, p.type) for p in new.pieces[:700]] == [(p.piece, p.type) for p in old.pieces]
    assert verify(VerifyTokenizer(tmp_path / "out", generated=300, chats=0))["differences"] == 0


def test_adapting_copies_their_rows_by_name(raw: Path, corpus: tuple[Path, ...], tmp_path: Path) -> None:
    new = new_vocabulary(train(corpus, tmp_path / "new.model", DEFINED[::-1]))
    base = base_vocabulary(raw, {})
    sources = find_sources(base, new)
    for text in DEFINED:
        assert sources.base_ids[new.ids["control", text]] == base.ids["control", text]


REAL = ["mistral_instruct_tokenizer_240323.model.v3", "mistral_instruct_tokenizer_241114.model.v7"]


@pytest.fixture(params=REAL)
def mistral(request: pytest.FixtureRequest) -> Path:
    package = pytest.importorskip("mistral_common", reason="needs `pip install mistral-common`")
    return Path(package.__file__).parent / "data" / request.param


@pytest.mark.nightly
def test_mistrals_own_vocabulary(mistral: Path, corpus: tuple[Path, ...], tmp_path: Path) -> None:
    template = Path("mistral-instruct")
    export(ExportTokenizer(mistral, output=tmp_path / "out", chat_template=template))
    assert verify(VerifyTokenizer(tmp_path / "out", text=corpus, generated=20_000))["differences"] == 0
    peer = sentencepiece.SentencePieceProcessor(model_file=str(mistral))  # what mistral-common encodes with
    ours = BpeEncoder.from_file(mistral)
    lines = [line for file in corpus for line in file.read_text(encoding="utf-8").split("\n")]
    ids, offsets = ours.encode_batch(lines)
    assert [ids[start:end].tolist() for start, end in pairwise(offsets)] == peer.encode(lines)
    for text in ("[INST] a [/INST]", "[AVAILABLE_TOOLS]", "<s>[IMG]</s>"):  # control pieces in the file itself
        assert ours.encode(text).tolist() == peer.encode(text)
    assert ours.encode("[REFERENCE_DOC_0]").size > 2  # not in the file itself: the one thing that is read otherwise
    assert peer.encode("[REFERENCE_DOC_0]")[-1] == peer.piece_to_id("[REFERENCE_DOC_0]")
    options = ExtendTokenizer(base=mistral, input=corpus[:-1], output=tmp_path / "extended", vocab_size=33_068)
    assert extend_tokenizer(options)["unreachable"] == 0
    assert verify(VerifyTokenizer(tmp_path / "extended", text=corpus[:1], generated=5000))["differences"] == 0


@pytest.mark.nightly
def test_a_chat_with_mistrals_own_vocabulary(mistral: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    export(ExportTokenizer(mistral, output=tmp_path / "out", chat_template=Path("mistral-instruct")))
    fast, ours = AutoTokenizer.from_pretrained(tmp_path / "out"), ChatEncoder(tmp_path / "out")
    chat = [Message("user", "Где мир?"), Message("assistant", "Там."), Message("user", "А?"), Message("assistant", "Б")]
    theirs = fast.apply_chat_template(
        [message._asdict() for message in chat], return_dict=True, return_assistant_tokens_mask=True
    )
    encoded = ours.encode([chat])[0]
    assert encoded.ids.tolist() == theirs["input_ids"]
    assert encoded.is_trained.tolist() == [bool(value) for value in theirs["assistant_masks"]]
