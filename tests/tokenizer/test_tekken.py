"""Mistral's tekken.json, restated for transformers: the same ids, or one line that says why not."""

import base64
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast.adapt.vocabularies import base_vocabulary
from vikhr_fast.chat.encode import ChatEncoder
from vikhr_fast.doctor.model import model_findings
from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer.export import ExportTokenizer, export
from vikhr_fast.tokenizer.json_encoder import JsonEncoder
from vikhr_fast.tokenizer.load import load_encoder
from vikhr_fast.tokenizer.tekken import export_tekken

os.environ.setdefault("HF_HUB_OFFLINE", "1")
PATTERN = r" ?\w+| ?[^\w\s]+|\s"
SPECIAL = 24
UNLISTED = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]  # the first of those that no file lists


def tekken(tokens: list[bytes], **changes: Any) -> dict[str, Any]:
    """The values of a tekken.json: the bytes, then tokens."""
    alphabet = [bytes([byte]) for byte in range(256)]
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate([*alphabet, *tokens])
    ]
    sizes = {"default_vocab_size": len(vocabulary) + SPECIAL, "default_num_special_tokens": SPECIAL}
    config = {"pattern": PATTERN, "num_vocab_tokens": len(vocabulary), **sizes, "version": "v3"}
    return {"config": config | changes.pop("config", {}), "vocab": vocabulary, **changes}


def write(directory: Path, values: dict[str, Any]) -> Path:
    directory.mkdir(exist_ok=True)
    file = directory / "tekken.json"
    file.write_text(json.dumps(values), encoding="utf-8")
    return file


