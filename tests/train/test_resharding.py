"""A run goes on with another number of ranks: the same losses, every token once."""

import shutil
from pathlib import Path

import pytest
from training_runs import make_config, run_ranks, write_config

from vikhr_fast.data.packing import PackedCorpus, StepLoader
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.train.inputs import open_inputs
from vikhr_fast.train.metrics import METRICS

pytestmark = pytest.mark.slow


def test_two_ranks_then_one_then_four(workspace: Path, tmp_path: Path) -> None:
    def go(output: Path, ranks: int, steps: int) -> None:
        config = make_config(workspace, output, schedule={"max_steps": steps})
        run_ranks(write_config(config, tmp_path / "run.toml"), ranks)

    parts, whole = tmp_path / "parts", tmp_path / "whole"
    for ranks, steps in ((2, 3), (1, 6), (4, 9)):
        shutil.rmtree(parts / "model", ignore_errors=True)
        go(parts, ranks, steps)
    go(whole, 1, 9)
    found, expected = (read_lines(run / METRICS) for run in (parts, whole))
    assert [line["step"] for line in found] == list(range(1, 10))
    for name in ("loss", "ce", "kl", "grad_norm"):
        assert [line[name] for line in found] == pytest.approx([line[name] for line in expected], rel=1e-9)
    assert [line["tokens"] for line in found] == [line["tokens"] for line in expected]


def test_every_sequence_once_however_the_ranks_change(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = open_inputs(make_config(workspace, tmp_path / "run"), verify=False).corpus
    read: list[int] = []
    monkeypatch.setattr(PackedCorpus, "batch", lambda _, indices, __: read.extend(indices))
    steps = -(-corpus.num_sequences // 8)
    for ranks, first, end in ((2, 0, 5), (1, 5, 7), (4, 7, steps)):
        for rank in range(ranks):
            loader = StepLoader(corpus, sequences_per_step=8, micro_batch=2, rank=rank, ranks=ranks)
            list(loader.steps(first, end))
    assert sorted(index for index in read if index < corpus.num_sequences) == list(range(corpus.num_sequences))
