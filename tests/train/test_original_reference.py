"""The KL to a reference with another vocabulary, in whole steps, against dictionaries of strings."""

import json
import math
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_3 import make_base
from safetensors.torch import load_file, save_file
from training_runs import make_config, run_ranks, write_config
from two_vocabularies import aligned, bucket_strings, prefixes

from vikhr_fast.adapt.adapt import Adapt, adapt
from vikhr_fast.config import TrainConfig
from vikhr_fast.corpus.shard import Shard, write_shards
from vikhr_fast.data.token_shards import TokenShards
from vikhr_fast.errors import InputError
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.io.files import sha256_of
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer.spelling import Spelling
from vikhr_fast.train.inputs import describe, open_inputs
from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import METRICS

SOURCES = ("other", "short")


@pytest.fixture(scope="module")
def texts(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of documents that no window cuts."""
    root = tmp_path_factory.mktemp("texts")
    for name, file in (("short", "train.txt"), ("other", "other.txt")):
        paragraphs = (workspace / file).read_text(encoding="utf-8").split("\n\n")
        (root / f"{name}.txt").write_text("\n\n".join(text[:150] for text in paragraphs[:10]), encoding="utf-8")
        write_shards(Shard(input=(root / f"{name}.txt",), tokenizer=workspace / "tokenizer", output=root / name))
    return root


def config_of(workspace: Path, texts: Path, output: Path, *, steps: int = 1, **kl: Any) -> TrainConfig:
    """One step over all of the texts, or several."""
    return make_config(
        workspace,
        output,
        data={"train": {name: texts / name for name in SOURCES}, "sequence_length": 200, "epochs": steps},
        batch={"micro_batch": 2, "sequences_per_step": 40 if steps == 1 else 8},
        kl={"reference": workspace / "original", **kl},
        schedule={"max_steps": steps},
    )


def first_line(config: TrainConfig) -> dict[str, Any]:
    train(config)
    found: dict[str, Any] = read_lines(config.output / METRICS)[0]
    return found


def by_string(p: torch.Tensor, strings: list[Any]) -> dict[Any, float]:
    """The probabilities of strings, of those of tokens."""
    sums: dict[Any, float] = defaultdict(float)
    for string, probability in zip(strings, p.tolist(), strict=True):
        sums[string] += probability
    return sums


def divergences(workspace: Path, texts: Path, source: str, forward: bool) -> Iterator[float]:
    """The KL at each position of a source's documents that is compared."""
    own, ref = (Spelling.of(workspace / name) for name in ("model", "original"))
    model, original = (Mistral.from_pretrained(workspace / name, torch.float64) for name in ("model", "original"))
    strings: list[list[Any]] = [bucket_strings(own.contents, ref.contents), bucket_strings(ref.contents, own.contents)]
    for side, spelling, network in zip(strings, (own, ref), (model, original), strict=True):
        side += [None] * (network.config.vocab_size - len(side))
        side[spelling.encoder.eos_id] = "the end"
    shards = TokenShards.open(texts / source)
    for number in range(shards.num_documents):
        ids = shards.document(number).tolist()
        text = own.spell(ids[1:-1]).decode()[1:]
        others = [ref.encoder.bos_id, *ref.encoder.encode(text).tolist()]
        with torch.no_grad():
            p, q = (
                network.logits(network(torch.tensor([tokens])))[0].softmax(-1)
                for network, tokens in ((model, ids[:-1]), (original, others))
            )
        for place, other in aligned(prefixes(own, ids[1:-1]), prefixes(ref, others[1:])).items():
            a, b = by_string(p[place], strings[0]), by_string(q[other], strings[1])
            assert a.keys() == b.keys()
            assert sum(a.values()) == pytest.approx(1, abs=1e-12)
            if forward:
                a, b = b, a
            yield sum(a[string] * math.log(a[string] / b[string]) for string in a)


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_the_kl_of_a_step_is_that_of_dictionaries_of_strings(
    workspace: Path, texts: Path, tmp_path: Path, direction: str
) -> None:
    line = first_line(config_of(workspace, texts, tmp_path / "run", direction=direction))
    found = [kl for source in SOURCES for kl in divergences(workspace, texts, source, direction == "forward")]
    assert line["compared_tokens"] == len(found)
    assert line["kl"] == pytest.approx(sum(found) / line["tokens"], rel=1e-9)
    assert line["loss"] == pytest.approx(line["ce"] + line["kl"], rel=1e-12)
    assert line["tokens"] > len(found) > 0.5 * line["tokens"]
    assert line["reference_tokens_cut"] == 0
    assert 0 < line["apart_tokens"] < 0.3 * len(found)


def test_sources_that_take_the_kl(workspace: Path, texts: Path, tmp_path: Path) -> None:
    line = first_line(config_of(workspace, texts, tmp_path / "run", sources=["other"]))
    found = list(divergences(workspace, texts, "other", forward=False))
    assert line["compared_tokens"] == len(found)
    assert line["kl"] == pytest.approx(sum(found) / line["tokens"], rel=1e-9)
    own = first_line(config_of(workspace, texts, tmp_path / "own", reference=None, sources=["other"]))
    assert "compared_tokens" not in own
    assert own["kl"] == 0.0


def test_sources_in_one_vocabulary(workspace: Path, texts: Path, tmp_path: Path) -> None:
    """The KL of each source alone; they sum to that of both."""
    moved = tmp_path / "moved"
    shutil.copytree(workspace / "model", moved)
    weights = load_file(moved / "model.safetensors")
    weights["lm_head.weight"] *= 1.1
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    kls = [
        first_line(config_of(workspace, texts, tmp_path / "-".join(sources), reference=moved, sources=sources))["kl"]
        for sources in (["other"], ["short"], list(SOURCES))
    ]
    whole = first_line(config_of(workspace, texts, tmp_path / "whole", reference=moved))["kl"]
    assert kls[0] + kls[1] == pytest.approx(kls[2], rel=1e-12)
    assert kls[2] == whole > kls[0] > 0


def test_weights_of_sources(workspace: Path, texts: Path, tmp_path: Path) -> None:
    line = first_line(config_of(workspace, texts, tmp_path / "run", source_weights={"other": 3.0}))
    kl = {source: sum(divergences(workspace, texts, source, forward=False)) for source in SOURCES}
    assert line["loss"] == pytest.approx(line["ce"] + (3 * kl["other"] + kl["short"]) / line["tokens"], rel=1e-9)


def test_a_fraction_reads_the_drawn_sequences_alone(workspace: Path, texts: Path, tmp_path: Path) -> None:
    whole, half = (
        first_line(config_of(workspace, texts, tmp_path / str(fraction), fraction=fraction)) for fraction in (1.0, 0.5)
    )
    for name in ("compared_tokens", "reference_tokens", "reference_flops"):
        assert 0.2 * whole[name] < half[name] < 0.8 * whole[name], name
    assert half["kl"] == pytest.approx(whole["kl"], rel=0.5)


def test_any_number_of_ranks_compares_the_same(workspace: Path, texts: Path, tmp_path: Path) -> None:
    lines = []
    for ranks in (1, 2, 4):
        config = config_of(workspace, texts, tmp_path / str(ranks), steps=3, combine="slerp", fraction=0.5)
        run_ranks(write_config(config, tmp_path / f"{ranks}.toml"), ranks)
        lines.append(read_lines(config.output / METRICS))
    for other in lines[1:]:
        for line, expected in zip(other, lines[0], strict=True):
            for name in ("tokens", "compared_tokens", "reference_tokens", "apart_tokens"):
                assert line[name] == expected[name]
            for name in ("loss", "ce", "kl", "grad_norm"):
                assert line[name] == pytest.approx(expected[name], rel=1e-9)


def test_it_learns_towards_the_original(workspace: Path, texts: Path, tmp_path: Path) -> None:
    train(config_of(workspace, texts, tmp_path / "run", steps=20, weight=20.0))
    kls = [line["kl"] for line in read_lines(tmp_path / "run" / METRICS)]
    assert len(kls) == 20
    assert kls[-1] < 0.5 * kls[0]


def test_the_dry_run_says_in_how_many_buckets(workspace: Path, texts: Path, tmp_path: Path) -> None:
    config = config_of(workspace, texts, tmp_path / "run")
    own, ref = (Spelling.of(workspace / name).contents for name in ("model", "original"))
    common = len((set(own) & set(ref)) - {b""})
    assert f"in {common + 2:,} buckets of text" in describe(config, open_inputs(config), 1)


def test_another_tokenizer_of_the_reference_is_another_run(workspace: Path, texts: Path, tmp_path: Path) -> None:
    original = tmp_path / "original"
    shutil.copytree(workspace / "original", original)
    config = config_of(workspace, texts, tmp_path / "run", reference=original)
    train(config)
    values = json.loads((original / "tokenizer.json").read_text())
    (original / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="reference_tokenizer"):
        train(config)


@pytest.mark.parametrize("role", ["bos_token", "eos_token"])
def test_other_ends_of_the_references_documents_are_another_run(
    workspace: Path, texts: Path, tmp_path: Path, role: str
) -> None:
    original = tmp_path / "original"
    shutil.copytree(workspace / "original", original)
    config = config_of(workspace, texts, tmp_path / "run", reference=original)
    assert "the reference's documents from <|begin|> to <|end|>" in describe(config, open_inputs(config), 1)
    train(config)
    file = original / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {role: None}))
    with pytest.raises(InputError, match="reference_tokenizer"):
        train(config)


