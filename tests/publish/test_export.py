"""A run's checkpoint becomes the model that the run itself would have written."""

import dataclasses
import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt
from safetensors.torch import load_file
from training_runs import make_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from vikhr_fast.config import TrainConfig
from vikhr_fast.distributed.ranks import process_group
from vikhr_fast.errors import InputError
from vikhr_fast.model.config import read_config
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.publish.export import Export, export_checkpoint
from vikhr_fast.tokenizer import BpeEncoder
from vikhr_fast.train.inputs import open_inputs, record_inputs
from vikhr_fast.train.loop import Training, train
from vikhr_fast.train.signals import Interruption


def small_run(workspace: Path, output: Path, **changes: Any) -> TrainConfig:
    schedule = {"max_steps": 4, "checkpoint_every": 2}
    return make_config(workspace, output, **{"runtime": {"dtype": "bfloat16"}, "schedule": schedule, **changes})


@pytest.mark.parametrize(("base", "master"), [("model", "float32"), ("model", "split"), ("tied", "split")])
def test_the_last_checkpoint_is_the_final_model(workspace: Path, tmp_path: Path, base: str, master: str) -> None:
    train(small_run(workspace, tmp_path / "run", model=base, optimizer={"master": master}))
    assert export_checkpoint(Export(tmp_path / "run", tmp_path / "model")) == tmp_path / "model"
    exported, final = (load_file(p / "model.safetensors") for p in (tmp_path / "model", tmp_path / "run" / "model"))
    assert exported.keys() == final.keys()
    assert all(torch.equal(exported[name], final[name]) for name in final)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert read_config(tmp_path / "model") == read_config(workspace / base)
    head = "model.embed_tokens.weight" if base == "tied" else "lm_head.weight"
    assert torch.equal(loaded.lm_head.weight, final[head])
    assert ("lm_head.weight" in exported) == (base != "tied")
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("слово").input_ids
    card = (tmp_path / "model" / "README.md").read_text()
    assert "4 steps" in card
    assert "frozen copy of itself" in card


def test_the_card_shows_every_name_as_it_is(workspace: Path, tmp_path: Path) -> None:
    train(small_run(workspace, tmp_path / "run"))
    record = tmp_path / "run" / "config.json"
    settings = json.loads(record.read_text())
    model, reference = tmp_path / "__base__ `$x_{$` <b>", "a|b*c*&lt;"
    model.symlink_to(settings["model"])
    settings |= {"model": str(model), "kl": {**settings["kl"], "reference": reference}}
    settings["data"]["train"] = dict.fromkeys(["| `a` |", "[x](y)", "_z_\n\n# heading"], "")
    record.write_text(json.dumps(settings))
    export_checkpoint(Export(tmp_path / "run", tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = parser.parse(card.split("---\n", 2)[2])
    said = ["".join(child.content for child in token.children or []) for token in tokens if token.type == "inline"]
    assert any(f"All weights of {model.name} were trained further" in text for text in said)
    assert any(f"KL divergence to {reference}" in text for text in said)
    assert "| `a` |, [x](y), _z_ # heading".replace(" # ", "  # ") in said
    assert [token.content for token in tokens if token.type.startswith("html")] == []
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1", "h2", "h2"]


def test_it_is_trained_on_from_there(workspace: Path, tmp_path: Path) -> None:
    train(small_run(workspace, tmp_path / "run"))
    export_checkpoint(Export(tmp_path / "run", tmp_path / "model", step=2, dtype="float32"))
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert {value.dtype for value in exported.values()} == {torch.float32}
    final = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert not torch.equal(exported["lm_head.weight"].bfloat16(), final["lm_head.weight"])
    again = small_run(workspace, tmp_path / "again")
    values = {**again.__dict__, "model": tmp_path / "model"}
    assert train(TrainConfig(**values)).exists()


@pytest.mark.parametrize("master", ["float32", "split"])
def test_a_checkpoint_goes_out_and_back_bit_for_bit(workspace: Path, tmp_path: Path, master: str) -> None:
    """Exported masters, begun with again and saved as a checkpoint, are the same masters."""
    train(small_run(workspace, tmp_path / "run", optimizer={"master": master}))
    export_checkpoint(Export(tmp_path / "run", tmp_path / "out", dtype="float32"))
    config = small_run(workspace, tmp_path / "again", optimizer={"master": master})
    config = dataclasses.replace(config, model=tmp_path / "out")
    inputs = open_inputs(config)
    record_inputs(config, inputs)
    with process_group(config.runtime) as ranks:
        training = Training(config, inputs, ranks, Interruption())
        with closing(training.checkpoints) as checkpoints:
            # there is none before the first step
            checkpoints.save(training.step.optimizer, dataclasses.replace(training.state, step=1))
            checkpoints.finish()
    export_checkpoint(Export(tmp_path / "again", tmp_path / "back", dtype="float32"))
    out, back = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "back"))
    assert all(torch.equal(out[name], back[name]) for name in out)
    assert any(not torch.equal(value, value.bfloat16().float()) for value in out.values())  # or nothing was lost


