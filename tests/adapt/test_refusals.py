import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from adapting import BYTE, NORMAL, rewrite, weights
from safetensors.torch import save_file

from vikhr_fast.adapt.adapt import EMBEDDING, HEAD, Adapt, adapt
from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer.export import read_model


def drop_head(base: Path) -> None:
    tensors = weights(base)
    del tensors[HEAD]
    for file in base.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, base / "model.safetensors")


def shorten_shard(base: Path) -> None:
    shard = sorted(base.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])


def unigram(base: Path) -> None:
    model = read_model(base / "tokenizer.model")
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    (base / "tokenizer.model").write_bytes(model.SerializeToString())


def without_bytes(base: Path) -> None:
    model = read_model(base / "tokenizer.model")
    for piece in model.pieces:
        if piece.type == BYTE:
            piece.type, piece.piece = NORMAL, f"normal {piece.piece}"
    (base / "tokenizer.model").write_bytes(model.SerializeToString())


def longer_vocabulary(base: Path) -> None:
    model = read_model(base / "tokenizer.model")
    model.pieces.add(piece="новый", score=-1e6, type=NORMAL)
    (base / "tokenizer.model").write_bytes(model.SerializeToString())


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (lambda base: shutil.rmtree(base), r"base: no such file or directory"),
    (lambda base: (base / "tokenizer.model").unlink(), r"base: no tokenizer\.model in it"),
    (lambda base: (base / "tokenizer.model").write_bytes(b"\xff"), r"tokenizer\.model: not a SentencePiece model"),
    (unigram, r"tokenizer\.model: a unigram model, only BPE is supported"),
    (without_bytes, r"tokenizer\.model: it has no byte_fallback"),
    (longer_vocabulary, r"tokenizer\.model: 501 pieces, but the weights have 500 rows"),
    (lambda base: (base / "config.json").unlink(), r"config\.json: [Nn]o such file"),
    (lambda base: rewrite(base / "config.json", model_type="gpt2"), r"config\.json: model_type is \"gpt2\""),
    (
        lambda base: rewrite(base / "config.json", vocab_size=512),
        rf"base: the weights do not fit config.json: {EMBEDDING}: shape is \[500, 16\], must be \[512, 16\]",
    ),
    (drop_head, rf"base: the weights do not fit config.json: {HEAD}: missing"),
    (lambda base: sorted(base.glob("*.safetensors"))[1].unlink(), r"model-00002-of-\d+\.safetensors: no such file"),
    (shorten_shard, r"model-00002-of-\d+\.safetensors: damaged or cut short"),
]


@pytest.mark.parametrize(("damage", "complaint"), BROKEN)
def test_broken_base_is_named(options: Adapt, damage: Callable[[Path], object], complaint: str) -> None:
    damage(options.base)
    with pytest.raises(InputError, match=f"^{re.escape(str(options.base.parent))}/.*{complaint}") as caught:
        adapt(options)
    assert "\n" not in str(caught.value)
    assert {path.name for path in options.base.parent.iterdir()} <= {"base"}


def test_broken_tokenizer_or_output_is_named(options: Adapt, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent: no such file or directory"):
        adapt(replace(options, tokenizer=tmp_path / "absent"))
    with pytest.raises(InputError, match=r"base: exists already"):
        adapt(replace(options, output=options.base))


def test_bases_with_other_vocabularies_are_refused_with_a_word(options: Adapt) -> None:
    (options.base / "tokenizer.model").unlink()
    (options.base / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: no tokenizer that can be read"):
        adapt(options)
    (options.base / "tokenizer.json").rename(options.base / "tekken.json")
    with pytest.raises(InputError, match=r"base: its one tokenizer is tekken\.json; .*`vikhr-fast tokenizer export"):
        adapt(options)
