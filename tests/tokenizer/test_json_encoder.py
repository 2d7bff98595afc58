"""Tokenizers of other libraries behind the interface of ours."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
import torch
from byte_level import make_tokenizer
from tokenizers import Regex, decoders, normalizers, pre_tokenizers

from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer import JsonEncoder
from vikhr_fast.tokenizer.json_encoder import library_errors

TEXTS = ["Утром туман поднялся над рекой", "", "plain text, 42", "\n\n  spaces  "]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer, as Llama 3's is."""
    return make_tokenizer(tmp_path_factory.mktemp("other"), TEXTS)


def test_ids_are_the_librarys_and_texts_come_back(file: Path) -> None:
    encoder = JsonEncoder.from_file(file)
    library = tokenizers.Tokenizer.from_file(str(file))
    ids, offsets = encoder.encode_batch(TEXTS)
    assert ids.dtype == np.int32
    expected = [library.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert [one.tolist() for one in np.split(ids, offsets[1:-1])] == expected
    assert [encoder.decode(one) for one in np.split(ids, offsets[1:-1])] == TEXTS
    assert encoder.encode(TEXTS[0].encode()).tolist() == expected[0]


def test_every_form_of_texts(file: Path) -> None:
    encoder = JsonEncoder.from_file(file)
    expected = [one.tolist() for one in encoder.encode_batch(TEXTS)]
    encoded = [text.encode() for text in TEXTS]
    for texts in (encoded, pa.array(TEXTS), pa.array(encoded), pa.chunked_array([TEXTS[:2], TEXTS[2:]])):
        assert [one.tolist() for one in encoder.encode_batch(texts)] == expected


def test_what_is_no_text(file: Path) -> None:
    encoder = JsonEncoder.from_file(file)
    for texts in (pa.array(["a", None]), pa.chunked_array([["a"], [None]]), ["a", None]):
        with pytest.raises(ValueError, match="document 1 is null"):
            encoder.encode_batch(texts)
    with pytest.raises(ValueError, match="document 1: byte 2: not valid UTF-8"):
        encoder.encode_batch(["a", b"bc\xff"])
    with pytest.raises(TypeError, match="document 1 is neither str nor bytes"):
        encoder.encode_batch(["a", 1])  # type: ignore[list-item]
    for wrong in (-1, encoder.vocab_size):
        with pytest.raises(IndexError, match=f"id {wrong} is not one of"):
            encoder.decode([0, wrong])


def test_roles_and_pieces(file: Path) -> None:
    encoder = JsonEncoder.from_file(file)
    assert (encoder.bos_id, encoder.eos_id) == (0, 1)
    assert encoder.vocab_size == tokenizers.Tokenizer.from_file(str(file)).get_vocab_size()
    assert tokenizers.Tokenizer.from_file(str(file)).token_to_id(encoder.piece(300)) == 300
    with pytest.raises(IndexError, match="id 999999"):
        encoder.piece(999999)


def test_what_a_file_says_of_cutting_padding_and_special_tokens_changes_no_ids(file: Path, tmp_path: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(file))
    library.enable_truncation(3)
    library.enable_padding(length=50, pad_id=1, pad_token="<|end|>")
    library.save(str(tmp_path / "tokenizer.json"))
    text = f"{TEXTS[0]}<|end|>"
    ids = JsonEncoder.from_file(tmp_path / "tokenizer.json").encode(text).tolist()
    assert ids == JsonEncoder.from_file(file).encode(text).tolist()
    assert 1 not in ids
    assert library.decode(ids) == text


def test_ids_with_gaps_are_below_the_size(file: Path, tmp_path: Path) -> None:
    """As of a vocabulary whose special tokens stand far behind the others."""
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["vocab"]["gap"] = 70_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    encoder = JsonEncoder.from_file(tmp_path / "tokenizer.json")
    assert encoder.vocab_size == 70_001
    assert encoder.piece(70_000) == "gap"


@pytest.mark.parametrize(
    "tokens", [[(900, False)], [(7, False)], [(900, False), (901, False)], [(7, True), (7, False)]]
)
def test_an_added_token_has_the_librarys_id_whatever_the_file_says(
    file: Path, tmp_path: Path, tokens: list[tuple[int, bool]]
) -> None:
    content = json.loads(file.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] += [{"id": id_, "content": "<x>", "special": special, **flags} for id_, special in tokens]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.encode_special_tokens = True
    expected = library.encode("a<x>b", add_special_tokens=False).ids
    assert JsonEncoder.from_file(tmp_path / "tokenizer.json").encode("a<x>b").tolist() == expected


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)).save(str(path))
    with pytest.raises(InputError, match=r"tokenizer\.json: a Unigram tokenizer, only BPE is supported"):
        JsonEncoder.from_file(path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"tokenizer\.json: no tokenizer that can be read"):
        JsonEncoder.from_file(path)
    with pytest.raises(InputError, match="No such file"):
        JsonEncoder.from_file(tmp_path / "absent.json")