def reference(tokens: list[bytes], text: str) -> list[int]:
    """Tiktoken's algorithm, as it is described: the pair whose result has the lowest rank is joined, leftmost first."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {token: 256 + rank for rank, token in enumerate(tokens)}
    ids: list[int] = []
    for word in re.findall(PATTERN, text):
        data = word.encode()
        parts = [data] if data in ranks else [bytes([byte]) for byte in data]
        while True:
            joined = [(ranks[a + b], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
            if not joined:
                break
            _, at = min(joined)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [SPECIAL + ranks[part] for part in parts]
    return ids


# Few letters, so that tokens overlap with themselves and each other; most can be joined in several ways, some in none.
words = st.text("ab ", min_size=2, max_size=7) | st.text("abé", min_size=1, max_size=3)
vocabularies = st.lists(words.map(str.encode).filter(lambda word: len(word) > 1), unique=True, max_size=25)
texts = st.lists(st.text("abé \n", max_size=30) | st.sampled_from(UNLISTED), max_size=4).map("".join)


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(tokens=vocabularies, some=st.lists(texts, min_size=1, max_size=8))
def test_ids_are_those_of_tiktokens_algorithm(
    tokens: list[bytes], some: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("tekken")
    export_tekken(write(directory / "in", tekken(tokens)), directory / "out")
    encoder = JsonEncoder.from_file(directory / "out" / "tokenizer.json")
    for text in some:
        ids = encoder.encode(text).tolist()
        assert ids == reference(tokens, text)
        assert encoder.decode(ids) == text


TOKENS = ["ab", "ба", "aba", "abab", " ab", "bab", "ba"]  # "ab a" and "a ba" are both "aba": the former is joined


def encoded(words: list[str]) -> list[bytes]:
    return [word.encode() for word in words]


def test_a_small_vocabulary(tmp_path: Path) -> None:
    write(tmp_path / "in", tekken(encoded(TOKENS)))
    export(ExportTokenizer(tmp_path / "in", output=tmp_path / "out", chat_template=Path("mistral-instruct")))
    encoder = load_encoder(tmp_path / "out")
    assert (encoder.bos_id, encoder.eos_id, encoder.vocab_size) == (1, 2, SPECIAL + 256 + len(TOKENS))
    for text in ("abababab", "ababa ab", "<s>[INST]баб\n", "bababab", "\x00é😀"):
        assert encoder.encode(text).tolist() == reference(encoded(TOKENS), text)
    assert encoder.piece(SPECIAL - 1) == f"<SPECIAL_{SPECIAL - 1}>"


def test_transformers_loads_it_with_roles_and_template(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    file = write(tmp_path / "in", tekken(encoded(TOKENS)))
    export(ExportTokenizer(file, output=tmp_path / "out", chat_template=Path("mistral-instruct")))
    fast = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (fast.bos_token, fast.eos_token, fast.unk_token, fast.pad_token) == ("<s>", "</s>", "<unk>", "<pad>")
    text = "abab <s> [INST]"
    plain = fast(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert plain == reference(encoded(TOKENS), text)
    assert fast("ab")["input_ids"] == [1, *reference(encoded(TOKENS), "ab")]
    chat = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ba"}]
    ids = fast.apply_chat_template(chat)["input_ids"]
    a, b = (reference(encoded(TOKENS), text) for text in ("ab", "ba"))
    assert ids == [1, 3, *a, 4, *b, 2]


def test_listed_special_tokens_have_their_ids_and_fillers_follow(tmp_path: Path) -> None:
    names = ["<unk>", "<s>", "</s>", "[THINK]"]
    listed = [{"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)]
    values = tekken([b"ab"], special_tokens=listed, config={"version": "v13"})
    export_tekken(write(tmp_path / "in", values), tmp_path / "out")
    encoder = load_encoder(tmp_path / "out")
    assert [encoder.piece(index) for index in range(5)] == [*names, "<SPECIAL_4>"]
    assert encoder.encode("ab[THINK]").tolist() == reference([b"ab"], "ab[THINK]")


def test_tokens_past_the_vocabularys_size_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="vikhr_fast")
    values = tekken([b"ab", b"abab"], config={"default_vocab_size": SPECIAL + 257})
    export_tekken(write(tmp_path / "in", values), tmp_path / "out")
    assert "the first 257 of its 258 tokens" in caplog.text
    assert load_encoder(tmp_path / "out").encode("abab").tolist() == reference([b"ab"], "abab")


def change(at: int, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda tekken: tekken["vocab"][at].update(values)


def special(*tokens: Any) -> Callable[[dict[str, Any]], object]:
    return lambda tekken: tekken.update(special_tokens=list(tokens))


def config(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda tekken: tekken["config"].update(values)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (change(257, token_bytes="ab=c"), "vocab: token 257: its token_bytes are not base64"),
        (change(257, token_bytes=7), "vocab: token 257: its token_bytes are not base64"),
        (lambda tekken: tekken["vocab"][257].pop("token_bytes"), "vocab: token 257: its token_bytes are not base64"),
        (change(257, token_bytes=""), r"vocab: token 257: is b'', must be some bytes"),
        (change(65, token_bytes="Qg=="), "vocab: token 65: is b'B', must be the byte 65"),
        (change(257, token_bytes="YWI="), "vocab: token 257: the same bytes as token 256: b'ab'"),
        (change(257, rank=258), "vocab: token 257: its rank is 258, must be 257"),
        (change(257, rank=True), "vocab: token 257: its rank is True, must be 257"),
        (lambda tekken: tekken["vocab"].__setitem__(257, "ab"), "vocab: token 257: its rank is None, must be 257"),
        (lambda tekken: tekken.pop("vocab"), "no tekken vocabulary"),
        (lambda tekken: tekken.update(config=[]), "no tekken vocabulary"),
        (config(pattern=None), "config: pattern, default_vocab_size and"),
        (config(pattern="("), "config: pattern: .*fetch it again"),
        (config(default_vocab_size="300"), "config: pattern, default_vocab_size and"),
        (config(default_vocab_size=SPECIAL + 260), "config: 284 ids less 24 special tokens are no number of tokens"),
        (config(default_vocab_size=200), "config: 200 ids less 24 special tokens are no number of tokens"),
        (config(default_num_special_tokens=-1), "config: 282 ids less -1 special tokens are no number of tokens"),
        (config(default_num_special_tokens=10**12, default_vocab_size=10**12 + 257), "config: .* are no number"),
        (config(default_num_special_tokens=3, default_vocab_size=261), "20 special tokens, but .* is 3"),
        (config(version="v13"), "special_tokens: token 0 is None with the rank None, must be"),
        (special({"rank": 1, "token_str": "<s>"}), "special_tokens: token 0 is '<s>' with the rank 1, must be"),
        (special({"rank": 0, "token_str": ""}), "special_tokens: token 0 is '' with the rank 0, must be"),
        (special({"rank": 0, "token_str": "<SPECIAL_3>"}), "special_tokens: '<SPECIAL_3>' is there twice"),
        (special({"rank": 0, "token_str": "ab"}), "'ab' is a special token and another one"),
        (special({"rank": 0, "token_str": "xyz"}), "the text of the special token 'xyz' would be encoded to its id"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, damage: Callable[[Any], object], complaint: str) -> None:
    values = tekken([b"ab", b"ba"])
    damage(values)
    file = write(tmp_path / "in", values)
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}: {complaint}") as caught:
        export(ExportTokenizer(file, output=tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_directory_with_a_sentencepiece_model_too_is_exported_from_that(trained: Path, tmp_path: Path) -> None:
    write(tmp_path / "both", tekken([]))
    shutil.copy(trained / "tokenizer.model", tmp_path / "both")
    export(ExportTokenizer(tmp_path / "both", output=tmp_path / "out"))
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()


def test_elsewhere_a_directory_with_nothing_else_says_what_to_run(tmp_path: Path) -> None:
    write(tmp_path / "nemo", tekken([]))
    advice = r"nemo: its one tokenizer is tekken\.json; .* `vikhr-fast tokenizer export .*nemo --output OUTPUT` writes"
    for read in (load_encoder, lambda path: base_vocabulary(path, {}), ChatEncoder):
        with pytest.raises(InputError, match=advice):
            read(tmp_path / "nemo")
    (finding,) = model_findings(tmp_path / "nemo")
    assert finding.mark == "mend"
    assert re.search(advice, finding.text)


REAL = ["tekken_240718.json", "tekken_240911.json"]
HARD = [
    "",
    " ",
    "\n\n\n",
    "  a",
    "don't DON'T",
    "1234567",
    "a\r\nb",
    "ÀÉ e\u0301",
    "中文字",
    "한국어",
    "👩\u200d👧",
    "\x00\x7f",
    "¼½ ²",
]


@pytest.mark.nightly
@pytest.mark.parametrize("name", REAL)
def test_mistrals_own_vocabulary(name: str, corpus: tuple[Path, ...], tmp_path: Path) -> None:
    package = pytest.importorskip("mistral_common", reason="needs `pip install mistral-common`")
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    from transformers import AutoTokenizer

    file = Path(package.__file__).parent / "data" / name
    export(ExportTokenizer(file, output=tmp_path / "out"))
    peer, ours = Tekkenizer.from_file(file), load_encoder(tmp_path / "out")
    fast = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (peer.n_words, peer.bos_id, peer.eos_id)
    special = [peer.id_to_piece(index) for index in range(peer.num_special_tokens)]
    assert fast.convert_tokens_to_ids(special) == list(range(len(special)))

    draw = random.Random(0)
    pieces = [peer.id_to_byte_piece(index).decode("utf-8", "ignore") for index in range(1000, peer.n_words)]
    generated = ["".join(draw.choices([*pieces, *special[:20]], k=draw.randint(1, 12))) for _ in range(30_000)]
    periodic = ["".join(draw.choices(pieces, k=2)) * draw.randint(2, 30) for _ in range(5_000)]
    everything = ["".join(map(chr, range(at, at + 16))) for at in range(0, 0x110000, 16) if not 0xD800 <= at < 0xE000]
    paragraphs = [line for text in corpus for line in text.read_text(encoding="utf-8").split("\n\n")]
    for text in (*HARD, *paragraphs, *pieces, *generated, *periodic, *everything):
        expected = peer.encode(text, bos=False, eos=False)
        assert ours.encode(text).tolist() == expected
    for text in (*HARD, *paragraphs[:200], *generated[:1000]):
        expected = peer.encode(text, bos=False, eos=False)
        assert fast(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == expected
        assert fast.decode(expected) == peer.decode(expected) == text
