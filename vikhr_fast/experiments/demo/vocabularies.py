"""The base's vocabulary rebuilt, or extended to the same size: bits per byte before and after CPT on as much text."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vikhr_fast.data.token_shards import TokenShards
from vikhr_fast.errors import InputError
from vikhr_fast.experiments.ablate.page import figures_table
from vikhr_fast.experiments.comparison import Curve, read_curve
from vikhr_fast.experiments.demo.paths import DemoPaths
from vikhr_fast.experiments.results import Arm, Column, Figure, paired
from vikhr_fast.experiments.sample.text import ENGLISH, RUSSIAN
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.io.html import Line, Section, Table, line_plot
from vikhr_fast.tokenizer import BpeEncoder
from vikhr_fast.tokenizer.export import MODEL_NAME
from vikhr_fast.train.metrics import VALIDATION

EXTENDED = "extended"
"""The extended tokenizer, beside `ENGLISH`, the base's, and `RUSSIAN`, the rebuilt one."""
EXTENDED_CPT = "cpt-extended"
"""The run of CPT with it."""
_ARMS = {"rebuilt": (RUSSIAN, "cpt"), "extended": (EXTENDED, EXTENDED_CPT)}
"""Of each way its tokenizer and its run."""
_LANGUAGES = (RUSSIAN, ENGLISH)
_COLUMNS = (
    *(
        Column(name=f"{language}.{when}", label=f"{language.title()} {when}")
        for language, when in product(_LANGUAGES, ("before", "after"))
    ),
    *(Column(name=f"{name}.tokens_per_word", label=f"{name.title()} tokens a word", digits=2) for name in _LANGUAGES),
)
_CYRILLIC = re.compile("[\u0400-\u04ff]")


@dataclass(frozen=True)
class Vocabularies:
    """What the table and the section say."""

    text_bytes: Figure
    """Of Russian, in UTF-8, that both runs have read where they are compared after training."""
    arms: dict[str, Arm]
    """By the names of `_ARMS`: pieces with a Cyrillic letter; bits per byte of held-out text before and after training;
    tokens a word of it."""

    def table(self) -> Table:
        """Both ways, and the row that compares them."""
        error = "; mean ± standard error, the change paired by seed" if len(self.text_bytes.values) > 1 else ""
        caption = (
            "The base's vocabulary rebuilt, or extended to as many pieces: bits per byte of held-out text before and "
            f"after CPT on {self.text_bytes.mean / 1000:,.0f} KB of Russian, and tokens a word; "
            f"change: extended − rebuilt{error}"
        )
        rebuilt, extended = self.arms.values()
        change = Arm(label="change", figures=paired(extended.figures, rebuilt.figures))
        arms = figures_table(caption, _COLUMNS, self.arms.values())
        return Table(caption, arms.header, arms.rows + figures_table(caption, _COLUMNS, [change], "+").rows)


class _Course(NamedTuple):
    """A run of CPT, by the text that it had read at each validation."""

    text_bytes: list[float]
    curve: Curve

    def score(self, language: str, text_bytes: float) -> float:
        """Bits per byte after so much text, linear between validations."""
        return float(np.interp(text_bytes, self.text_bytes, getattr(self.curve, language)))


def collect_vocabularies(
    paths: DemoPaths, seeds: int, tokens_per_word: Mapping[str, Mapping[str, float]]
) -> Vocabularies:
    """Reads the finished stages of seeds 0 to `seeds` - 1; InputError where one is damaged."""
    courses = {
        name: [_course(paths.run(seed, run), paths.shards(tokenizer, RUSSIAN, "train")) for seed in range(seeds)]
        for name, (tokenizer, run) in _ARMS.items()
    }
    ends = [min(course.text_bytes[-1] for course in of_seed) for of_seed in zip(*courses.values(), strict=True)]
    arms = {}
    for name, (tokenizer, _) in _ARMS.items():
        figures = {"cyrillic": Figure((_cyrillic_pieces(paths.tokenizer(tokenizer)),))}
        for language in _LANGUAGES:
            for when, at in (("before", [0.0] * seeds), ("after", ends)):
                scores = (course.score(language, read) for course, read in zip(courses[name], at, strict=True))
                figures[f"{language}.{when}"] = Figure(tuple(scores))
            figures[f"{language}.tokens_per_word"] = Figure((tokens_per_word[tokenizer][language],))
        arms[name] = Arm(label=name, figures=figures)
    return Vocabularies(Figure(tuple(ends)), arms)


def vocabulary_section(paths: DemoPaths, vocabularies: Vocabularies) -> Section:
    """What the page says."""
    seeds = range(len(vocabularies.text_bytes.values))
    lines = []
    for colour, (name, (_, run)) in enumerate(_ARMS.items()):
        for seed in seeds:
            curve = read_curve(paths.run(seed, run))
            label = f"{name}, seed {seed}" if len(seeds) > 1 else name
            lines.append(Line(label, curve.russian, curve.english, colour, style=seed, markers=True))
    rebuilt, extended = (arm.figures["cyrillic"].shown(0) for arm in vocabularies.arms.values())
    return Section(
        "Rebuild the vocabulary, or extend it?",
        (
            "Rebuilt is a new vocabulary of both languages, as in the paper. Extended is the base's own, with Russian "
            f"pieces after its own until it is as large: {extended} of them have Cyrillic letters, of the rebuilt "
            f"one's {rebuilt}. CPT is the same for both, without KL. A token of one isn't as much text as a token of "
            "the other, so they are compared where both have read the same bytes, interpolated between validations.",
            "Two things differ with a real base. This one has its pieces from the very English text that the rebuilt "
            "vocabulary is made of, so rebuilding costs little English; elsewhere it costs more, and --text of "
            "vikhr-fast adapt says how much, before any training. And this one has English pieces alone; others have "
            "those of many languages, which rebuilding gives up for Russian ones, so that a word takes fewer tokens.",
        ),
        (
            vocabularies.table(),
            line_plot(
                "English against Russian along training with either vocabulary; training goes to the left.",
                "English against Russian bits per byte of the runs with the rebuilt and with the extended vocabulary.",
                "Russian, bits per byte",
                "English, bits per byte",
                lines,
            ),
        ),
    )


def _course(run: Path, shards: Path) -> _Course:
    curve, text = read_curve(run), TokenShards.open(shards)
    try:
        tokens = {line["step"]: line["tokens"] for line in read_lines(run / VALIDATION)}
        return _Course([tokens[step] * text.num_bytes / text.num_trained for step in curve.steps], curve)
    except (LookupError, TypeError) as error:
        raise InputError(f"{run / VALIDATION}: damaged ({error!r}); delete {run} and run it again") from None


def _cyrillic_pieces(tokenizer: Path) -> int:
    """How many pieces have a Cyrillic letter."""
    bpe = BpeEncoder.from_file(tokenizer / MODEL_NAME)
    return sum(bool(_CYRILLIC.search(bpe.piece(index))) for index in range(bpe.num_pieces))