def change(file: Path, directory: Path, edit: Callable[[Any], object], config: Any = None) -> Path:
    """A copy of a tokenizer.json, changed."""
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(content)
    (directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return directory / "tokenizer.json"


def test_ids_beyond_any_model_are_refused(file: Path, tmp_path: Path) -> None:
    changed = change(file, tmp_path, lambda content: content["model"]["vocab"].update(far=2**24))
    with pytest.raises(InputError, match=r"tokenizer\.json: an id of 16,777,216 or more"):
        JsonEncoder.from_file(changed)


@pytest.mark.parametrize("form", [list, " ".join])
def test_merges_that_end_the_process_are_refused(file: Path, tmp_path: Path, form: Callable[[list[str]], Any]) -> None:
    """tokenizers 0.23 panics on them, twice in transformers, which aborts."""

    def edit(content: Any) -> None:
        content["model"]["continuing_subword_prefix"] = "##"
        content["model"]["merges"] = [form(list(merge)) for merge in content["model"]["merges"]]

    with pytest.raises(InputError, match=r"tokenizer\.json: the merge .* lacks the continuing_subword_prefix"):
        JsonEncoder.from_file(change(file, tmp_path, edit))


@pytest.mark.parametrize("name", [["<|end|>"], 3, {"content": None}, "\ud800", {"content": {"a": 1}}])
def test_a_role_that_is_no_text_is_none(file: Path, tmp_path: Path, name: Any) -> None:
    changed = change(file, tmp_path, lambda _: None, {"eos_token": name, "bos_token": "<|begin|>"})
    encoder = JsonEncoder.from_file(changed)
    assert (encoder.bos_id, encoder.eos_id) == (0, -1)


def test_an_escaped_prefix_is_seen(tmp_path: Path) -> None:
    """In a process of its own, which tokenizers 0.23 ends with SIGABRT."""
    vocabulary = '{"a": 0, "é": 1, "aé": 2, "#": 3}'
    model = rf'{{"type": "BPE", "continuing\u005fsubword_prefix": "#", "vocab": {vocabulary}, "merges": ["a é"]}}'
    path = tmp_path / "tokenizer.json"
    path.write_text(f'{{"version": "1.0", "added_tokens": [], "model": {model}}}', encoding="utf-8")
    code = "import sys; from vikhr_fast.tokenizer import JsonEncoder; JsonEncoder.from_file(sys.argv[1])"
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert run.returncode == 1
    assert "tokenizer.json: the merge 'a é' lacks the continuing_subword_prefix" in run.stderr


def with_steps(file: Path, directory: Path, **steps: Any) -> Path:
    """A copy of a tokenizer.json, with other steps: objects of `tokenizers`, or what stands in the file."""

    def edit(content: Any) -> None:
        library = tokenizers.Tokenizer(tokenizers.models.BPE())
        for name, step in steps.items():
            if not isinstance(step, dict):
                setattr(library, name, step)
                step = json.loads(library.to_str())[name]
            content[name] = step

    return change(file, directory, edit)


def charsmap(longest: int) -> dict[str, Any]:
    """A Precompiled normalizer without entries in its trie, which become a text of some length."""
    data = (1024).to_bytes(4, "little") + bytes(1024) + b"a" * longest + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


THOUSANDFOLD = [normalizers.Replace("a", "a" * 1000)] * 4
EMPTY = [normalizers.Replace(Regex("(?=a)"), "")]


@pytest.mark.parametrize(
    "steps",
    [
        {"normalizer": normalizers.Sequence(THOUSANDFOLD)},
        {"normalizer": {"type": "Sequence", "normalizers": [{"pattern": {"Regex": "a"}, "content": "a" * 1000}]}},
        {"normalizer": normalizers.Replace("", "a" * 200)},
        {"normalizer": normalizers.Sequence([normalizers.Replace(Regex("(?=a)"), "a")] * 30)},
        {"normalizer": normalizers.Sequence([normalizers.Replace(Regex("a|b?"), "a")] * 30)},
        {"normalizer": normalizers.Sequence([normalizers.Replace("б", "ББ"), normalizers.Lowercase()] * 10)},
        {"normalizer": normalizers.Sequence(THOUSANDFOLD * 100 + EMPTY)},
        {"normalizer": normalizers.Sequence([normalizers.NFKD(), normalizers.Replace("ل", "ﷺ")] * 20)},
        {"normalizer": normalizers.Prepend("a" * 1_000_000)},
        {"normalizer": normalizers.Sequence([normalizers.ByteLevel()] * 30)},
        {"normalizer": normalizers.Sequence([normalizers.BertNormalizer()] * 1000)},
        {"normalizer": charsmap(1000)},
        {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(use_regex=False)] * 30)},
        {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Digits(True)] * 30)},
        {"normalizer": normalizers.Prepend("a" * 90), "pre_tokenizer": pre_tokenizers.ByteLevel()},
        {"decoder": decoders.Sequence([decoders.Replace("a", "a" * 1000)] * 4)},
        {"decoder": decoders.Sequence([decoders.BPEDecoder(suffix="")] * 30)},
        {"decoder": decoders.Sequence([decoders.CTC(word_delimiter_token="")] * 30)},
        {"decoder": decoders.Sequence([decoders.WordPiece()] * 1000)},
    ],
)
def test_steps_that_fill_the_memory_are_refused(file: Path, tmp_path: Path, steps: dict[str, Any]) -> None:
    what = "decoder" if "decoder" in steps else "normalizer and pre_tokenizer"
    with pytest.raises(InputError, match=rf"tokenizer\.json: its {what} may make more than 128 characters of one"):
        JsonEncoder.from_file(with_steps(file, tmp_path, **steps))


