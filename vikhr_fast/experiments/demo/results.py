"""What a demo's runs came to: read from their directories, printed as a table, kept as JSON."""

from dataclasses import asdict, dataclass
from pathlib import Path

import pydantic

from vikhr_fast.config import read_record
from vikhr_fast.experiments.ablate.page import terminal
from vikhr_fast.experiments.comparison import Comparison, compare, read_curve, verdict
from vikhr_fast.experiments.demo.paths import DemoPaths
from vikhr_fast.experiments.demo.tuning import Tuning, collect_tuning
from vikhr_fast.experiments.demo.vocabularies import EXTENDED, EXTENDED_CPT, Vocabularies, collect_vocabularies
from vikhr_fast.experiments.results import Figure
from vikhr_fast.experiments.sample.text import ENGLISH, RUSSIAN, TextUse, read_usage
from vikhr_fast.io.console import PlainConsole
from vikhr_fast.io.files import write_json
from vikhr_fast.io.html import Table
from vikhr_fast.tokenizer import BpeEncoder
from vikhr_fast.tokenizer.efficiency import measure
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
ALL_LABELS = {**LABELS, EXTENDED_CPT: "CPT, extended vocabulary"}
"""With the model that only the table of vocabularies compares."""
KL_RUNS = ("cpt-kl", "cpt-kl-shared")
"""Each is compared with the run without KL, cpt."""
PROMPT = "В небольшом городе на берегу реки"
_CONTINUATION = 32  # tokens


@dataclass(frozen=True)
class SeedResult:
    """One seed's runs."""

    seed: int
    scores: dict[str, dict[str, float]]
    """Bits per byte on held-out text, by the names of `LABELS`, then by language."""
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
    """What the models of seed 0 write after `PROMPT`, by the names of `ALL_LABELS`."""
    vocabularies: Vocabularies
    text: dict[str, TextUse]
    tuning: Tuning

    def verdict(self, run: str) -> str:
        """In one sentence, how one of `KL_RUNS` compares with the run without KL."""
        return verdict(LABELS[run], [result.comparisons[run] for result in self.seeds])

    def difference(self, run: str) -> Figure:
        """English bits per byte of one of `KL_RUNS` minus those of the run without KL, at equal Russian."""
        return Figure(tuple(result.comparisons[run].difference for result in self.seeds))

    def score(self, model: str, language: str) -> Figure:
        """Bits per byte of a model."""
        return Figure(tuple(result.scores[model][language] for result in self.seeds))

    def table(self) -> Table:
        """The scores of all models."""
        seeds = f"; mean ± standard error of {len(self.seeds)} seeds" if len(self.seeds) > 1 else ""
        rows = tuple(
            (label, *(self.score(model, language).shown(3) for language in (RUSSIAN, ENGLISH)))
            for model, label in LABELS.items()
        )
        return Table(f"Bits per byte of held-out text, lower is better{seeds}", ("model", "Russian", "English"), rows)

    def words(self) -> list[str]:
        """How many tokens a word of each language takes, in a sentence each."""
        before, after = self.tokens_per_word[ENGLISH], self.tokens_per_word[RUSSIAN]
        return [
            f"A word of {language.title()} takes {after[language]:.2f} tokens where it took {before[language]:.2f}."
            for language in (RUSSIAN, ENGLISH)
        ]


def collect_results(paths: DemoPaths, seeds: int) -> Results:
    """Reads the finished stages of seeds 0 to `seeds` - 1.

    Raises:
        InputError: a stage's output is damaged.
    """
    models = {name: paths.tokenizer(name) / MODEL_NAME for name in (ENGLISH, RUSSIAN, EXTENDED)}
    encoders = {name: BpeEncoder.from_file(model) for name, model in models.items()}
    held_out = {language: paths.text / f"{language}-validation.jsonl" for language in (RUSSIAN, ENGLISH)}
    tokens_per_word = {
        name: {language: measure([model], [text])[0]["tokens_per_word"] for language, text in held_out.items()}
        for name, model in models.items()
    }
    return Results(
        seeds=tuple(_seed_result(paths, seed) for seed in range(seeds)),
        tokens_per_word=tokens_per_word,
        segments={name: tuple(map(one.piece, one.encode(EXAMPLE).tolist())) for name, one in encoders.items()},
        continuations={name: _continue(paths.model(0, name)) for name in ALL_LABELS if name != "base"},
        vocabularies=collect_vocabularies(paths, seeds, tokens_per_word),
        text=read_usage(paths.text),
        tuning=collect_tuning(paths),
    )


def write_results(path: Path, results: Results) -> None:
    """Keeps the results as JSON, with the comparisons' means, standard errors and verdicts."""
    differences = {run: results.difference(run) for run in KL_RUNS}
    comparisons = {
        run: {
            "differences": list(one.values),
            "mean": one.mean,
            "standard_error": one.standard_error,
            "verdict": results.verdict(run),
        }
        for run, one in differences.items()
    }
    write_json(path, {**asdict(results), "english_at_equal_russian": comparisons})


def read_results(path: Path) -> Results:
    """What `write_results` wrote; InputError where it didn't."""
    advice = "run the same `vikhr-fast demo` again, which writes it at its end"
    return read_record(path, pydantic.TypeAdapter(Results), advice)


def print_results(results: Results) -> None:
    """Prints the tables, tokens per word and the verdict to standard output."""
    console = PlainConsole(soft_wrap=True)
    for table in (results.table(), results.vocabularies.table()):
        console.print(table.caption)
        console.print(terminal(table))
    for sentence in results.words():
        console.print(sentence)
    for language, (before, after) in results.tuning.perplexity.items():
        console.print(
            f"Perplexity of held-out {language.title()} answers: {before:.2f} before tuning, {after:.2f} after"
        )
    for run in KL_RUNS:
        console.print(results.verdict(run))
        if len(results.seeds) > 1:
            console.print(f"  by seed: {', '.join(f'{value:+.4f}' for value in results.difference(run).values)}")


def _seed_result(paths: DemoPaths, seed: int) -> SeedResult:
    curves = {name: read_curve(paths.run(seed, name)) for name in LABELS if name != "adapted"}
    last = {name: {RUSSIAN: curve.russian[-1], ENGLISH: curve.english[-1]} for name, curve in curves.items()}
    last["adapted"] = {RUSSIAN: curves["cpt"].russian[0], ENGLISH: curves["cpt"].english[0]}  # before its first step
    return SeedResult(
        seed,
        {name: last[name] for name in LABELS},
        {run: compare(curves["cpt"], curves[run]) for run in KL_RUNS},
    )


def _continue(directory: Path) -> str:
    """What a model writes after `PROMPT`, always its likeliest token."""
    from vikhr_fast.inference.engine import Engine
    from vikhr_fast.inference.sampling import Sampling

    engine = Engine(directory, "cpu")
    tokenizer = engine.tokenizer
    prompt = tokenizer.encode(PROMPT).tolist()
    answer = engine.answer([[tokenizer.bos_id, *prompt]], Sampling(max_tokens=_CONTINUATION))[0]
    return tokenizer.decode([*prompt, *answer.ids]).removeprefix(PROMPT)
