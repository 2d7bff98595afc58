"""The loop as a user sees it: what it computes in each dtype, what it writes, when it stops."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from training_runs import make_config

from vikhr_fast.data.packing import Batch
from vikhr_fast.data.token_shards import TokenShards
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.perplexity import score_shards
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.model.config import read_config
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import METRICS, VALIDATION
from vikhr_fast.train.reference import open_reference


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_kl_is_exactly_zero_at_the_first_step_and_training_helps(workspace: Path, tmp_path: Path, dtype: str) -> None:
    output = tmp_path / "run"
    train(make_config(workspace, output, runtime={"dtype": dtype}, schedule={"max_steps": 8}))
    lines = read_lines(output / METRICS)
    assert lines[0]["kl"] == 0.0
    assert lines[1]["kl"] > 0.0
    assert lines[-1]["ce"] < lines[0]["ce"]
    stored = load_file(output / "model" / "model.safetensors")["lm_head.weight"].dtype
    assert stored == {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[dtype]


def test_another_reference(workspace: Path, tmp_path: Path) -> None:
    """The first step's KL against a perturbed reference is the float64 formula's, over the same packed sequences."""
    reference = tmp_path / "reference"
    shutil.copytree(workspace / "model", reference)
    weights = load_file(reference / "model.safetensors")
    weights["lm_head.weight"] += 0.1 * torch.randn(
        weights["lm_head.weight"].shape, generator=torch.Generator().manual_seed(0)
    )
    save_file(weights, reference / "model.safetensors", metadata={"format": "pt"})
    config = make_config(
        workspace,
        tmp_path / "run",
        data={"sequence_length": 400, "epochs": 1},
        batch={"micro_batch": 2, "sequences_per_step": 40},
        kl={"reference": reference},
        schedule={"max_steps": 1},
    )
    train(config)
    [line] = read_lines(tmp_path / "run" / METRICS)

    model, other = (Mistral.from_pretrained(path, torch.float64) for path in (workspace / "model", reference))
    shards = TokenShards.open(workspace / "train")
    divergence = positions = 0.0
    with torch.no_grad():
        for number in range(shards.num_documents):
            text = torch.tensor(shards.document(number).tolist())
            for start in range(0, len(text) - 1, 400):  # a long document's windows
                window = text[start : min(start + 400, len(text) - 1)][None]
                log_p, log_q = (m.logits(m(window)).log_softmax(-1) for m in (model, other))
                divergence += float((log_p.exp() * (log_p - log_q)).sum())
                positions += window.numel()
    assert line["tokens"] == positions
    assert line["kl"] == pytest.approx(divergence / positions, rel=1e-9)
    assert line["kl"] > 1e-3


def test_a_reference_whose_tokenizer_is_damaged_is_refused(workspace: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    shutil.copytree(workspace / "model", reference)
    (reference / "tokenizer.model").write_bytes(b"another")
    config = make_config(workspace, tmp_path / "run", kl={"reference": reference})
    with pytest.raises(InputError, match=r"reference/tokenizer\.model: .* damaged"):
        train(config)
    model = tmp_path / "model"
    shutil.copytree(workspace / "model", model)
    for path in (model, reference):  # as models come that never had a SentencePiece model
        (path / "tokenizer.model").unlink()
        (path / "tokenizer.json").write_text(path.name)
    with pytest.raises(InputError, match=r"/tokenizer\.json: damaged"):
        open_reference(replace(config, model=model), read_config(model), {})


def test_a_model_whose_files_add_words_is_refused(workspace: Path, tmp_path: Path) -> None:
    """transformers would give text other ids than the shards have."""
    model = tmp_path / "model"
    shutil.copytree(workspace / "model", model)
    rows = read_config(model).vocab_size
    (model / "added_tokens.json").write_text(json.dumps({"слово": rows - 1}))
    config = replace(make_config(workspace, tmp_path / "run"), model=model)
    with pytest.raises(InputError, match=r"model: .* add 1 tokens .*'слово'"):
        train(config)


def test_shared_support_needs_and_uses_the_record_of_adaptation(workspace: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(workspace / "model", model)
    (model / "adapt.json").write_text(json.dumps({"base_ids": [0] + [None] * 519}))
    config = make_config(
        workspace, tmp_path / "run", kl={"support": "shared"}, optimizer={"warmup_steps": 0}, schedule={"max_steps": 3}
    )
    train(type(config)(**{**vars(config), "model": model}))
    # A distribution over a single piece cannot diverge.
    assert [line["kl"] for line in read_lines(tmp_path / "run" / METRICS)] == [0.0, 0.0, 0.0]


def test_score_is_the_plain_cross_entropy(workspace: Path) -> None:
    model = Mistral.from_pretrained(workspace / "model", torch.float64)
    shards = TokenShards.open(workspace / "validation")
    score = score_shards(model, shards, window=1000, micro_batch=2, chunk_tokens=64)
    nats = 0.0
    with torch.no_grad():
        for number in range(shards.num_documents):
            text = torch.tensor(shards.document(number).tolist())
            nats += float(F.cross_entropy(model.logits(model(text[None, :-1]))[0], text[1:], reduction="sum"))
    text_bytes = len((workspace / "validation.txt").read_bytes().replace(b"\n\n", b"").rstrip())
    assert score.num_bytes == text_bytes
    assert score.tokens == shards.num_tokens - shards.num_documents
    assert score.loss == pytest.approx(nats / score.tokens, rel=1e-12)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-12)


def test_validation_is_written_at_the_start_when_due_and_at_the_end(workspace: Path, tmp_path: Path) -> None:
    sets = {"held_out": workspace / "validation", "seen": workspace / "train"}
    config = make_config(
        workspace, tmp_path / "run", data={"validation": sets}, schedule={"max_steps": 5, "validate_every": 2}
    )
    model = train(config)
    lines = read_lines(tmp_path / "run" / VALIDATION)
    assert [line["step"] for line in lines] == [0, 2, 4, 5]
    trained = Mistral.from_pretrained(model, torch.float64)
    shards = TokenShards.open(workspace / "validation")
    score = score_shards(trained, shards, window=96, micro_batch=2)
    assert lines[-1]["sets"]["held_out"]["bits_per_byte"] == pytest.approx(score.bits_per_byte, rel=1e-9)
    assert lines[-1]["sets"]["seen"]["bits_per_byte"] < lines[0]["sets"]["seen"]["bits_per_byte"]


def test_validation_takes_windows_of_its_own_and_says_so(workspace: Path, tmp_path: Path) -> None:
    """`vikhr-fast evaluate` reads more at once than training does here: the longer the window, the fewer bits."""
    bits = {}
    for window in (0, 16, 96):
        config = make_config(
            workspace,
            tmp_path / str(window),
            data={"validation": {"held_out": workspace / "validation"}, "validation_window": window},
            schedule={"max_steps": 1},
        )
        model = train(config)
        [line] = read_lines(config.output / VALIDATION)
        score = score_shards(
            Mistral.from_pretrained(model, torch.float64),
            TokenShards.open(workspace / "validation"),
            window=window or 96,
            micro_batch=2,
        )
        assert line["sets"]["held_out"]["window"] == (window or 96)
        bits[window] = line["sets"]["held_out"]["bits_per_byte"]
        assert bits[window] == pytest.approx(score.bits_per_byte, rel=1e-9)
    assert bits[0] == bits[96] != bits[16]


def test_a_validation_window_beyond_the_model_is_refused(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.validation_window: 1024, but .* 512 positions"):
        train(make_config(workspace, tmp_path / "run", data={"validation_window": 1024}))


@pytest.mark.parametrize(("warmup", "warns"), [(3, False), (4, True)])
def test_a_warm_up_longer_than_the_run_is_said(
    workspace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, warmup: int, warns: bool
) -> None:
    changes = {"optimizer": {"learning_rate": 2e-3, "warmup_steps": warmup}, "schedule": {"max_steps": 3}}
    with caplog.at_level("WARNING"):
        train(make_config(workspace, tmp_path / "run", **changes))
    said = "optimizer.warmup_steps: 4, longer than the run of 3: the learning rate only comes to 1.50e-03"
    assert (said in caplog.text) == warns


def test_learning_rate_too_high_ends_with_advice(workspace: Path, tmp_path: Path) -> None:
    config = make_config(
        workspace, tmp_path / "run", optimizer={"learning_rate": 1e300, "warmup_steps": 0, "max_grad_norm": 0}
    )
    with pytest.raises(InputError, match=r"step 6: skipped, as 5 in a row: the loss is nan.* optimizer\.learning_rate"):
        train(config)
    assert not (tmp_path / "run" / "model").exists()


def test_tokens_are_counted_exactly(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batch, "trained_tokens", 2**24 + 1)  # which float32 can't hold
    config = make_config(
        workspace, tmp_path / "run", batch={"micro_batch": 8}, runtime={"dtype": "float32"}, schedule={"max_steps": 1}
    )
    train(config)
    (line,) = read_lines(tmp_path / "run" / METRICS)
    assert line["tokens"] == 2**24 + 1
