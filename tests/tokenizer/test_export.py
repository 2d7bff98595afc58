import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_3 import make_tokenizer_of_llama_3

from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer import BpeEncoder
from vikhr_fast.tokenizer.export import ExportTokenizer, export, export_tokenizer, read_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
MISTRAL = Path(__file__).parents[3] / "shared" / "data" / "tokenizer" / "mistral-7b-v0.1.model"

special = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<0x41>", "▁"]
words = ["а", "б", "мир", "Мир", "ха", "ах", "аха", "😀", "中", "é", "e\u0301", "\u200d", "7", "12", "--", "...", "The"]
fragments = st.sampled_from([*special, *words, " ", "  ", "     ", "\n", "\t", "\0", "\r\n"])
texts = st.one_of(
    st.text(st.characters(codec="utf-8")),
    st.text("абвгдеёжзийклмнопрстуфхцчшщъыьэюя АБВ.,-—«»"),
    st.text("ах "),  # periodic text, where one piece has several splits at once
    st.text("▁ \n"),
    st.lists(fragments, max_size=30).map("".join),
)


class Pair:
    """One model, loaded by SentencePiece and, as exported, by transformers."""

    def __init__(self, model_file: Path, directory: Path) -> None:
        from transformers import AutoTokenizer

        export_tokenizer(model_file, directory)
        self.peer = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        self.exported = AutoTokenizer.from_pretrained(directory)

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.exported(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids


@pytest.fixture(scope="session")
def pair(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(trained / "tokenizer.model", tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    if not MISTRAL.exists():
        pytest.skip(f"{MISTRAL} is absent")
    return Pair(MISTRAL, tmp_path_factory.mktemp("mistral"))


@settings(max_examples=600, deadline=None)
@given(text=texts)
def test_ids_and_text_equal_sentencepiece(pair: Pair, text: str) -> None:
    ids = pair.peer.encode(text)
    assert pair.ids(text) == ids
    assert pair.exported.decode(ids, clean_up_tokenization_spaces=False) == pair.peer.decode(ids)


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_ids_equal_sentencepiece_for_mistral(mistral: Pair, text: str) -> None:
    assert mistral.ids(text) == mistral.peer.encode(text)


@pytest.mark.parametrize("name", ["pair", "mistral"])
def test_ids_equal_sentencepiece_on_runs_of_spaces(name: str, request: pytest.FixtureRequest) -> None:
    """In Mistral's model all runs have one score, so that their order is left to the tie-break."""
    tested: Pair = request.getfixturevalue(name)
    for length in range(100):
        for text in (" " * length, "x" + " " * length + "x"):
            assert tested.ids(text) == tested.peer.encode(text)


def test_ids_equal_sentencepiece_on_prose(pair: Pair, corpus: tuple[Path, ...]) -> None:
    for file in corpus:
        text = file.read_text(encoding="utf-8")
        assert pair.ids(text) == pair.peer.encode(text)


@pytest.mark.parametrize("name", ["pair", "mistral"])
def test_ids_equal_sentencepiece_where_splits_of_a_piece_overlap(name: str, request: pytest.FixtureRequest) -> None:
    """In x + y + z, where x + y = y + z is a piece, SentencePiece joins the left pair, a rule list the first rule."""
    tested: Pair = request.getfixturevalue(name)
    pieces = {tested.peer.id_to_piece(i) for i in range(len(tested.peer)) if not tested.peer.is_control(i)}
    overlaps = 0
    for piece in pieces:
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if {piece[:i], piece[i:]} <= pieces]
        for left, middle in splits:
            for right in (right for first, right in splits if first == middle and right != left):
                overlaps += 1
                for text in (left + middle + right, "." + left + middle + right):
                    assert tested.ids(text) == tested.peer.encode(text)
    assert overlaps > 0


def test_bos_stands_before_each_sequence(pair: Pair) -> None:
    one, two = pair.peer.encode("Привет, мир"), pair.peer.encode("да")
    assert pair.exported("Привет, мир")["input_ids"] == [1, *one]
    assert pair.exported("Привет, мир", "да")["input_ids"] == [1, *one, 1, *two]


@settings(max_examples=100, deadline=None)
@given(
    messages=st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text("абв гд\n <|>5")), min_size=1, max_size=4
    ),
    prompt=st.booleans(),
)
def test_chat_is_its_segments_encoded_apart(pair: Pair, messages: list[tuple[str, str]], prompt: bool) -> None:
    start, end = (pair.peer.piece_to_id(piece) for piece in ("<|im_start|>", "<|im_end|>"))
    expected = [pair.peer.bos_id()]
    for role, content in messages:
        expected += [start, *pair.peer.encode(f"{role}\n{content}"), end, *pair.peer.encode("\n")]
    if prompt:
        expected += [start, *pair.peer.encode("assistant\n")]
    chat = [{"role": role, "content": content} for role, content in messages]
    assert pair.exported.apply_chat_template(chat, add_generation_prompt=prompt)["input_ids"] == expected


