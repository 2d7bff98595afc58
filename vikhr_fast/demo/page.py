"""The demo's report.html: what was made, what came out, and what the numbers say."""

import json
from collections.abc import Sequence
from pathlib import Path

from vikhr_fast.demo.comparison import Comparison, read_curve
from vikhr_fast.demo.paths import DemoPaths
from vikhr_fast.demo.results import KL_RUNS, LABELS, PROMPT, Results, read_results, show
from vikhr_fast.demo.text import ENGLISH, RUSSIAN
from vikhr_fast.demo.tuning import TUNED, tuning_section
from vikhr_fast.report import Figure, Line, Page, Section, Segments, Table, bar_plot, line_plot
from vikhr_fast.run_directory import CONFIG, ENVIRONMENT
from vikhr_fast.run_report.making import flat
from vikhr_fast.tokenizer.report import EXAMPLE
from vikhr_fast.train.metrics import METRICS, read_lines

_RUNS = {name: LABELS[name] for name in ("cpt", *KL_RUNS)}
_TOKENIZERS = {ENGLISH: "base tokenizer", RUSSIAN: "new tokenizer"}


def demo_page(directory: Path) -> Page:
    """The page of a finished demo, from its results and run directories; InputError where it isn't finished."""
    paths = DemoPaths(directory)
    results = read_results(paths.results)
    sections = [
        _scores(results),
        _tokenizers(results),
        _equal_russian(paths, results),
        _losses(paths),
        _continuations(results),
        tuning_section(results.tuning),
        _making(paths, results),
    ]
    return Page("An English model learns Russian", " ".join(map(results.verdict, KL_RUNS)), sections)


def _scores(results: Results) -> Section:
    rows = tuple(
        (label, *(show(*results.score(model, language)) for language in (RUSSIAN, ENGLISH)))
        for model, label in LABELS.items()
    )
    error = f"; mean ± standard error of {len(results.seeds)} seeds" if len(results.seeds) > 1 else ""
    caption = f"Bits per byte of held-out text, lower is better{error}."
    return Section(
        "Russian and English, before and after",
        (
            "The base is a small Mistral trained on English alone. Adapted is the same model with the Russian "
            "vocabulary, not trained further. CPT is continued pre-training of the adapted model on Russian alone; "
            "CPT + KL adds KL(model || adapted model) to its loss, as the paper does; with shared pieces this KL "
            "compares only the pieces that the base had already. All are scored on the same held-out text, each with "
            "its own tokenizer; bits per byte compare across vocabularies where perplexities do not.",
            *_ignorance(results),
            f"Adaptation: {_change(results, 'base', 'adapted')}.",
            f"Continued pre-training without KL: {_change(results, 'adapted', 'cpt')}.",
            f"Continued pre-training with KL: {_change(results, 'adapted', 'cpt-kl')}.",
            f"With the KL of shared pieces: {_change(results, 'adapted', 'cpt-kl-shared')}.",
        ),
        (Table(caption, ("model", "Russian", "English"), rows),),
    )


def _ignorance(results: Results) -> tuple[str, ...]:
    russian, _ = results.score("base", RUSSIAN)
    if russian <= 8:
        return ()
    return (
        f"The base's {russian:.1f} bits per byte of Russian are no mistake: knowing nothing costs 8, and the base is "
        "sure that the bytes of Cyrillic letters, of which English has none, don't come.",
    )


def _change(results: Results, before: str, after: str) -> str:
    """What happened to both languages from one model to the next, in words."""
    changes = []
    for language in (RUSSIAN, ENGLISH):
        old, new = results.score(before, language)[0], results.score(after, language)[0]
        verb = "stays at" if f"{old:.3f}" == f"{new:.3f}" else f"{'falls' if new < old else 'rises'} from {old:.3f} to"
        changes.append(f"{language.title()} {verb} {new:.3f}")
    return " and ".join(changes)