TASK = """task: words
output_type: multiple_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.mark.slow
def test_lm_eval_loads_it(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    train(small_run(workspace, tmp_path / "run"))
    export_checkpoint(Export(tmp_path / "run", tmp_path / "model"))
    model = Mistral.from_pretrained(tmp_path / "model")
    encoder = BpeEncoder.from_file(tmp_path / "model" / "tokenizer.model")
    documents = [{"text": text, "choices": ["да", "нет, никогда"], "answer": 0} for text in ("Он пришёл", "Снег шёл")]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(d, ensure_ascii=False) + "\n" for d in documents))
    (tmp_path / "words.yaml").write_text(TASK.format(file=tmp_path / "test.jsonl"))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    loaded = f"pretrained={tmp_path / 'model'},add_bos_token=True"
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", loaded, "--tasks", "words",
        "--include_path", str(tmp_path), "--device", "cpu", "--batch_size", "1",
        "--output_path", str(tmp_path / "results"), "--log_samples",
    ]  # fmt: skip
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-4000:]
    samples = next((tmp_path / "results").rglob("samples_words_*.jsonl")).read_text().splitlines()
    assert len(samples) == 2
    for sample in map(json.loads, samples):
        for choice, (score, _) in zip(sample["doc"]["choices"], (r[0] for r in sample["resps"]), strict=True):
            context, whole = (
                encoder.encode(text) for text in (sample["doc"]["text"], f"{sample['doc']['text']} {choice}")
            )
            ids = torch.tensor([[encoder.bos_id, *whole]])
            logits = model.logits(model(ids))[0, len(context) : -1].log_softmax(-1)
            expected = logits.gather(-1, ids[0, len(context) + 1 :, None]).sum().detach()
            assert float(score) == pytest.approx(float(expected), rel=2e-2)


def test_what_is_not_there_is_named(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config.json: no such file; give the --output of a training run"):
        export_checkpoint(Export(tmp_path, tmp_path / "model"))
    train(small_run(workspace, tmp_path / "run"))
    with pytest.raises(InputError, match=r"no checkpoint of step 3; there are 2, 4"):
        export_checkpoint(Export(tmp_path / "run", tmp_path / "model", step=3))
    part = next((tmp_path / "run" / "checkpoints" / "step-00000004").glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(InputError, match="its checksum differs"):
        export_checkpoint(Export(tmp_path / "run", tmp_path / "model"))
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    for damaged in ({}, settings | {"kl": None}, settings | {"inputs": {"train": []}}, {"model": settings["model"]}):
        (tmp_path / "run" / "config.json").write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=r"config.json: damaged"):
            export_checkpoint(Export(tmp_path / "run", tmp_path / "model", step=2))
    assert not (tmp_path / "model").exists()
