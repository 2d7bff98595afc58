from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import sentencepiece
import torch
from adapting import BYTE, NORMAL, ROWS, RUSSIAN, Bases, base_ids_of, segmented, tie, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from vikhr_fast.adapt.adapt import EMBEDDING, HEAD, Adapt, adapt
from vikhr_fast.adapt.rows import Init, RowMaker, RowSources
from vikhr_fast.data.sources import read_texts
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer import BpeEncoder
from vikhr_fast.tokenizer.export import read_model


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
    report = adapt(Adapt(base, tmp_path / "out", tokenizers[1]))
    before, after = weights(base), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    for name in before.keys() - {EMBEDDING, HEAD}:
        assert after[name].dtype == dtype
        assert torch.equal(before[name], after[name])

    old, new = (read_model(directory / "tokenizer.model") for directory in (base, tokenizers[1]))
    known = {(piece.type, piece.piece): index for index, piece in enumerate(old.pieces)}
    kept = [known.get((piece.type, piece.piece)) for piece in new.pieces]
    assert base_ids_of(tmp_path / "out") == kept
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


def test_bytes_average_what_the_base_spells_in_bytes(options: Adapt) -> None:
    report = adapt(options)
    base_ids = base_ids_of(options.output)
    old, new = (read_model(path / "tokenizer.model") for path in (options.base, options.tokenizer))
    spelt = [
        index
        for index, piece in enumerate(new.pieces)
        if base_ids[index] is None and any(old.pieces[part].type == BYTE for part in segmented(old, piece.piece))
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
    assert base_ids_of(options.output)[:3] == [0, 1, 2]
    assert report["by_role"] == 3
    before, after = weights(options.base), weights(options.output)
    assert torch.equal(after[HEAD][:3], before[HEAD][:3])


def test_new_control_pieces_are_the_mean_of_their_text(options: Adapt, tmp_path: Path) -> None:
    tokenizer = renamed(options.tokenizer, tmp_path, {"<|im_end|>": "<|конец|>"}, {})
    adapt(replace(options, tokenizer=tokenizer))
    assert base_ids_of(options.output)[3:5] == [3, None]  # <|im_start|> is a control piece of the base, too
    parts = segmented(read_model(options.base / "tokenizer.model"), "<|конец|>")
    for name in (EMBEDDING, HEAD):
        assert torch.equal(weights(options.output)[name][4], weights(options.base)[name][parts].mean(0))


def test_a_new_row_is_initialised_as_asked(options: Adapt, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    prose = RUSSIAN.read_text(encoding="utf-8")[:2000]  # in bytes for the English base: their frequencies differ
    text.write_text(prose, encoding="utf-8")
    old = read_model(options.base / "tokenizer.model")
    encoder = BpeEncoder.from_file(options.base / "tokenizer.model")
    frequencies = sum(
        torch.bincount(torch.from_numpy(encoder.encode(document)), minlength=ROWS) for document in read_texts(text)
    )
    frequencies = frequencies + 1
    before = weights(options.base)
    new = read_model(options.tokenizer / "tokenizer.model")
    for init in get_args(Init):
        more = {"frequencies": (text,)} if init in ("frequency-weighted-mean", "mean-and-share") else {}
        report = adapt(replace(options, init=init, output=tmp_path / init, **more))
        assert report["init"] == init
        after, base_ids = weights(tmp_path / init), base_ids_of(tmp_path / init)
        averaged = [index for index, base_id in enumerate(base_ids) if base_id is None]
        kept = [index for index, base_id in enumerate(base_ids) if base_id is not None]
        for name in (EMBEDDING,) if init == "mean-and-share" else (EMBEDDING, HEAD):
            assert torch.equal(after[name][kept], before[name][[base_ids[index] for index in kept]])
            rows = after[name][averaged]
            if init == "global-mean":
                torch.testing.assert_close(rows, before[name].mean(0).expand_as(rows), rtol=1e-5, atol=1e-7)
            elif init == "random":
                assert rows.std().item() == pytest.approx(before[name].std().item(), rel=0.03)
                assert abs(rows.mean().item()) < 0.001
                assert rows.unique(dim=0).shape == rows.shape
            else:
                counts = frequencies if init == "frequency-weighted-mean" else torch.ones(ROWS)
                for row, index in zip(rows[:200], averaged[:200], strict=True):
                    parts = segmented(old, new.pieces[index].piece)
                    share = counts[parts] / counts[parts].sum()
                    torch.testing.assert_close(row, (before[name][parts] * share[:, None]).sum(0), rtol=1e-5, atol=1e-7)
        if init == "random":
            drawn = torch.stack([after[name][averaged].flatten() for name in (EMBEDDING, HEAD)])
            assert abs(torch.corrcoef(drawn)[0, 1].item()) < 0.1  # each matrix has draws of its own
            assert adapt(replace(options, init=init, seed=1, output=tmp_path / "other")) == report
            assert not torch.equal(weights(tmp_path / "other")[HEAD], after[HEAD])


@pytest.mark.parametrize("is_tied", [False, True])
def test_shares_are_added_to_the_head_along_the_mean_hidden_state(
    options: Adapt, tmp_path: Path, *, is_tied: bool
) -> None:
    if is_tied:
        tie(options.base)
        options = replace(options, untie_head=True)
    text = tmp_path / "text.txt"
    text.write_text(RUSSIAN.read_text(encoding="utf-8")[:20_000] + "\n\nIt is more than a word of English.")
    adapt(replace(options, output=tmp_path / "mean"))
    adapt(replace(options, init="mean-and-share", frequencies=(text,)))
    old, new = (read_model(path / "tokenizer.model") for path in (options.base, options.tokenizer))
    before, after = (weights(path) for path in (tmp_path / "mean", options.output))
    assert [name for name in before if not torch.equal(before[name], after[name])] == [HEAD]

    base, encoder = (BpeEncoder.from_file(path / "tokenizer.model") for path in (options.base, options.tokenizer))
    counts, states, left = torch.ones(1200), [], 2048
    for document in read_texts(text):
        ids = torch.from_numpy(encoder.encode(document))
        counts += torch.bincount(torch.cat([ids, torch.tensor([encoder.eos_id])]), minlength=1200)
        ids = torch.tensor([base.bos_id, *base.encode(document).tolist()])[: min(128, left)]
        left -= len(ids)
        if len(ids):
            with torch.no_grad():
                states.append(Mistral.from_pretrained(options.base)(ids[None])[0])
    assert left == 0
    mean = torch.cat(states).mean(0)

    first = [segmented(old, piece.piece)[0] if own is None else own
             for piece, own in zip(new.pieces, base_ids_of(options.output), strict=True)]  # fmt: skip
    total = torch.zeros(ROWS).index_add(0, torch.tensor(first), counts)
    logarithms = (counts / total[first]).log()
    added = 0.5 * logarithms[:, None] * mean / mean.square().sum()
    torch.testing.assert_close(after[HEAD] - before[HEAD], added, rtol=1e-3, atol=2e-6)
    assert (logarithms < 0).sum() > 500


def test_worst_rows_are_the_means_of_most(options: Adapt) -> None:
    report = adapt(options)
    base_ids = base_ids_of(options.output)
    old, new = (read_model(path / "tokenizer.model") for path in (options.base, options.tokenizer))
    sizes = {
        index: len(segmented(old, piece.piece)) for index, piece in enumerate(new.pieces) if base_ids[index] is None
    }
    assert [row["base_pieces"] for row in report["worst"]] == sorted(sizes.values(), reverse=True)[:20]
    assert all(
        row["base_pieces"] == sizes[row["id"]] and row["piece"] == new.pieces[row["id"]].piece
        for row in report["worst"]
    )


@pytest.mark.parametrize("init", ["mean", "random", "global-mean"])
def test_what_a_normalising_base_deletes_is_spelt_in_bytes(options: Adapt, tmp_path: Path, init: Init) -> None:
    """nmt_nfkc, which OpenLLaMA's model has, deletes control characters: their pieces were the mean of nothing."""
    (tmp_path / "text").write_text("какой-то текст\n" * 50, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "nmt"), vocab_size=20, model_type="bpe",
        normalization_rule_name="nmt_nfkc", minloglevel=2,
    )  # fmt: skip
    base = read_model(options.base / "tokenizer.model")
    base.normalizer_spec.CopyFrom(read_model(tmp_path / "nmt.model").normalizer_spec)
    (options.base / "tokenizer.model").write_bytes(base.SerializeToString())
    new = read_model(options.tokenizer / "tokenizer.model")
    for piece in ("\x0b", "\x7f", "\x7f\x7f"):
        new.pieces.add(piece=piece, score=-1e4, type=NORMAL)
    (tmp_path / "new.model").write_bytes(new.SerializeToString())
    report = adapt(replace(options, tokenizer=tmp_path / "new.model", init=init, pad_to_multiple=64))
    before, after = weights(options.base), weights(options.output)
    names = {piece.piece: index for index, piece in enumerate(base.pieces)}
    for name in (EMBEDDING, HEAD):
        assert after[name].isfinite().all()
        if init == "mean":
            assert torch.equal(after[name][1200], before[name][names["<0x0B>"]])
            assert torch.equal(after[name][1201], before[name][names["<0x7F>"]])
            assert torch.equal(after[name][1202], before[name][[names["<0x7F>"]] * 2].mean(0))
    assert report["averaged_with_bytes"] >= 3


@st.composite
def sources_of(draw: st.DrawFn) -> RowSources:
    rows = draw(st.lists(st.none() | st.integers(0, 9), min_size=1, max_size=30))
    spelt = st.lists(st.integers(0, 9), min_size=1, max_size=9)
    return RowSources([draw(spelt) if row is None else [row] for row in rows], rows, 0, 0, [], [])


@settings(max_examples=150, deadline=None)
@given(
    sources=sources_of(),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    padding=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
def test_laws_of_any_rows(sources: RowSources, dtype: torch.dtype, padding: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(10, 6, generator=generator).to(dtype)
    new = torch.cat(list(RowMaker(sources, "mean", None, None, padding, 0).blocks(old, "any")))
    assert (new.dtype, new.shape) == (dtype, (len(sources.base_ids) + padding, 6))
    for row, base_id, pieces in zip(new, sources.base_ids, sources.pieces, strict=False):
        if base_id is not None:
            assert torch.equal(row.view(torch.uint8), old[base_id].view(torch.uint8))
        else:  # the float32 mean, rounded once, is the nearest value to it: none lies between
            exact = old[pieces].double().mean(0)
            error = (row.double() - exact).abs()
            step = torch.finfo(dtype).eps * exact.abs().clamp(min=torch.finfo(dtype).tiny)
            assert (error <= 0.5 * step + 1e-6 * old.double().abs().max()).all()
    if padding:
        hidden = torch.randn(20, 6, generator=generator).double()
        logits = hidden @ new.double().T
        real, padded = logits[:, :-padding], logits[:, -padding:]
        slack = 6 * 8 * torch.finfo(dtype).eps * hidden.abs().amax() * new.double().abs().max()
        assert (padded <= real.max(-1, keepdim=True).values + slack).all()
        assert torch.allclose(padded, real.mean(-1, keepdim=True).expand_as(padded), atol=float(slack))
