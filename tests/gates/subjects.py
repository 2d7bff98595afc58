"""What `fuzz_readers` reads: small valid files of every kind, and the functions that read them."""

import base64
import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from adapting import RUSSIAN
from byte_level import make_tokenizer
from corpora import make_documents
from training_runs import make_workspace

from vikhr_fast.adapt.adapt import Adapt, adapt
from vikhr_fast.chat.conversation import checked_messages
from vikhr_fast.chat.encode import ChatEncoder
from vikhr_fast.config import PRESETS, config_with_gaps, read_toml, require_consistent
from vikhr_fast.corpus import layout
from vikhr_fast.corpus.expressions import Expression
from vikhr_fast.corpus.multipass_dedup import Passes
from vikhr_fast.corpus.settings import DedupStage, read_settings
from vikhr_fast.corpus.stage import read_work
from vikhr_fast.corpus.stats import corpus_page
from vikhr_fast.corpus.train_filter import _read as read_annotations
from vikhr_fast.data.documents import Documents
from vikhr_fast.data.read import Columns, read_objects, read_records, readable_values
from vikhr_fast.data.token_shards import TokenShards
from vikhr_fast.doctor.data import data_findings
from vikhr_fast.doctor.findings import Finding
from vikhr_fast.doctor.model import model_findings
from vikhr_fast.encoder.classifier import Classifier, Scorer
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate import command as evaluation
from vikhr_fast.evaluate.questions import choice_question, inference_question
from vikhr_fast.experiments.ablate.collect import collect
from vikhr_fast.experiments.ablate.page import ablation_page
from vikhr_fast.experiments.grid import read_grid, read_stages
from vikhr_fast.experiments.results import ABLATION
from vikhr_fast.experiments.sample.instructions import write_encoder
from vikhr_fast.experiments.sample.text import USAGE_NAME, read_usage
from vikhr_fast.experiments.works import works_of
from vikhr_fast.inference.batch import chat_of
from vikhr_fast.instruct.preferences import read_pairs
from vikhr_fast.instruct.rejected import Rejected
from vikhr_fast.instruct.reward import RewardModel
from vikhr_fast.instruct.reward_report import reward_page
from vikhr_fast.instruct.schemas import fields_beside, messages_of
from vikhr_fast.io.guarded import read_json
from vikhr_fast.io.manifest import manifest_sha256
from vikhr_fast.io.resumable import is_same_work
from vikhr_fast.io.run_directory import record_run
from vikhr_fast.model.config import read_config
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.model.weights import WeightFiles
from vikhr_fast.plan.command import Plan, estimate
from vikhr_fast.plan.command import _hardware as hardware_of
from vikhr_fast.tokenizer.added_tokens import read_added_tokens, read_roles
from vikhr_fast.tokenizer.export import read_model
from vikhr_fast.tokenizer.extend import ExtendTokenizer, extend_tokenizer
from vikhr_fast.tokenizer.load import load_encoder
from vikhr_fast.tokenizer.tekken import export_tekken

torch.set_num_threads(1)
TEXT = "Утром туман поднялся над рекой.\n\nA <s> word\tof 12 лодок."


class Subject(NamedTuple):
    """A kind of file that others may have written."""

    name: str
    file: Path
    """A valid one, which is changed; others that are read with it lie where they must."""
    read: Callable[[Path], object]
    """Reads the file, or whatever it belongs to."""
    kind: str = "json"
    """How it is changed, see `mutators.mutated`."""
    seal: Callable[[Any], bytes] | None = None
    """Makes the checksum in it fit what was changed; fails where there is none to fit."""


def json_subjects(root: Path) -> list[Subject]:
    """Configurations, indexes, manifests, records and tokenizers' files."""
    return [*_models(root), *_tokenizers(root), *_shards(root), *_documents(root), *_records(root), *_rows(root)]