def _tokenizers(results: Results) -> Section:
    per_word = results.tokens_per_word
    bars = {title: [per_word[name][language] for language in (RUSSIAN, ENGLISH)] for name, title in _TOKENIZERS.items()}
    words = []
    for language in (RUSSIAN, ENGLISH):
        before, after = per_word[ENGLISH][language], per_word[RUSSIAN][language]
        ratio = before / after
        change = f"{ratio:.2f} times fewer" if ratio > 1 else f"{1 / ratio:.2f} times as many"
        words.append(f"A word of {language.title()} takes {after:.2f} tokens where it took {before:.2f}: {change}.")
    alt = "Bars of tokens per word. " + " ".join(words)
    counts = " and ".join(f"{len(results.segments[name])} by the {title}" for name, title in _TOKENIZERS.items())
    segments = tuple((title, results.segments[name]) for name, title in _TOKENIZERS.items())
    num_bytes = sum(piece.startswith("<0x") for piece in results.segments[ENGLISH])
    share = (
        f"Of the example's {len(results.segments[ENGLISH])} tokens by the base tokenizer {num_bytes} are single bytes."
    )
    return Section(
        "The tokenizers",
        (*words, f"{share} A letter it doesn't know takes one for each byte: two for a Cyrillic letter."),
        (
            bar_plot(
                "Tokens per word of held-out text; words are what stands between spaces.",
                alt,
                "tokens per word",
                [RUSSIAN.title(), ENGLISH.title()],
                bars,
            ),
            Segments(f"In the manner of the paper's table 1, “{EXAMPLE}”: {counts}.", segments),
        ),
    )


def _equal_russian(paths: DemoPaths, results: Results) -> Section:
    russian = {name: results.score(name, RUSSIAN)[0] for name in LABELS}
    verdicts = " ".join(map(results.verdict, KL_RUNS))
    curves = {(r.seed, name): read_curve(paths.run(r.seed, name)) for r in results.seeds for name in _RUNS}
    plots = [
        line_plot(
            "English against Russian along training: all runs begin at the adapted model and move to the left as they "
            "learn Russian. At equal Russian the lower line keeps English better.",
            f"English against Russian bits per byte of the runs with and without KL. {verdicts}",
            "Russian, bits per byte",
            "English, bits per byte",
            [_line(results, key, curve.russian, curve.english) for key, curve in curves.items()],
        )
    ]
    for language in (RUSSIAN, ENGLISH):
        lines = [_line(results, key, curve.steps, getattr(curve, language)) for key, curve in curves.items()]
        ends = ", ".join(f"{line.name} from {line.y[0]:.3f} to {line.y[-1]:.3f}" for line in lines)
        plots.append(
            line_plot(
                f"Held-out {language.title()} along training.",
                f"{language.title()} bits per byte over steps: {ends}.",
                "step",
                f"{language.title()}, bits per byte",
                lines,
            )
        )
    tables = [
        Table(
            f"English bits per byte of {LABELS['cpt']} and {LABELS[run]} at equal Russian; a negative difference "
            "speaks for the KL term.",
            ("seed", "Russian", LABELS["cpt"], LABELS[run], "difference"),
            tuple(_compared(result.seed, result.comparisons[run]) for result in results.seeds),
        )
        for run in KL_RUNS
    ]
    ends = ", ".join(f"{russian[name]:.3f} ({label})" for name, label in _RUNS.items())
    return Section(
        "What the KL term buys: English at equal Russian",
        (
            verdicts,
            f"After the same number of steps Russian stands at {ends}, so the ends of the runs do not compare. "
            "Instead, English is read where each run first reaches the lowest Russian level that both reach, "
            "interpolated between validations. The KL over all pieces is the paper's, with a factor fixed beforehand; "
            "the one over shared pieces, with the same factor, was added to the demo when that had been seen.",
            "What the KL term holds on to is the adapted model, whose own Russian is "
            f"{russian['adapted']:.3f} bits per byte: a base without Russian is a poorer guide to it than the paper's. "
            "Over shared pieces the KL says nothing about how much of the probability goes to Russian ones.",
        ),
        (*plots, *tables),
    )


