"""What a demo's runs came to: read from their directories, printed as a table, kept as JSON."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pydantic
from rich.console import Console
from rich.table import Table

from vikhr_fast.config import validated
from vikhr_fast.corpus.read import read_documents
from vikhr_fast.demo.comparison import Comparison, Curve, compare, mean_and_error, read_curve, verdict
from vikhr_fast.demo.paths import DemoPaths
from vikhr_fast.demo.text import ENGLISH, RUSSIAN, TextUse, read_usage
from vikhr_fast.demo.tuning import Tuning, collect_tuning
from vikhr_fast.errors import InputError
from vikhr_fast.files import write_text
from vikhr_fast.tokenizer import BpeEncoder
from vikhr_fast.tokenizer.export import MODEL_NAME
from vikhr_fast.tokenizer.report import EXAMPLE

LABELS = {
    "base": "base",
    "adapted": "adapted",
    "cpt": "CPT",
    "cpt-kl": "CPT + KL",
    "cpt-kl-shared": "CPT + KL, shared pieces",
}
"""The models that are compared, in the order in which they come to be."""
KL_RUNS = ("cpt-kl", "cpt-kl-shared")
"""Each is compared with the run without KL, cpt."""
PROMPT = "В небольшом городе на берегу реки"
_CONTINUATION = 32  # tokens


@dataclass(frozen=True)
class Scores:
    """Bits per byte on held-out text, the same for every model."""

    russian: float
    english: float


@dataclass(frozen=True)
class SeedResult:
    """One seed's runs."""

    seed: int
    scores: dict[str, Scores]
    """By the names of `LABELS`."""
    comparisons: dict[str, Comparison]
    """Of each of `KL_RUNS` with the run without KL."""


@dataclass(frozen=True)
class Results:
    """All that the table, the page and results.json say."""

    seeds: tuple[SeedResult, ...]
    tokens_per_word: dict[str, dict[str, float]]
    """By tokenizer, then by language of the held-out text; words are what stands between spaces."""
    segments: dict[str, tuple[str, ...]]
    """`EXAMPLE` in the pieces of each tokenizer."""
    continuations: dict[str, str]
    """What the models of seed 0 write after `PROMPT`, by the names of `LABELS`."""
    text: dict[str, TextUse]
    tuning: Tuning

    def verdict(self, run: str) -> str:
        """In one sentence, how one of `KL_RUNS` compares with the run without KL."""
        return verdict(LABELS[run], [result.comparisons[run] for result in self.seeds])

    def score(self, model: str, language: str) -> tuple[float, float | None]:
        """Mean bits per byte of a model over the seeds, and its standard error where there are several."""
        return mean_and_error([float(getattr(result.scores[model], language)) for result in self.seeds])


def collect_results(paths: DemoPaths, seeds: int) -> Results:
    """Reads the finished stages of seeds 0 to `seeds` - 1.

    Raises:
        InputError: a stage's output is damaged.
    """
    encoders = {name: BpeEncoder.from_file(paths.tokenizer(name) / MODEL_NAME) for name in (ENGLISH, RUSSIAN)}
    held_out = {
        language: [document.text for document in read_documents([paths.text_file(language, "validation")])]
        for language in (RUSSIAN, ENGLISH)
    }
    tokens_per_word = {
        name: {language: _tokens_per_word(encoder, texts) for language, texts in held_out.items()}
        for name, encoder in encoders.items()
    }
    segments = {
        name: tuple(encoder.piece(index) for index in encoder.encode(EXAMPLE).tolist())
        for name, encoder in encoders.items()
    }
    return Results(
        seeds=tuple(_seed_result(paths, seed) for seed in range(seeds)),
        tokens_per_word=tokens_per_word,
        segments=segments,
        continuations={name: _continue(paths.model(0, name)) for name in LABELS if name != "base"},
        text=read_usage(paths.text),
        tuning=collect_tuning(paths),
    )


def write_results(path: Path, results: Results) -> None:
    """Keeps the results as JSON, with the comparisons' means, standard errors and verdicts."""
    values = asdict(results)
    values["english_at_equal_russian"] = {}
    for run in KL_RUNS:
        differences = [result.comparisons[run].difference for result in results.seeds]
        mean, error = mean_and_error(differences)
        values["english_at_equal_russian"][run] = {
            "differences": differences,
            "mean": mean,
            "standard_error": error,
            "verdict": results.verdict(run),
        }
    write_text(path, json.dumps(values, ensure_ascii=False, indent=2) + "\n")


def read_results(path: Path) -> Results:
    """What `write_results` wrote; InputError where it didn't."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file: the demo isn't finished; run the same `vikhr-fast demo` again"
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: damaged: {error}; run the same `vikhr-fast demo` again") from None
    return validated(pydantic.TypeAdapter(Results), values, str(path))


def print_results(results: Results) -> None:
    """Prints the table, tokens per word and the verdict to standard output."""
    table = Table(title="Bits per byte of held-out text (lower is better)")
    table.add_column("model")
    for language in (RUSSIAN, ENGLISH):
        table.add_column(language.title(), justify="right")
    for model, label in LABELS.items():
        table.add_row(label, *(show(*results.score(model, language)) for language in (RUSSIAN, ENGLISH)))
    console = Console(soft_wrap=True)
    console.print(table)
    for language in (RUSSIAN, ENGLISH):
        before, after = (results.tokens_per_word[name][language] for name in (ENGLISH, RUSSIAN))
        console.print(f"Tokens per {language.title()} word: {before:.2f} before, {after:.2f} after", highlight=False)
    for language, (before, after) in results.tuning.perplexity.items():
        line = f"Perplexity of held-out {language.title()} answers: {before:.2f} before tuning, {after:.2f} after"
        console.print(line, highlight=False)
    for run in KL_RUNS:
        console.print(results.verdict(run), highlight=False)
        if len(results.seeds) > 1:
            differences = (f"{result.comparisons[run].difference:+.4f}" for result in results.seeds)
            console.print(f"  by seed: {', '.join(differences)}", highlight=False)


def show(mean: float, error: float | None) -> str:
    """A mean with its standard error, if there is one."""
    return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"


def _tokens_per_word(encoder: BpeEncoder, texts: list[str]) -> float:
    ids, _ = encoder.encode_batch(texts)
    return len(ids) / sum(len(text.split()) for text in texts)


def _seed_result(paths: DemoPaths, seed: int) -> SeedResult:
    curves = {name: read_curve(paths.run(seed, name)) for name in LABELS if name != "adapted"}
    scores = {name: _scores(curve, -1) for name, curve in curves.items()}
    scores["adapted"] = _scores(curves["cpt"], 0)  # before its first step
    comparisons = {run: compare(curves["cpt"], curves[run]) for run in KL_RUNS}
    return SeedResult(seed, {name: scores[name] for name in LABELS}, comparisons)


def _scores(curve: Curve, index: int) -> Scores:
    return Scores(curve.russian[index], curve.english[index])


def _continue(directory: Path) -> str:
    """What a model writes after `PROMPT`, always its likeliest token."""
    from vikhr_fast.generate.answering import Answerer
    from vikhr_fast.generate.sampling import Sampling

    answerer = Answerer(directory, "cpu")
    bpe = answerer.encoder.bpe
    prompt = bpe.encode(PROMPT).tolist()
    answer = answerer.answer([[bpe.bos_id, *prompt]], Sampling(max_tokens=_CONTINUATION))[0]
    return bpe.decode([*prompt, *answer.ids]).removeprefix(PROMPT)
