import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vikhr_fast
from vikhr_fast.adapt import Adapt, adapt
from vikhr_fast.adapt_weights import EMBEDDING, HEAD
from vikhr_fast.errors import InputError
from vikhr_fast.files import sha256_of
from vikhr_fast.model import Mistral
from vikhr_fast.model_config import ModelConfig
from vikhr_fast.tokenizer import BpeEncoder
from vikhr_fast.tokenizer.export import read_model
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
RUSSIAN = Path(vikhr_fast.__file__).parent / "demo" / "data" / "russian" / "stories.txt"
NORMAL, CONTROL, BYTE = 1, 3, 6
ROWS = 500
Bases = Callable[[torch.dtype, int], Path]


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directories of an English tokenizer and of one of both languages."""
    folder = tmp_path_factory.mktemp("tokenizers")
    english = folder / "english.txt"
    english.write_text("\n\n".join(topics[name] for name in sorted(topics))[:60_000], encoding="utf-8")
    short = folder / "short.txt"
    short.write_text(topics["assert"], encoding="utf-8")
    train_tokenizer(TrainTokenizer(input=(english,), output=folder / "base", vocab_size=ROWS))
    train_tokenizer(TrainTokenizer(input=(RUSSIAN, short), output=folder / "new", vocab_size=1200))
    return folder / "base", folder / "new"


@pytest.fixture(scope="session")
def bases(tokenizers: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Makes base models: random weights in a dtype, in shards of a size."""
    folder = tmp_path_factory.mktemp("bases")

    def make(dtype: torch.dtype, max_shard_bytes: int) -> Path:
        directory = folder / f"{dtype}-{max_shard_bytes}"
        if not directory.exists():
            shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 4}
            heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
            model = Mistral(ModelConfig(vocab_size=ROWS, **shape, **heads))
            model.initialise(seed=1)
            model.to(dtype).save_pretrained(directory, max_shard_bytes=max_shard_bytes)
            shutil.copy(tokenizers[0] / "tokenizer.model", directory)
        return directory

    return make


