"""`vikhr-fast evaluate`: benchmarks and texts, into a run directory that can be taken up again."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import rich
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional

import vikhr_kernels
from vikhr_fast.companions import tokenizer_file
from vikhr_fast.corpus.chat import AnswerLog
from vikhr_fast.corpus.shard import Shard, write_shards
from vikhr_fast.corpus.sources import checksum, source_files
from vikhr_fast.corpus.stage import counted, write_notes
from vikhr_fast.corpus.token_shards import TokenShards
from vikhr_fast.devices import Device, device_of
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.perplexity import score_shards
from vikhr_fast.evaluate.questions import BENCHMARK_NAMES, questions_sha256
from vikhr_fast.files import sha256_of, write_text
from vikhr_fast.model import Mistral
from vikhr_fast.run_directory import locked, record_run
from vikhr_fast.tokenizer.load import load_encoder
from vikhr_kernels import reference

REQUESTS, RESULTS = "requests.jsonl", "results.json"


@dataclass(frozen=True)
class Evaluate:
    """Asks a model the questions of benchmarks, and measures how well it predicts texts (paper, section 4).

    Writes a file for each task, OUTPUT/results.json with all, OUTPUT/TASK.answers.jsonl with every choice. An
    interrupted evaluation is taken up again by the same command, question by question. The benchmarks need the extra
    `eval`.
    `vikhr-fast evaluate translate` makes the Russian benchmarks of English ones.
    """

    model: Annotated[Path, Positional]
    """Hugging Face directory with tokenizer."""
    output: Path
    """Run directory."""
    tasks: tuple[str, ...] = ()
    """Benchmarks, NAME=SOURCE: ruxnli (also as a choice of letters), ru_mmlu, ru_mmlu_pro. SOURCE is a file (.json,
    .jsonl, .parquet), a pattern, or raw files of a data set of the Hub, hf:OWNER/NAME@COMMIT:PATTERN."""
    text: tuple[str, ...] = ()
    """Texts to predict, NAME=SOURCE (.txt, .jsonl, .parquet): perplexity and bits per byte."""
    seed: int = 0
    """Of the order in which ru_mmlu_pro shows the options."""
    sequence_length: int = 1024
    """Tokens of a text that are read at once; longer documents are cut into such windows."""
    batch: int = 8
    """Questions, or windows, computed at once."""
    device: Device = "auto"
    """auto is CUDA, in bfloat16, where there is a GPU."""


def evaluate(options: Evaluate) -> None:
    """Fills the run directory and prints a table.

    Raises:
        InputError: a model, questions or texts that cannot be used, each before anything is computed; a run directory
            of another evaluation.
    """
    for flag, value, least in (("--batch", options.batch, 1), ("--sequence-length", options.sequence_length, 2)):
        if value < least:
            raise InputError(f"{flag} {value}: must be {least} or more")
    sources, texts = _named("--tasks", options.tasks), _named("--text", options.text)
    if not sources and not texts:
        raise InputError("nothing to evaluate; give --tasks NAME=SOURCE or --text NAME=SOURCE")
    if unknown := sorted(sources.keys() - set(BENCHMARK_NAMES)):
        raise InputError(f"--tasks {', '.join(unknown)}: must be of {', '.join(BENCHMARK_NAMES)}")
    questions: dict[str, list[dict[str, Any]]] = {}
    if sources:
        try:
            from vikhr_fast.evaluate.benchmarks import benchmark_questions
        except ImportError as error:
            raise InputError(f"--tasks: needs {error.name}; pip install 'vikhr-fast[eval]'") from None
        questions = {name: benchmark_questions(name, source, options.seed) for name, source in sources.items()}
    files = {name: source_files(source) for name, source in texts.items()}
    config = {
        "model": _identity(options.model),
        "device": str(device_of(options.device)[0]),
        "seed": options.seed,
        "sequence_length": options.sequence_length,
        "tasks": {
            name: {"source": str(sources[name]), "sha256": questions_sha256(own)} for name, own in questions.items()
        },
        "texts": {
            name: {"source": str(texts[name]), "sha256": [checksum(file) for file in own]}
            for name, own in files.items()
        },
    }
    with locked(options.output):
        record_run(options.output, config)
        model = cache(partial(_open_model, options))
        results = {"tasks": _tasks(options, questions, model), "texts": _texts(options, files, model)}
        write_text(options.output / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    for table in result_tables(results):
        rich.print(table)


def result_tables(results: dict[str, Any]) -> list[Table]:
    """What results.json says, for the terminal."""
    tables = []
    if results["tasks"]:
        table = _table("benchmark", "accuracy@1", "± standard error", "chance", "questions")
        for name, result in results["tasks"].items():
            table.add_row(name, *_shares(result), f"{result['chance']:.3f}", f"{result['questions']:,}")
        tables.append(table)
    for name, result in results["tasks"].items():
        if len(result["subjects"]) > 1:
            table = _table(f"{name}: subject", "accuracy@1", "± standard error", "questions")
            for subject, own in result["subjects"].items():
                table.add_row(escape(subject), *_shares(own), f"{own['questions']:,}")
            tables.append(table)
    if results["texts"]:
        table = _table("text", "bits per byte", "perplexity a token", "tokens", "bytes")
        for name, own in results["texts"].items():
            figures = f"{own['bits_per_byte']:.4f}", f"{own['perplexity']:.2f}", f"{own['tokens']:,}"
            table.add_row(escape(name), *figures, f"{own['num_bytes']:,}")
        tables.append(table)
    return tables


def _table(first: str, *columns: str) -> Table:
    table = Table(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _shares(result: dict[str, Any]) -> tuple[str, str]:
    error = result["standard_error"]
    return f"{result['accuracy']:.3f}", "-" if error is None else f"{error:.3f}"


def _open_model(options: Evaluate) -> Mistral:
    place, dtype = device_of(options.device)
    ops = vikhr_kernels if place.type == "cuda" else reference
    model = Mistral.from_pretrained(options.model, dtype, place, ops=ops).requires_grad_(False)
    if load_encoder(options.model).vocab_size > model.config.vocab_size:
        raise InputError(f"{options.model}: the tokenizer has more pieces than the model rows; give its own tokenizer")
    return model


def _tasks(
    options: Evaluate, questions: dict[str, list[dict[str, Any]]], model: Callable[[], Mistral]
) -> dict[str, Any]:
    """The results of all tasks; those that are in the run directory aren't computed again."""
    if not questions:
        return {}
    from vikhr_fast.evaluate.benchmarks import BENCHMARKS, harness_task, run_task
    from vikhr_fast.evaluate.harness import HarnessModel

    results: dict[str, Any] = {}
    with AnswerLog(options.output / REQUESTS) as log:
        for benchmark, own in questions.items():
            for name, description in BENCHMARKS[benchmark].descriptions.items():
                path = options.output / f"{name}.json"
                if not path.exists():
                    harness = HarnessModel(model(), load_encoder(options.model), log, options.batch)
                    with counted(name, len(own)) as harness.advance:
                        result, chosen = run_task(harness_task(name, description, own), harness)
                    write_notes(options.output / f"{name}.answers.jsonl", chosen)
                    write_text(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
                results[name] = json.loads(path.read_bytes())
    return results


def _texts(options: Evaluate, files: dict[str, list[Path]], model: Callable[[], Mistral]) -> dict[str, Any]:
    """The scores of all texts; those that are in the run directory aren't computed again."""
    results: dict[str, Any] = {}
    for name, own in files.items():
        path = options.output / f"text-{name}.json"
        if not path.exists():
            shards = options.output / "shards" / name
            if not shards.exists():
                write_shards(Shard(input=tuple(own), tokenizer=options.model, output=shards))
            score = score_shards(
                model(),
                TokenShards.open(shards),
                sequence_length=min(options.sequence_length, model().config.max_position_embeddings),
                micro_batch=options.batch,
            )
            values = {**asdict(score), "perplexity": math.exp(score.loss)}
            write_text(path, json.dumps(values, indent=2) + "\n")
        results[name] = json.loads(path.read_bytes())
    return results


def _named(flag: str, values: tuple[str, ...]) -> dict[str, Path]:
    """NAME=SOURCE, each name once."""
    found: dict[str, Path] = {}
    for value in values:
        name, equals, source = value.partition("=")
        if not equals or not source or not re.fullmatch(r"[\w-]+", name) or name in found:
            raise InputError(f"{flag} {value}: must be NAME=SOURCE, a name of letters, digits, - and _ only once")
        found[name] = Path(source)
    return found


def _identity(model: Path) -> dict[str, Any]:
    """What tells models apart without reading all of their weights."""
    tokenizer = tokenizer_file(model)
    if tokenizer is None or not (model / "config.json").is_file():
        raise InputError(f"{model}: no model with its tokenizer; give a Hugging Face directory")
    weights = {
        file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(model.glob("*.safetensors"))
    }
    hashes = {file.name: sha256_of(file) for file in (model / "config.json", tokenizer)}
    return {"directory": str(model), "weights": weights, **hashes}
