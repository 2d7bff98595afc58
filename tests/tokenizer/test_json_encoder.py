"""Tokenizers of other libraries behind the interface of ours."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer import JsonEncoder

TEXTS = ["Утром туман поднялся над рекой", "", "plain text, 42", "\n\n  spaces  "]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer, as Llama 3's is."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    path = tmp_path_factory.mktemp("other") / "tokenizer.json"
    tokenizer.save(str(path))
    config = {"bos_token": {"content": "<|begin|>"}, "eos_token": "<|end|>", "pad_token": None}
    path.with_name("tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def test_ids_are_the_librarys_and_texts_come_back(file: Path) -> None:
    encoder = JsonEncoder.from_file(file)
    library = tokenizers.Tokenizer.from_file(str(file))
    ids, offsets = encoder.encode_batch(TEXTS)
    assert ids.dtype == np.int32
    expected = [library.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert [one.tolist() for one in np.split(ids, offsets[1:-1])] == expected
    assert encoder.decode_batch(ids, offsets) == TEXTS
    assert encoder.encode(TEXTS[0].encode()).tolist() == expected[0]


def test_roles_and_pieces(file: Path) -> None:
    encoder = JsonEncoder.from_file(file)
    assert (encoder.unk_id, encoder.bos_id, encoder.eos_id, encoder.pad_id) == (-1, 0, 1, -1)
    assert encoder.vocab_size == tokenizers.Tokenizer.from_file(str(file)).get_vocab_size()
    assert encoder.piece_to_id(encoder.piece(300)) == 300
    with pytest.raises(IndexError, match="id 999999"):
        encoder.piece(999999)
    with pytest.raises(KeyError):
        encoder.piece_to_id("no such token")


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