def test_control_pieces_and_template_are_known_to_transformers(pair: Pair, trained: Path) -> None:
    assert set(pair.exported.all_special_tokens) == {"<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"}
    assert pair.exported("<|im_end|>", add_special_tokens=False)["input_ids"] == [4]
    assert len(pair.exported) == 3000
    config = json.loads((trained / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == (trained / "chat_template.jinja").read_text(encoding="utf-8")


def test_model_without_chat_pieces_has_no_template(mistral: Pair) -> None:
    assert mistral.exported.chat_template is None


def test_export_into_its_own_directory_changes_nothing(trained: Path) -> None:
    before = {file.name: file.read_bytes() for file in trained.iterdir()}
    export_tokenizer(trained / "tokenizer.model", trained)
    assert {file.name: file.read_bytes() for file in trained.iterdir()} == before


def train(corpus: tuple[Path, ...], **settings: Any) -> bytes:
    """A SentencePiece model as other people train theirs."""
    model = io.BytesIO()
    exact = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
    lines = corpus[0].read_text(encoding="utf-8").split("\n")
    arguments = {"model_type": "bpe", "vocab_size": 700, "minloglevel": 2, **exact, **settings}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **arguments)
    return model.getvalue()


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"model_type": "unigram"}, "a unigram model, only BPE is supported"),
        ({"normalization_rule_name": "nmt_nfkc"}, r"its normalisation \(nmt_nfkc\) has no exact copy"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces is True, must be False"),
        ({"add_dummy_prefix": False}, "add_dummy_prefix is False, must be True"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix is set"),
        ({"byte_fallback": False}, "it has no byte_fallback"),
        ({"user_defined_symbols": ["<тег>", "тег"]}, r"piece 4 \('тег'\): user-defined and no control token"),
    ],
)
def test_model_that_has_no_exact_copy_is_refused(
    corpus: tuple[Path, ...], tmp_path: Path, changed: dict[str, Any], complaint: str
) -> None:
    file = tmp_path / "other.model"
    file.write_bytes(train(corpus, **changed))
    with pytest.raises(InputError, match=f"{re.escape(str(file))}: {complaint}"):
        export_tokenizer(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_piece_with_a_character_that_is_no_piece_is_refused(trained: Path, tmp_path: Path) -> None:
    model = read_model(trained / "tokenizer.model")
    model.pieces.add(piece="的的", score=-1e6, type=1)
    file = tmp_path / "odd.model"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"piece 3000 \('的的'\): a character of it is no piece"):
        export_tokenizer(file, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\xff" * 100, None])
def test_file_that_is_no_model_is_refused(trained: Path, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "broken.model"
    file.write_bytes((trained / "tokenizer.model").read_bytes()[:-1000] if content is None else content)
    with pytest.raises(InputError, match=f"{re.escape(str(file))}: not a SentencePiece model"):
        export_tokenizer(file, tmp_path / "out")


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_no_numbers_are_refused(trained: Path, tmp_path: Path, score: float) -> None:
    model = read_model(trained / "tokenizer.model")
    model.pieces[1000].score = score
    file = tmp_path / "odd.model"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=rf"^{file}: piece 1000 \(.*\) has the score {score:g}, no finite number"):
        read_model(file)
    with pytest.raises(InputError, match=rf"^{file}: byte \d+: a score that is no finite number"):
        BpeEncoder.from_file(file)


def test_a_byte_level_tokenizer_gets_another_template(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base, output = tmp_path / "base", tmp_path / "out"
    make_tokenizer_of_llama_3(base)
    with pytest.raises(InputError, match=r"others read its tokenizer\.json as it is; give a --chat-template"):
        export(ExportTokenizer(base, output))
    export(ExportTokenizer(base, output, chat_template=Path("llama-3")))
    assert (output / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    chat = [{"role": "user", "content": "Кто?"}, {"role": "assistant", "content": "Я"}]
    own, other = (AutoTokenizer.from_pretrained(path) for path in (base, output))
    assert own.apply_chat_template(chat, tokenize=False) == other.apply_chat_template(chat, tokenize=False)
    masked = other.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    assert sum(masked["assistant_masks"]) > 1
    with pytest.raises(InputError, match="llama-4: No such file"):
        export(ExportTokenizer(base, tmp_path / "other", chat_template=Path("llama-4")))
    assert not (tmp_path / "other").exists()