@pytest.mark.parametrize(
    "steps",
    [
        {  # Llama 2
            "normalizer": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
            "pre_tokenizer": None,
            "decoder": decoders.Sequence(
                [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            ),
        },
        {  # CLIP, in small
            "normalizer": normalizers.Sequence(
                [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
            ),
            "decoder": decoders.BPEDecoder(suffix="</w>"),
        },
        {"normalizer": normalizers.NFKC()},  # before ByteLevel
        {"normalizer": charsmap(18), "pre_tokenizer": pre_tokenizers.Metaspace()},  # XLM-R
        {"normalizer": normalizers.Sequence([normalizers.Replace(one, f" {one} ") for one in ".,:;!?()[]"])},
        {  # whatever tidies up
            "normalizer": normalizers.Sequence(
                [normalizers.Replace(Regex(one), " ") for one in (" {2,}", "[أإآ]", r"\p{M}", r"\n+|\t", "[\\]]", ".x")]
                * 5
            )
        },
    ],
)
def test_steps_of_real_tokenizers_are_not_refused(file: Path, tmp_path: Path, steps: dict[str, Any]) -> None:
    encoder = JsonEncoder.from_file(with_steps(file, tmp_path, **steps))
    encoder.decode(encoder.encode(TEXTS[2]))


def test_a_text_that_cannot_be_encoded_names_the_file(file: Path) -> None:
    class Failing:
        """As where Rust panics."""

        def get_vocab(self, with_added_tokens: bool) -> dict[str, int]:  # noqa: ARG002
            return {}

        def encode_batch_fast(self, *_: object, **__: object) -> None:
            raise type("PanicException", (BaseException,), {})("index out\nof bounds")

    encoder = JsonEncoder.from_file(file)
    encoder.tokenizer = Failing()
    encoder._byte_level = None  # or the library isn't asked
    with pytest.raises(InputError, match=rf"^{file}: cannot encode a text: index out of bounds; fetch it again$"):
        encoder.encode("а")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA"), KeyboardInterrupt(), SystemExit(3)])
def test_what_no_file_is_to_blame_for_stays_what_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)), library_errors("file", "fetch it again"):
        raise error


def test_a_key_that_is_missing_is_called_so() -> None:
    with (
        pytest.raises(InputError, match=r"^file: KeyError: 'nope'; fetch it again$"),
        library_errors("file", "fetch it again"),
    ):
        raise KeyError("nope")