def _models(root: Path) -> list[Subject]:
    make_workspace(root)
    Mistral.from_pretrained(root / "model").save_pretrained(root / "sharded", max_shard_bytes=20_000)
    write_encoder(root / "tokenizer", root / "encoder")
    preset = config_with_gaps(read_toml(Path("vikhr-7b-pretrain")), "preset", None)

    def config(file: Path) -> None:
        estimate(Plan(), preset, read_config(file.parent))
        Mistral.from_pretrained(file.parent)

    def adapted(file: Path) -> None:
        try:
            adapt(Adapt(base=file.parent, tokenizer=root / "tokenizer", output=root / "adapted"))
        finally:
            for made in root.glob("adapted*"):
                shutil.rmtree(made)

    generation = root / "model" / "generation_config.json"
    generation.write_text('{"bos_token_id": 1, "eos_token_id": [2, 3], "max_length": 20}')
    return [
        Subject("model config", root / "model" / "config.json", config),
        Subject(
            "doctor of a model", root / "model" / "config.json", lambda file: _expected(model_findings(file.parent))
        ),
        Subject("index of weights", root / "sharded" / "model.safetensors.index.json", _read_model),
        Subject("config of a base", root / "model" / "config.json", adapted),
        Subject("generation config", generation, adapted),
        Subject("config of an encoder", root / "encoder" / "config.json", _read_encoder),
        Subject("tokenizer of an encoder", root / "encoder" / "tokenizer.json", _read_encoder),
    ]


def _expected(findings: Iterable[Finding]) -> None:
    """Goes through what the doctor finds, which has a text of its own for whatever was foreseen."""
    for finding in findings:
        assert not re.match(r"\w*(Error|Exception|Interrupt): ", finding.text), finding


def _read_model(file: Path) -> None:
    Mistral.from_pretrained(file.parent)


def _read_encoder(file: Path) -> None:
    scorer = Scorer.load(str(file.parent), device="cpu")
    scorer.score(scorer.encode(16, [TEXT, "x"]))


def _tokenizers(root: Path) -> list[Subject]:
    make_tokenizer(root / "byte-level", RUSSIAN.read_text().split("\n\n")[:20])
    directory = root / "extended"
    shutil.copytree(root / "model", directory)
    (directory / "added_tokens.json").write_text('{"<|tool|>": 520, "<|end_of_tool|>": 521}')

    def byte_level(file: Path) -> None:
        encoder = load_encoder(file.parent)
        encoder.decode(encoder.encode(TEXT).tolist())

    def extended(file: Path) -> None:
        output = root / "grown"
        try:
            extend_tokenizer(ExtendTokenizer(base=file.parent, input=(RUSSIAN,), output=output, vocab_size=440))
        finally:
            shutil.rmtree(output, ignore_errors=True)

    def sentencepiece(file: Path) -> None:
        model = file.parent / "tokenizer.model"
        read_added_tokens(model, [piece.piece for piece in read_model(model).pieces])
        read_roles(file.parent)
        encoder = ChatEncoder(file.parent)
        encoder.tokenizer.decode(encoder.tokenizer.encode(TEXT).tolist())

    tekken = root / "tekken" / "tekken.json"
    tekken.parent.mkdir()
    tokens = [bytes([byte]) for byte in range(256)] + ["он".encode(), "но".encode(), b"  "]
    listed = [{"rank": rank, "token_bytes": base64.b64encode(token).decode()} for rank, token in enumerate(tokens)]
    special = [{"rank": rank, "token_str": token} for rank, token in enumerate(("<unk>", "<s>", "</s>"))]
    config = {
        "pattern": r"\p{L}+|[^\p{L}]",
        "default_vocab_size": 263,
        "default_num_special_tokens": 4,
        "version": "v13",
    }
    tekken.write_text(json.dumps({"config": config, "vocab": listed, "special_tokens": special}))

    def restated(file: Path) -> None:
        with tempfile.TemporaryDirectory() as directory:
            export_tekken(file, Path(directory))
            byte_level(Path(directory) / "tokenizer.json")

    files = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    return [
        Subject("tekken json", tekken, restated),
        Subject("tokenizer json", root / "byte-level" / "tokenizer.json", byte_level),
        Subject("tokenizer config", root / "byte-level" / "tokenizer_config.json", byte_level),
        Subject("base to extend", root / "byte-level" / "tokenizer.json", extended),
        Subject("config of a base to extend", root / "byte-level" / "tokenizer_config.json", extended),
        *(Subject(f"{name} beside a model", directory / name, sentencepiece) for name in files),
        Subject("tokenizer model", directory / "tokenizer.model", sentencepiece, "bytes"),
    ]