@pytest.fixture
def base(bases: Bases, tmp_path: Path) -> Path:
    """A base in several shards that a test may damage."""
    shutil.copytree(bases(torch.float32, 20_000), tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def options(base: Path, tokenizers: tuple[Path, Path], tmp_path: Path) -> Adapt:
    return Adapt(base=base, tokenizer=tokenizers[1], output=tmp_path / "out")


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors, from wherever they lie."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def segmented(model: Any, text: str) -> list[int]:
    """BPE as it is defined: join the adjacent pair of the best score, leftmost first, until no pair is a piece."""
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}
    ids = {piece.piece: index for index, piece in enumerate(model.pieces)}
    parts = list(text)
    while joins := [(scores[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]:
        at = -max(joins)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [
        index
        for part in parts
        for index in ([ids[part]] if part in scores else [ids[f"<0x{byte:02X}>"] for byte in part.encode()])
    ]


@pytest.mark.parametrize("max_shard_bytes", [20_000, 1_000_000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_are_kept_or_the_mean_and_all_else_is_kept(
    bases: Bases,
    tokenizers: tuple[Path, Path],
    tmp_path: Path,
    dtype: torch.dtype,
    max_shard_bytes: int,
) -> None:
    base = bases(dtype, max_shard_bytes)
    report = adapt(Adapt(base, tokenizers[1], tmp_path / "out"))
    before, after = weights(base), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    for name in before.keys() - {EMBEDDING, HEAD}:
        assert after[name].dtype == dtype
        assert torch.equal(before[name], after[name])

    old, new = (read_model(directory / "tokenizer.model") for directory in (base, tokenizers[1]))
    known = {(piece.type, piece.piece): index for index, piece in enumerate(old.pieces)}
    kept = [known.get((piece.type, piece.piece)) for piece in new.pieces]
    assert report["base_ids"] == kept
    assert 300 < report["by_role"] + report["copied"] == sum(index is not None for index in kept) < 500
    assert report["by_role"] == 3
    assert report["averaged"] == len(new.pieces) - 3 - report["copied"]
    for name in (EMBEDDING, HEAD):
        assert after[name].dtype == dtype
        assert after[name].shape == (1200, 16)
        for index, piece in enumerate(new.pieces):
            row = after[name][index]
            if (base_id := kept[index]) is not None:
                assert torch.equal(row, before[name][base_id])
            else:
                sources = before[name][segmented(old, piece.piece)]
                assert torch.equal(row, sources.float().mean(0).to(dtype)), piece.piece


def test_files_keep_their_names_and_the_index_fits(options: Adapt) -> None:
    adapt(options)
    shards = {file.name for file in options.base.glob("*.safetensors")}
    assert len(shards) > 2
    assert {file.name for file in options.output.glob("*.safetensors")} == shards
    index = json.loads((options.output / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == json.loads((options.base / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in weights(options.output).values())}
    with safe_open(options.output / index["weight_map"][EMBEDDING], "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_same_input_gives_the_same_bytes(options: Adapt, tmp_path: Path) -> None:
    adapt(options)
    adapt(replace(options, output=tmp_path / "again"))
    first, again = ({f.name: f.read_bytes() for f in d.iterdir()} for d in (options.output, tmp_path / "again"))
    assert first == again


def test_bytes_average_what_the_base_spells_in_bytes(options: Adapt) -> None:
    report = adapt(options)
    old, new = (read_model(path / "tokenizer.model") for path in (options.base, options.tokenizer))
    spelt = [
        index
        for index, piece in enumerate(new.pieces)
        if report["base_ids"][index] is None
        and any(old.pieces[part].type == BYTE for part in segmented(old, piece.piece))
    ]
    assert report["averaged_with_bytes"] == len(spelt) > 100  # the English base has no Cyrillic


def renamed(tokenizer: Path, directory: Path, changes: dict[str, str], roles: dict[str, str]) -> Path:
    """A copy of a tokenizer with other names for special pieces."""
    model = read_model(tokenizer / "tokenizer.model")
    for piece in model.pieces:
        piece.piece = changes.get(piece.piece, piece.piece)
    for role, piece in roles.items():
        setattr(model.trainer_spec, role, piece)
    file = directory / "renamed.model"
    file.write_bytes(model.SerializeToString())
    return file


def test_special_pieces_are_matched_by_role(options: Adapt, tmp_path: Path) -> None:
    changes = {"<unk>": "[UNK]", "<s>": "[BOS]", "</s>": "<s>"}  # "<s>" is EOS now: the role counts, not the name
    roles = {"unk_piece": "[UNK]", "bos_piece": "[BOS]", "eos_piece": "<s>"}
    report = adapt(replace(options, tokenizer=renamed(options.tokenizer, tmp_path, changes, roles)))
    assert report["base_ids"][:3] == [0, 1, 2]
    assert report["by_role"] == 3
    before, after = weights(options.base), weights(options.output)
    assert torch.equal(after[HEAD][:3], before[HEAD][:3])


def test_new_control_pieces_are_the_mean_of_their_text(options: Adapt, tmp_path: Path) -> None:
    tokenizer = renamed(options.tokenizer, tmp_path, {"<|im_end|>": "<|конец|>"}, {})
    report = adapt(replace(options, tokenizer=tokenizer))
    assert report["base_ids"][3:5] == [3, None]  # <|im_start|> is a control piece of the base, too
    parts = segmented(read_model(options.base / "tokenizer.model"), "<|конец|>")
    for name in (EMBEDDING, HEAD):
        assert torch.equal(weights(options.output)[name][4], weights(options.base)[name][parts].mean(0))


def test_transformers_loads_the_result(options: Adapt) -> None:
    """The same ids as ours, the same logits as ours, and on kept pieces the logits that the base has."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = adapt(options)
    tokenizer = AutoTokenizer.from_pretrained(options.output)
    model = AutoModelForCausalLM.from_pretrained(options.output)
    encoder = BpeEncoder.from_file(options.output / "tokenizer.model")
    text = "Мама мыла раму, and the Python of 1991 — 😀"
    ids = tokenizer(text)["input_ids"]
    assert ids == [encoder.bos_id, *encoder.encode(text).tolist()]
    assert (model.config.vocab_size, model.config.bos_token_id, model.config.eos_token_id) == (1200, 1, 2)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits
        ours = Mistral.from_pretrained(options.output)
        torch.testing.assert_close(ours.logits(ours(torch.tensor([ids]))), logits, rtol=1e-5, atol=1e-6)

        kept = [index for index, base_id in enumerate(report["base_ids"]) if base_id is not None]
        base_ids = torch.tensor([report["base_ids"][index] for index in kept])
        base = AutoModelForCausalLM.from_pretrained(options.base)
        expected = base(base_ids[None, :100]).logits[..., base_ids]
        assert torch.equal(model(torch.tensor([kept[:100]])).logits[..., kept], expected)


def rewrite(file: Path, **changes: Any) -> None:
    """Changes fields of a JSON file; None removes one."""
    values = {**json.loads(file.read_text()), **changes}
    removed = {name for name, value in changes.items() if value is None}
    file.write_text(json.dumps({name: value for name, value in values.items() if name not in removed}))


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_parameters": None},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    ],
)
def test_config_carries_both_spellings_and_all_else(options: Adapt, spelling: dict[str, Any]) -> None:
    rewrite(options.base / "config.json", **spelling, pad_token_id=7, sliding_window=9, unknown_field=[1])
    (options.base / "generation_config.json").write_text('{"eos_token_id": [2, 450], "temperature": 0.5}')
    adapt(options)
    config = json.loads((options.output / "config.json").read_text())
    before = json.loads((options.base / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5e5
    changed = {"vocab_size": 1200, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    rope = {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    assert config == {**before, **changed, **rope}
    generation = json.loads((options.output / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "temperature": 0.5}


def test_report_is_kept(options: Adapt) -> None:
    report = adapt(options)
    assert json.loads((options.output / "adapt.json").read_text()) == report
    assert report["tokenizer_sha256"] == sha256_of(options.output / "tokenizer.model")
    assert report["base_tokenizer_sha256"] == sha256_of(options.base / "tokenizer.model")


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
        rf"base: {EMBEDDING}: its shape is \[500, 16\], config.json wants \[512, 16\]",
    ),
    (drop_head, rf"base: {HEAD}: missing, config.json wants \[500, 16\]; give a whole model"),
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


def test_weights_that_shrink_meanwhile_leave_nothing(options: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    from vikhr_fast import adapt_weights as module

    def shrinking(reader: Any, writer: Any, size: int) -> None:
        os.truncate(reader.name, 1)
        original(reader, writer, size)

    original = module._copy
    monkeypatch.setattr(module, "_copy", shrinking)
    with pytest.raises(InputError, match=r"model-\d+-of-\d+\.safetensors: became shorter while it was read"):
        adapt(options)
    assert {path.name for path in options.base.parent.iterdir()} == {"base"}