def _compared(seed: int, comparison: Comparison) -> tuple[str, ...]:
    levels = (comparison.russian, comparison.english_without_kl, comparison.english_with_kl)
    return (str(seed), *(f"{level:.4f}" for level in levels), f"{comparison.difference:+.4f}")


def _line(results: Results, key: tuple[int, str], x: Sequence[float], y: Sequence[float]) -> Line:
    """A run's line: runs differ in colour, seeds in style."""
    seed, name = key
    label = f"{_RUNS[name]}, seed {seed}" if len(results.seeds) > 1 else _RUNS[name]
    return Line(label, x, y, colour=list(LABELS).index(name), style=seed, markers=True)


def _losses(paths: DemoPaths) -> Section:
    metrics = {name: read_lines(paths.run(0, name) / METRICS) for name in ("base", *_RUNS)}

    def plot(caption: str, y_label: str, key: str, names: dict[str, str]) -> Figure:
        lines = [
            Line(
                label,
                [line["step"] for line in metrics[name]],
                [line[key] for line in metrics[name]],
                colour=list(LABELS).index(name),
            )
            for name, label in names.items()
        ]
        ends = ", ".join(f"{line.name} from {line.y[0]:.3f} to {line.y[-1]:.3f}" for line in lines)
        return line_plot(caption, f"{caption} {ends}.", "step", y_label, lines)

    return Section(
        "Training losses",
        ("One value a step, in nats per token; of seed 0.",),
        (
            plot("Cross-entropy of the English base.", "cross-entropy", "ce", {"base": LABELS["base"]}),
            plot("Cross-entropy of continued pre-training.", "cross-entropy", "ce", _RUNS),
            plot("KL to the adapted model.", "KL", "kl", {run: LABELS[run] for run in KL_RUNS}),
        ),
    )


def _continuations(results: Results) -> Section:
    rows = tuple((LABELS[name], text) for name, text in results.continuations.items())
    return Section(
        "A glimpse of the models' Russian",
        (
            f"The likeliest continuation of “{PROMPT}”, token by token. Models of this size, trained for minutes, do "
            "not write sense; what can be seen is whether letters, words and endings have become Russian.",
        ),
        (Table("Greedy continuations, seed 0.", ("model", "text"), rows),),
    )


def _making(paths: DemoPaths, results: Results) -> Section:
    settings = json.loads((paths.output / CONFIG).read_text(encoding="utf-8"))
    environment = json.loads((paths.output / ENVIRONMENT).read_text(encoding="utf-8"))
    texts = tuple(
        (
            language.title(),
            use.source,
            *(f"{size:,}" for size in (use.available_bytes, use.train_bytes, use.validation_bytes)),
        )
        for language, use in results.text.items()
    )
    runs = []
    for name, label in {"base": LABELS["base"], **_RUNS, TUNED: "instruction tuning of CPT"}.items():
        metrics = read_lines(paths.run(0, name) / METRICS)
        seconds = sum(line["seconds"] for line in metrics)
        runs.append((label, f"{len(metrics):,}", f"{metrics[-1]['tokens']:,}", f"{seconds:.0f}"))
    presets = {name: settings.pop(name) for name in ("base", "pretrain", "instruct")}
    settings = {name: value for name, value in settings.items() if name not in (ENGLISH, RUSSIAN)}
    values = {**settings, **flat(presets), **flat(environment)}
    return Section(
        "What it was made with",
        parts=(
            Table(
                "Text in UTF-8 bytes. Held-out text is not trained on; of more than the limit, documents from all over "
                "it are taken.",
                ("language", "source", "in all", "trained on", "held out"),
                texts,
            ),
            Table("Training of seed 0.", ("run", "steps", "tokens", "seconds"), tuple(runs)),
            Table("Settings, versions and commit.", ("name", "value"), tuple((k, str(v)) for k, v in values.items())),
        ),
    )