def _sealed(manifest: dict[str, Any]) -> bytes:
    return json.dumps({**manifest, "sha256": manifest_sha256(manifest)}).encode()


def _shards(root: Path) -> list[Subject]:
    def read(file: Path) -> None:
        shards = TokenShards.open(file.parent)
        for number in (0, shards.num_documents // 2, shards.num_documents - 1):
            assert len(shards.document(number)) == shards.lengths[number]
            shards.trained(number)

    return [Subject("manifest of shards", root / "train" / "manifest.json", read, seal=_sealed)]


def _documents(root: Path) -> list[Subject]:
    documents = make_documents(root / "made", {"news": ["раз два", "три"], "books": ["четыре"] * 5})
    corpus = root / "corpus"
    shutil.copytree(documents.directory, corpus / layout.COLLECTED)
    notes = {
        layout.TIMES: {"1-collect": 1.5, "2-dedup": 3},
        layout.TOKENS: {"1-collect": {"of": ["a", "b"], "tokens": {"news": 10, "books": 20}}},
        f"{layout.SHARDS}/manifest.json": {"shards": {"train/news": {"tokens": 9, "documents": 2}}},
        f"{layout.CLASSIFIER}/manifest.json": {"work": {"input": "a"}, "quality": {"f1": 0.5, "kept": 3}},
    }
    for name, values in notes.items():
        (corpus / name).parent.mkdir(exist_ok=True)
        (corpus / name).write_text(json.dumps(values))

    def read(file: Path) -> None:
        opened = Documents.open(file.parent)
        sum(table.num_rows for table in opened.tables())
        corpus_page(corpus)

    def page(_: Path) -> None:
        corpus_page(corpus)

    return [
        Subject("manifest of documents", corpus / layout.COLLECTED / "manifest.json", read, seal=_sealed),
        *(Subject(f"corpus {name}", corpus / name, page) for name in notes),
        Subject("work", corpus / layout.CLASSIFIER / "manifest.json", lambda file: read_work(file.parent)),
    ]


def _records(root: Path) -> list[Subject]:
    places = root / "records"
    accuracy = {"accuracy": 0.5, "standard_error": None, "questions": 4}
    pages = {
        "run": ("config.json", {"seed": 1, "data": {"train": {"a": "b"}}}, _read_run),
        "work": ("work.json", {"stage": "dedup", "settings": {"threshold": 0.8, "bands": 20}}, _read_same_work),
        "evaluation": ("task.json", {**accuracy, "chance": 0.25, "subjects": {"law": accuracy}}, _read_task),
        "text": ("text.json", {"bits_per_byte": 1.5, "perplexity": 9.5, "tokens": 4, "num_bytes": 9}, _read_text),
        "reward": ("reward.json", {"maximum_tokens": 16, "rejected": 1, "held_out": _HELD_OUT}, _read_reward),
        "filter": ("filter.json", {"slope": 1.0, "offset": 0.0, "threshold": 0.5, "maximum_tokens": 8}, _read_filter),
        "passes": ("passes.json", {"phase": "add", "part": 0, "index": None, "saved": 0, "passes": 1}, _read_passes),
        "measured": ("results.json", {"ceilings": _CEILINGS}, lambda file: hardware_of(Plan(measured=file))),
        "usage": (USAGE_NAME, {"english": _USAGE}, lambda file: read_usage(file.parent)),
        "ablation": (ABLATION, _ABLATION, lambda file: ablation_page(file.parent)),
        "unit": ("ce.json", {"figures": dict.fromkeys(_COLUMNS, 1.5), "curve": _CURVE}, _read_unit),
        "questions": ("questions.json", [_QUESTION, _QUESTION | {"answer": "B"}, _INFERENCE], _read_questions),
    }
    made = []
    for name, (file, values, read) in pages.items():
        directory = places / name
        shutil.copytree(root / "encoder", directory) if name in ("reward", "filter") else directory.mkdir(parents=True)
        (directory / file).write_text(json.dumps(values))
        made.append(Subject(f"{name} record", directory / file, read))
    return made


_GRID = read_grid(PRESETS / "ablations" / "demo" / "kl.toml")
_COLUMNS = [column.name for column in _GRID.columns]
_HELD_OUT = {
    "pairs": 3, "accuracy": 0.5, "interval": [0.2, 0.8], "length_accuracy": 0.5, "accuracy_chosen_longer": None,
    "accuracy_chosen_shorter": 0.5, "length_correlation": 0.1, "calibration": [[0.5, 0.5, 3]],
}  # fmt: skip
_CEILINGS = {"gemm_flops_per_second": 5e14, "copy_bytes_per_second": 2e12}
_USAGE = {"source": "Python", "available_bytes": 9, "train_bytes": 5, "validation_bytes": 2}
_CURVE = [{"step": 0, "russian": 3.0, "english": 1.0}, {"step": 9, "russian": 1.0, "english": 2.0}]
_FIGURES = {"tokens": {"values": [1.0, 2.0]}, "reward": {"values": [0.5, 0.25]}}
_ABLATION = {
    "format": "vikhr-fast ablation", "version": 1, "name": "kl", "table": 9, "scale": "demo", "title": "KL",
    "text": "news", "seeds": [0, 1], "columns": [{"name": "tokens", "label": "tokens", "digits": 0}],
    "arms": {"ce": {"label": "CE", "figures": _FIGURES}, "ce-kl": {"label": "CE + KL", "figures": _FIGURES}},
    "comparisons": [{"arm": "ce-kl", "against": "ce", "label": "KL", "figures": _FIGURES}], "notes": ["small"],
}  # fmt: skip
_QUESTION = {"question": "Сколько?", "choices": ["один", "два", "все варианты"], "answer": 1, "subject": "счёт"}
_INFERENCE = {"premise": "Дождь идёт.", "hypothesis": "Сухо.", "label": 2}


def _read_run(file: Path) -> None:
    record_run(file.parent, {"seed": 1, "data": {"train": {"a": "b"}}}, may_change=("seed",))


def _read_same_work(file: Path) -> None:
    is_same_work(read_json(file), {"stage": "dedup", "settings": asdict(DedupStage())}, DedupStage())


def _read_task(file: Path) -> None:
    evaluation._print_tables({"tasks": {"ruxnli": evaluation._read(file, evaluation._TASK)}, "texts": {}})


def _read_text(file: Path) -> None:
    result = {"window": 1024, **evaluation._read(file, evaluation._TEXT)}
    evaluation._print_tables({"tasks": {}, "texts": {"news": result}})


def _read_reward(file: Path) -> None:
    reward_page(file.parent)
    RewardModel.load(file.parent, "cpu")


def _read_filter(file: Path) -> None:
    Classifier.load(file.parent, "cpu").probabilities([TEXT], 100)


def _read_passes(file: Path) -> None:
    Passes([], DedupStage(), file.parent, 1e9, 1)


def _read_unit(file: Path) -> None:
    collect(_GRID, "demo", {name: [file] for name in _GRID.arms})


def _read_questions(file: Path) -> None:
    for _, row in read_objects(file, _note):
        _tried([choice_question, inference_question], row)


def _note(_path: Path, _number: int, error: InputError) -> None:
    assert "\n" not in str(error)


def _tried(functions: Iterable[Callable[[Any], object]], row: Any) -> None:
    for function in functions:
        with contextlib.suppress(InputError):
            function(row)


def _rows(root: Path) -> list[Subject]:
    said = [{"role": "user", "content": "Да?"}, {"role": "assistant", "content": "Нет.", "weight": 1}]
    nectar = "\n\nHuman: Да?\n\nAssistant:"
    rows = [
        {"id": "a", "source": "s", "language": "ru", "messages": said, "system": "Молчи."},
        {"conversations": [{"from": "human", "value": "Да?"}, {"from": "gpt", "value": "Нет."}], "text": "раз"},
        {"instruction": "Да?", "input": "x", "output": "Нет.", "history": [["a", "b"]], "text": "два", "votes": 3},
        {"prompt": "Да?", "chosen": said, "rejected": "Да.", "text": "три"},
        {"prompt": nectar, "answers": [{"answer": "Нет.", "rank": 1}, {"answer": "Да.", "rank": 2}]},
        {"hash": "a", "id": "b", "source": "c", "text": "d", "scores": {"grammar": 4, "style": 5}},
    ]
    lines = root / "rows.jsonl"
    lines.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    whole = root / "rows.json"
    whole.write_text(json.dumps(rows))
    notes = root / "annotations.jsonl"
    notes.write_text("\n".join(json.dumps(row) for row in rows[-1:] * 3))

    def read(file: Path) -> None:
        for _, row in read_objects(file, _note, 1 << 20):
            _tried([lambda row: checked_messages(messages_of(row)), fields_beside, chat_of, readable_values], row)
        list(read_pairs([file], ("prompt", "chosen", "rejected"), Rejected()))
        if file.suffix == ".jsonl":
            list(read_records([file], Columns(("text",), ("votes", "id")), _note, 1 << 20))

    return [
        Subject("rows of json", whole, read),
        Subject("doctor of rows", lines, lambda file: _expected(data_findings(file)), "lines"),
        Subject("rows of jsonl", lines, read, "lines"),
        Subject("annotations", notes, lambda file: read_annotations(file, 3.0), "lines"),
    ]


CORPUS = """part_bytes = 65536
[sources.articles]
input = ["a/*.jsonl"]
text = ["title", "body"]
where = "language == 'ru' and votes > 10"
sort_by = "votes"
top = 100
[sources.replay]
input = ["b.txt"]
where = "len(text) > 3"
sort_by = "abs(votes)"
weight = 0.5
kl_weight = 2.0
[collect]
normalise = "NFC"
max_line = 64.0
[dedup]
threshold = 0.8
num_perm = 120
[scrub]
kinds = ["email", "phone"]
[decontaminate.sets.ru-mmlu]
input = ["ru-mmlu/*.jsonl"]
[annotate]
model = "MODEL"
documents = 100
[train_filter]
retention = 0.8
[filter]
[mix]
tokenizer = "TOK"
"""


def toml_subjects(root: Path) -> list[Subject]:
    """Configurations of trainings and corpora, and grids."""
    grids = root / "grids"
    shutil.copytree(PRESETS / "ablations" / "demo", grids)
    shutil.copytree(PRESETS / "demo", root / "demo")
    (root / "train.toml").write_text((PRESETS / "vikhr-7b-pretrain.toml").read_text())
    (root / "corpus.toml").write_text(CORPUS)
    stages = sorted(path for path in grids.glob("*.toml") if "include" not in path.read_text())

    def training(file: Path) -> None:
        require_consistent(config_with_gaps(read_toml(file), str(file), None))

    def corpus(file: Path) -> None:
        settings = read_settings(file)
        for name, source in settings.sources.items():
            for text in filter(None, (source.where, source.sort_by)):
                expression = Expression(text, name)
                for record in ({"text": "а" * 1000, "votes": 4_000_000, "language": "ru"}, {"votes": None, "text": ""}):
                    _tried([expression], record)

    def grid(file: Path) -> None:
        found = read_grid(file)
        works_of(found, root / "out", dict.fromkeys(found.inputs, "x"), range(2))

    return [
        Subject("training config", root / "train.toml", training, "toml"),
        Subject("corpus config", root / "corpus.toml", corpus, "toml"),
        Subject("grid", grids / "kl.toml", grid, "toml"),
        Subject("grid of instructions", grids / "instruct.toml", grid, "toml"),
        *(Subject(f"stages {path.stem}", path, read_stages, "toml") for path in stages),
        Subject("stages of the demo", root / "demo" / "stages.toml", read_stages, "toml"),
    ]


def safetensors_subjects(root: Path) -> list[Subject]:
    """Weights, whole and in shards."""
    make_workspace(root)
    Mistral.from_pretrained(root / "model").save_pretrained(root / "sharded", max_shard_bytes=40_000)

    def every(file: Path) -> None:
        files = WeightFiles(file.parent)
        for name in files.tensors:
            files.read_finite(name)

    return [
        Subject("weights", root / "model" / "model.safetensors", _read_model, "safetensors"),
        Subject("tensors", root / "model" / "model.safetensors", every, "safetensors"),
        Subject("shard", min((root / "sharded").glob("*.safetensors")), every, "safetensors"),
    ]