@pytest.mark.parametrize("role", ["bos_token", "eos_token"])
def test_ordinary_tokens_may_begin_and_end_documents(workspace: Path, texts: Path, tmp_path: Path, role: str) -> None:
    """Where the reference's text has none of them, as much is compared as ever."""
    original = tmp_path / "original"
    shutil.copytree(workspace / "original", original)
    file = original / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {role: "~"}))
    lines = [
        first_line(config_of(workspace, texts, tmp_path / path.parent.name / path.name, reference=path))
        for path in (original, workspace / "original")
    ]
    assert lines[0]["compared_tokens"] == lines[1]["compared_tokens"]
    assert lines[0]["unspelt_texts"] == 0


def test_tokens_without_a_row_are_not_read(workspace: Path, texts: Path, tmp_path: Path) -> None:
    """A model that was given more tokens than rows; what begins a document needs one."""
    original = tmp_path / "original"
    shutil.copytree(workspace / "original", original)
    weights = load_file(original / "model.safetensors")
    rows = len(weights["lm_head.weight"]) - 40
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        weights[name] = weights[name][:rows].clone()
    save_file(weights, original / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((original / "config.json").read_text())
    (original / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    line = first_line(config_of(workspace, texts, tmp_path / "run", reference=original))
    assert line["unspelt_texts"] > 0
    assert line["compared_tokens"] > 0
    values = json.loads((original / "tokenizer.json").read_text())
    last = max(values["model"]["vocab"], key=values["model"]["vocab"].__getitem__)
    roles = {"bos_token": last, "eos_token": "<|end|>"}
    (original / "tokenizer_config.json").write_text(json.dumps(roles))
    with pytest.raises(InputError, match="for which it has no row"):
        open_inputs(config_of(workspace, texts, tmp_path / "again", reference=original))


@pytest.mark.parametrize("base_ids", [[], ["a"] * 520, [10**9] * 520, {"0": 1}])
def test_damaged_records_of_adaptation_are_refused(
    workspace: Path, texts: Path, tmp_path: Path, base_ids: object
) -> None:
    model = tmp_path / "model"
    shutil.copytree(workspace / "model", model)
    digest = sha256_of(workspace / "original" / "tokenizer.json")
    (model / "adapt.json").write_text(json.dumps({"base_ids": base_ids, "base_tokenizer_sha256": digest}))
    config = replace(config_of(workspace, texts, tmp_path / "run"), model=model)
    with pytest.raises(InputError, match=r"adapt\.json: damaged: base_ids .*; run `vikhr-fast adapt` again"):
        open_inputs(config)


def test_the_same_vocabulary_with_more_rows_is_compared_text_by_text(
    workspace: Path, texts: Path, tmp_path: Path
) -> None:
    padded = tmp_path / "padded"
    shutil.copytree(workspace / "model", padded)
    weights = load_file(padded / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        weights[name] = torch.cat((weights[name], torch.full((8, 32), -9.0)))
    save_file(weights, padded / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((padded / "config.json").read_text())
    (padded / "config.json").write_text(json.dumps({**config, "vocab_size": 528}))
    line = first_line(config_of(workspace, texts, tmp_path / "run", reference=padded))
    assert (line["compared_tokens"], line["apart_tokens"]) == (line["tokens"], 0)
    reference = open_inputs(config_of(workspace, texts, tmp_path / "again", reference=padded)).reference
    assert reference is not None
    assert reference.reader is not None
    texts_of_tokens = set(reference.reader.own.spelling.contents) - {b""}
    assert reference.reader.num_buckets == len(texts_of_tokens) + 2  # and the end, and what else isn't text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"support": "shared"}, "kl.support: shared pieces are of one vocabulary"),
        ({"sources": ["othre"]}, "kl.sources: othre: not in data.train"),
        ({"source_weights": {"b": 1.0}}, "kl.source_weights: b: not in data.train"),
    ],
)
def test_refusals(workspace: Path, texts: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_inputs(config_of(workspace, texts, tmp_path / "run", **changes))


def test_conversations_are_refused_unless_they_take_no_kl(
    workspace: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TokenShards, "has_mask", property(lambda self: self.directory.name == "other"))
    with pytest.raises(InputError, match=r"kl\.sources: other: conversations"):
        open_inputs(config_of(workspace, texts, tmp_path / "run"))
    open_inputs(config_of(workspace, texts, tmp_path / "run", sources=["short"]))


def test_a_reference_without_a_tokenizer_is_refused(workspace: Path, texts: Path, tmp_path: Path) -> None:
    original = tmp_path / "original"
    shutil.copytree(workspace / "original", original)
    (original / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="original has no tokenizer to compare them with; put its files there"):
        open_inputs(config_of(workspace, texts, tmp_path / "run", reference=original))


def test_documents_of_the_base_begin_and_end_as_adaptation_was_told(workspace: Path, tmp_path: Path) -> None:
    """Its tokenizer may name tokens of a chat."""
    make_base(tmp_path / "base")
    ends = {"base_bos": "<|eot_id|>", "base_eos": "<|end_header_id|>"}
    adapt(Adapt(tmp_path / "base", tmp_path / "model", workspace / "tokenizer", **ends))
    write_shards(Shard(input=(workspace / "other.txt",), tokenizer=tmp_path / "model", output=tmp_path / "other"))
    config = make_config(tmp_path, tmp_path / "run", data={"train": {"other": tmp_path / "other"}})
    config = replace(config, kl=replace(config.kl, reference=tmp_path / "base"))
    for told in (True, False):
        if not told:
            (tmp_path / "model" / "adapt.json").unlink()
        reference = open_inputs(config).reference
        assert reference is not None
        assert reference.reader is not None
        side = reference.reader.ref
        library = side.spelling.encoder.tokenizer
        names = ("<|eot_id|>", "<|end_header_id|>") if told else ("<|begin|>", "<|end|>")
        assert (side.bos, side.eos) == tuple(map(library.token_to_id, names))
