"""`vikhr-fast evaluate`: benchmarks and texts, into a run directory that can be taken up again."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import StrictFloat, StrictInt
from rich.table import Table
from tyro.conf import Positional

import vikhr_kernels
from vikhr_fast.config import validated
from vikhr_fast.corpus.shard import Shard, write_shards
from vikhr_fast.data.sources import checksum, named_sources, source_files
from vikhr_fast.data.text_lines import MAX_MEGABYTES, line_bytes
from vikhr_fast.data.token_shards import TokenShards
from vikhr_fast.errors import InputError, require
from vikhr_fast.evaluate.perplexity import score_shards
from vikhr_fast.evaluate.questions import BENCHMARK_NAMES, CHANGES, BenchmarkQuestions, questions_sha256
from vikhr_fast.io.console import PlainConsole
from vikhr_fast.io.files import sha256_of, write_json, write_json_lines
from vikhr_fast.io.guarded import read_json
from vikhr_fast.io.progress import progress_bar
from vikhr_fast.io.run_directory import locked, record_run
from vikhr_fast.llm.answer_log import AnswerLog
from vikhr_fast.model.devices import Device, device_of
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer.files import tokenizer_file
from vikhr_fast.tokenizer.load import load_encoder
from vikhr_kernels import reference

REQUESTS, RESULTS = "requests.jsonl", "results.json"


@dataclass(frozen=True)
class Evaluate:
    """Asks a model the questions of benchmarks, and measures how well it predicts texts (paper, section 4).

    Writes a file for each task, OUTPUT/results.json with all, OUTPUT/TASK.answers.jsonl with every choice, and
    OUTPUT/BENCHMARK.rejected.jsonl with questions that can't be answered, and why. An
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
    keep_order: bool = False
    """Shows the options of all questions as they are; otherwise of those alone that name letters, or mean others as
    "all of the above" does."""
    max_line: float = MAX_MEGABYTES
    """MB that a line of a text, or a document of a .txt file, may take; a longer one is refused."""
    sequence_length: int = 1024
    """Tokens of a text that are read at once; longer documents are cut into such windows."""
    batch: int = 8
    """Questions, or windows, computed at once."""
    device: Device = "auto"
    """auto is CUDA, in bfloat16, where there is a GPU."""


_ADVICE = "remove it and run the same command again"


@dataclass(frozen=True)
class _Accuracy:
    accuracy: StrictFloat
    standard_error: StrictFloat | None
    questions: StrictInt


@dataclass(frozen=True)
class _Task(_Accuracy):
    chance: StrictFloat
    subjects: dict[str, _Accuracy]
    kept_in_order: StrictInt = 0
    stripped: StrictInt = 0
    rejected: StrictInt = 0


@dataclass(frozen=True)
class _Text:
    bits_per_byte: StrictFloat
    perplexity: StrictFloat
    tokens: StrictInt
    num_bytes: StrictInt


_TASK, _TEXT = pydantic.TypeAdapter(_Task), pydantic.TypeAdapter(_Text)


def evaluate(options: Evaluate) -> None:
    """Fills the run directory and prints a table.

    Raises:
        InputError: a model, questions or texts that cannot be used, each before anything is computed; a run directory
            of another evaluation.
    """
    require(
        options,
        batch=(options.batch >= 1, "1 or more"),
        sequence_length=(options.sequence_length >= 2, "2 or more"),
    )
    line_bytes(options)
    sources, texts = named_sources("--tasks", options.tasks), named_sources("--text", options.text)
    if not sources and not texts:
        raise InputError("nothing to evaluate; give --tasks NAME=SOURCE or --text NAME=SOURCE")
    if unknown := sorted(sources.keys() - set(BENCHMARK_NAMES)):
        raise InputError(f"--tasks {', '.join(unknown)}: must be of {', '.join(BENCHMARK_NAMES)}")
    found: dict[str, BenchmarkQuestions] = {}
    if sources:
        try:
            from vikhr_fast.evaluate.benchmarks import benchmark_questions
        except ImportError as error:
            raise InputError(f"--tasks: needs {error.name}; pip install 'vikhr-fast[eval]'") from None
        order = (options.seed, options.keep_order)
        found = {name: benchmark_questions(name, source, *order) for name, source in sources.items()}
    files = {name: source_files(source) for name, source in texts.items()}
    config = {
        "model": _identity(options.model),
        "device": str(device_of(options.device)[0]),
        "seed": options.seed,
        "keep_order": options.keep_order,
        "sequence_length": options.sequence_length,
        "tasks": {
            name: {"source": str(sources[name]), "sha256": questions_sha256(own.asked)} for name, own in found.items()
        },
        "texts": {
            name: {"source": str(texts[name]), "sha256": list(map(checksum, own))} for name, own in files.items()
        },
    }
    with locked(options.output):
        defaults = {name: getattr(Evaluate, name) for name in ("seed", "keep_order", "sequence_length")}
        record_run(options.output, config, defaults=defaults)
        model = cache(partial(_open_model, options))
        results = {"tasks": _tasks(options, found, model), "texts": _texts(options, files, model)}
        write_json(options.output / RESULTS, results)
    _print_tables(results)


