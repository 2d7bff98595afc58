"""The demo's report.html: what was made, what came out, and what the numbers say."""

from collections.abc import Sequence
from pathlib import Path

from vikhr_fast.experiments.comparison import read_curve
from vikhr_fast.experiments.demo.paths import DemoPaths
from vikhr_fast.experiments.demo.results import ALL_LABELS, KL_RUNS, LABELS, PROMPT, Results, read_results
from vikhr_fast.experiments.demo.tuning import TUNED, tuning_section
from vikhr_fast.experiments.demo.vocabularies import EXTENDED, vocabulary_section
from vikhr_fast.experiments.sample.text import ENGLISH, RUSSIAN
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.io.html import Figure, Line, Page, Section, Segments, Table, bar_plot, line_plot
from vikhr_fast.io.provenance import provenance
from vikhr_fast.tokenizer.report import EXAMPLE
from vikhr_fast.train.metrics import METRICS

_RUNS = {name: LABELS[name] for name in ("cpt", *KL_RUNS)}
_TOKENIZERS = {ENGLISH: "base tokenizer", RUSSIAN: "new tokenizer", EXTENDED: "extended tokenizer"}


def demo_page(directory: Path) -> Page:
    """The page of a finished demo, from its results and run directories; InputError where it isn't finished."""
    paths = DemoPaths(directory)
    results = read_results(paths.results)
    sections = [
        _scores(results),
        vocabulary_section(paths, results.vocabularies),
        _equal_russian(paths, results),
        _tokenizers(results),
        _losses(paths),
        _continuations(results),
        tuning_section(results.tuning),
        _provenance(paths, results),
    ]
    return Page("An English model learns Russian", _summary(results), sections)


def _summary(results: Results) -> str:
    """What was made, and what the KL term bought."""
    (russian, learnt), (english, kept) = (
        [results.score(model, language).shown(3) for model in ("adapted", "cpt")] for language in (RUSSIAN, ENGLISH)
    )
    all_pieces, shared_pieces = (results.difference(run).shown(3, "+") for run in KL_RUNS)
    seeds = "one seed" if len(results.seeds) == 1 else f"mean ± standard error of {len(results.seeds)} seeds"
    return (
        "A small Mistral trained on English alone was given a Russian vocabulary and trained on Russian: of held-out "
        f"text its Russian went from {russian} to {learnt} bits per byte, its English from {english} to {kept} (fewer "
        f"are better). The KL term changed that English by {all_pieces} bits per byte at equal Russian, restricted to "
        f"the pieces that the base had by {shared_pieces} ({seeds})."
    )


def _scores(results: Results) -> Section:
    russian = results.score("base", RUSSIAN).mean
    ignorance = (
        f"The base's {russian:.1f} bits per byte of Russian are no mistake: knowing nothing costs 8, and the base is "
        "sure that the bytes of Cyrillic letters, of which English has none, don't come."
    )
    return Section(
        "Russian and English, before and after",
        (
            "Adapted is the English base with the Russian vocabulary, not trained further. CPT is its continued "
            "pre-training on Russian alone; CPT + KL adds KL(model || adapted model) to the loss, as the paper does; "
            "with shared pieces this KL compares only the pieces that the base had already. Bits per byte compare "
            "across vocabularies where perplexities do not.",
            *((ignorance,) if russian > 8 else ()),
        ),
        (results.table(),),
    )


def _equal_russian(paths: DemoPaths, results: Results) -> Section:
    curves = {(r.seed, name): read_curve(paths.run(r.seed, name)) for r in results.seeds for name in _RUNS}

    def line(key: tuple[int, str], x: Sequence[float], y: Sequence[float]) -> Line:
        """Runs differ in colour, seeds in style."""
        seed, name = key
        label = f"{_RUNS[name]}, seed {seed}" if len(results.seeds) > 1 else _RUNS[name]
        return Line(label, x, y, colour=list(LABELS).index(name), style=seed, markers=True)

    plots = [
        line_plot(
            "English against Russian along training: all runs begin at the adapted model and move to the left as they "
            "learn Russian. At equal Russian the lower line keeps English better.",
            "English against Russian bits per byte of the runs with and without KL.",
            "Russian, bits per byte",
            "English, bits per byte",
            [line(key, curve.russian, curve.english) for key, curve in curves.items()],
        )
    ]
    for language in (RUSSIAN, ENGLISH):
        lines = [line(key, curve.steps, getattr(curve, language)) for key, curve in curves.items()]
        caption = f"Held-out {language.title()} along training."
        plots.append(_plot(caption, f"{language.title()}, bits per byte", lines))
    rows = tuple(
        (LABELS[run], str(result.seed), *(f"{level:.4f}" for level in vars(one).values()), f"{one.difference:+.4f}")
        for run in KL_RUNS
        for result in results.seeds
        for one in (result.comparisons[run],)
    )
    caption = "English bits per byte at equal Russian; a negative difference speaks for the KL term."
    header = ("run", "seed", "Russian", f"English of {LABELS['cpt']}", "of the run", "difference")
    return Section(
        "What the KL term buys: English at equal Russian",
        (
            *map(results.verdict, KL_RUNS),
            "After the same number of steps the runs have learnt different amounts of Russian, so their ends do not "
            "compare. English is read where each first reaches the lowest Russian level that both reach, interpolated "
            "between validations. The factor of the KL was fixed beforehand; the run over shared pieces was added when "
            "the one over all pieces, the paper's, had been seen.",
            f"The KL holds on to the adapted model, whose own Russian is {results.score('adapted', RUSSIAN).mean:.3f} "
            "bits per byte: a base without Russian is a poorer guide to it than the paper's. Over shared pieces the KL "
            "says nothing about how much of the probability goes to Russian ones.",
        ),
        (*plots, Table(caption, header, rows)),
    )


def _tokenizers(results: Results) -> Section:
    words = results.words()
    languages = (RUSSIAN, ENGLISH)
    bars = {title: [results.tokens_per_word[name][one] for one in languages] for name, title in _TOKENIZERS.items()}
    counts = ", ".join(f"{len(results.segments[name])} by the {title}" for name, title in _TOKENIZERS.items())
    segments = tuple((title, results.segments[name]) for name, title in _TOKENIZERS.items())
    num_bytes = sum(piece.startswith("<0x") for piece in results.segments[ENGLISH])
    return Section(
        "The tokenizers",
        (
            *words,
            f"Of the example's {len(results.segments[ENGLISH])} tokens by the base tokenizer {num_bytes} are single "
            "bytes: a letter that it doesn't know takes one for each, two for a Cyrillic letter.",
        ),
        (
            bar_plot(
                "Tokens per word of held-out text; words are what stands between spaces.",
                f"Bars of tokens per word. {' '.join(words)}",
                "tokens per word",
                [language.title() for language in languages],
                bars,
            ),
            Segments(f"In the manner of the paper's table 1, “{EXAMPLE}”: {counts}.", segments),
        ),
    )


def _losses(paths: DemoPaths) -> Section:
    metrics = {name: read_lines(paths.run(0, name) / METRICS) for name in ("base", *_RUNS)}

    def plot(caption: str, y_label: str, key: str, names: Sequence[str]) -> Figure:
        steps, values = ({name: [line[of] for line in metrics[name]] for name in names} for of in ("step", key))
        lines = [Line(LABELS[name], steps[name], values[name], colour=list(LABELS).index(name)) for name in names]
        return _plot(caption, y_label, lines)

    return Section(
        "Training losses",
        ("One value a step, in nats per token; of seed 0.",),
        (
            plot("Cross-entropy of the English base.", "cross-entropy", "ce", ("base",)),
            plot("Cross-entropy of continued pre-training.", "cross-entropy", "ce", tuple(_RUNS)),
            plot("KL to the adapted model.", "KL", "kl", KL_RUNS),
        ),
    )


def _plot(caption: str, y_label: str, lines: list[Line]) -> Figure:
    """Lines over steps."""
    ends = ", ".join(f"{line.name} from {line.y[0]:.3f} to {line.y[-1]:.3f}" for line in lines)
    return line_plot(caption, f"{caption} {ends}.", "step", y_label, lines)


def _continuations(results: Results) -> Section:
    rows = tuple((ALL_LABELS[name], text) for name, text in results.continuations.items())
    return Section(
        "A glimpse of the models' Russian",
        (
            f"The likeliest continuation of “{PROMPT}”, token by token. Models of this size, trained for minutes, do "
            "not write sense; what can be seen is whether letters, words and endings have become Russian.",
        ),
        (Table("Greedy continuations, seed 0.", ("model", "text"), rows),),
    )


def _provenance(paths: DemoPaths, results: Results) -> Section:
    texts = tuple(
        (language.title(), use.source, f"{use.available_bytes:,}", f"{use.train_bytes:,}", f"{use.validation_bytes:,}")
        for language, use in results.text.items()
    )
    runs = []
    trained = {name: label for name, label in ALL_LABELS.items() if name != "adapted"}
    for name, label in {**trained, TUNED: "instruction tuning of CPT"}.items():
        metrics = read_lines(paths.run(0, name) / METRICS)
        seconds = sum(line["seconds"] for line in metrics)
        runs.append((label, f"{len(metrics):,}", f"{metrics[-1]['tokens']:,}", f"{seconds:.0f}"))
    made_with = provenance({"value": paths.output})
    return Section(
        made_with.title,
        parts=(
            Table(
                "Text in UTF-8 bytes. Held-out text is not trained on; of more than the limit, documents from all over "
                "it are taken.",
                ("language", "source", "in all", "trained on", "held out"),
                texts,
            ),
            Table("Training of seed 0.", ("run", "steps", "tokens", "seconds"), tuple(runs)),
            *made_with.parts,
        ),
    )