def _print_tables(results: dict[str, Any]) -> None:
    """What results.json says."""
    tasks, texts = results["tasks"], results["texts"]
    shares = ("accuracy@1", "± standard error")
    rows: list[tuple[str, ...]]
    if tasks:
        rows = [(name, *_shares(own), f"{own['chance']:.3f}", f"{own['questions']:,}") for name, own in tasks.items()]
        _print_table(("benchmark", *shares, "chance", "questions"), rows)
    if changed := changes_of(tasks):
        _print_table(("benchmark", *CHANGES.values()), changed)
    for name, result in tasks.items():
        if len(result["subjects"]) > 1:
            own = result["subjects"].items()
            rows = [(subject, *_shares(found), f"{found['questions']:,}") for subject, found in own]
            _print_table((f"{name}: subject", *shares, "questions"), rows)
    if texts:
        counts = ("tokens", "num_bytes", "window")
        rows = [
            (name, f"{own['bits_per_byte']:.4f}", f"{own['perplexity']:.2f}", *(f"{own[key]:,}" for key in counts))
            for name, own in texts.items()
        ]
        _print_table(("text", "bits per byte", "perplexity a token", "tokens", "bytes", "tokens a window"), rows)


def changes_of(tasks: dict[str, Any]) -> list[tuple[str, ...]]:
    """By task how often each of `CHANGES` was made, of those where any was; earlier versions counted none."""
    counts = {name: [result.get(key, 0) for key in CHANGES] for name, result in tasks.items()}
    return [(name, *(f"{count:,}" for count in own)) for name, own in counts.items() if any(own)]


def _print_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(header[0])
    for column in header[1:]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    PlainConsole().print(table)


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


def _tasks(options: Evaluate, questions: dict[str, BenchmarkQuestions], model: Callable[[], Mistral]) -> dict[str, Any]:
    """The results of all tasks; those that are in the run directory aren't computed again."""
    if not questions:
        return {}
    from vikhr_fast.evaluate.benchmarks import BENCHMARKS, harness_task, run_task
    from vikhr_fast.evaluate.harness import HarnessModel

    results: dict[str, Any] = {}
    with AnswerLog(options.output / REQUESTS) as log:
        for benchmark, (own, counts, rejected) in questions.items():
            if rejected:
                write_json_lines(options.output / f"{benchmark}.rejected.jsonl", rejected)
            for name, description in BENCHMARKS[benchmark].descriptions.items():
                path = options.output / f"{name}.json"
                if not path.exists():
                    harness = HarnessModel(model(), load_encoder(options.model), log, options.batch)
                    with progress_bar(name, len(own)) as harness.advance:
                        result, chosen = run_task(harness_task(name, description, own), harness)
                    write_json_lines(options.output / f"{name}.answers.jsonl", chosen)
                    write_json(path, {**result, **counts})
                results[name] = _read(path, _TASK)
    return results


def _texts(options: Evaluate, files: dict[str, list[Path]], model: Callable[[], Mistral]) -> dict[str, Any]:
    """The scores of all texts; those that are in the run directory aren't computed again."""
    results: dict[str, Any] = {}
    for name, own in files.items():
        path = options.output / f"text-{name}.json"
        if not path.exists():
            shards = options.output / "shards" / name
            if not shards.exists():
                write_shards(Shard(input=tuple(own), tokenizer=options.model, output=shards, max_line=options.max_line))
            length = min(options.sequence_length, model().config.max_position_embeddings)
            opened = TokenShards.open(shards)
            score = score_shards(model(), opened, window=length, micro_batch=options.batch)
            write_json(path, {**asdict(score), "perplexity": score.perplexity(f"{options.model}: {name}")})
        results[name] = {"window": options.sequence_length, **_read(path, _TEXT)}  # earlier versions didn't write it
    return results


def _read(path: Path, kind: pydantic.TypeAdapter[Any]) -> dict[str, Any]:
    """A result, all of it; InputError where it lacks what the table shows."""
    values = read_json(path, _ADVICE)
    validated(kind, values, f"{path}: damaged", _ADVICE)
    return values


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
