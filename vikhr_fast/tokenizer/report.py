"""The paper's table 1 and figure 1 for any tokenizers and texts: how many tokens a language costs in each."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from vikhr_fast.errors import InputError
from vikhr_fast.files import atomic_file, refuse_existing, write_text
from vikhr_fast.names import distinct_names
from vikhr_fast.tokenizer.bpe import BpeEncoder
from vikhr_fast.tokenizer.efficiency import measure, segmentation_change
from vikhr_fast.tokenizer.export import MODEL_NAME, find_model, read_model
from vikhr_fast.tokenizer.pieces import unreachable_pieces

EXAMPLE = "Машинное обучение изменяет мир"  # of table 1
_TABLE_WIDTH = 120


@dataclass(frozen=True)
class ReportTokenizers:
    """Compares tokenizers on texts: tokens a word, characters a token, bytes, unreachable and shared pieces.

    The first tokenizer is what the others are compared with.
    """

    models: Positional[tuple[Path, ...]]
    """SentencePiece .model files, or directories with tokenizer.model."""
    text: tuple[str, ...]
    """Held-out text: files or patterns, each as FILE or NAME=FILE; those of one name count as one text, as in
    'ru=held/ru-*.txt'."""
    example: str = EXAMPLE
    """A sentence to show in the pieces of each tokenizer; the default is table 1's."""
    json: Path | None = None
    """File for all figures, as JSON."""
    plot: Path | None = None
    """File for figure 1, as PNG: tokens a word, a bar a tokenizer and text."""


def report_tokenizers(options: ReportTokenizers) -> dict[str, Any]:
    """Measures, and writes the JSON and PNG files that are asked for.

    Returns:
        `tokenizers`, for each name its number of `pieces`, `unreachable` ones, pieces `shared` with each tokenizer, the
        `example` in pieces, and for each of `texts` its counts and rates (see `Efficiency`), `context_gain` (text in a
        context, as a multiple of the first tokenizer's) and `words_changed` (the share of words that fall into other
        pieces than the first tokenizer's).

    Raises:
        InputError: an unreadable model or text, or an output that exists.
    """
    if not options.models or not options.text:
        raise InputError("MODELS, --text: give at least one tokenizer and one text")
    for output in (options.json, options.plot):
        if output is not None:
            refuse_existing(output)
    meant = [path.parent if path.name == MODEL_NAME else path for path in options.models]
    files = {name: find_model(path) for name, path in zip(distinct_names(meant), options.models, strict=True)}
    texts = _texts(options.text)
    pieces = {name: {piece.piece for piece in read_model(file).pieces} for name, file in files.items()}
    base_file = next(iter(files.values()))
    base = {text: measure(base_file, sources) for text, sources in texts.items()}
    tokenizers: dict[str, dict[str, Any]] = {}
    for name, file in files.items():
        encoder = BpeEncoder.from_file(file)
        tokenizers[name] = {
            "pieces": len(pieces[name]),
            "unreachable": len(unreachable_pieces(file)),
            "shared": {other: len(pieces[name] & pieces[other]) for other in files},
            "example": [encoder.piece(index) for index in encoder.encode(options.example)],
            "texts": {},
        }
        for text, sources in texts.items():
            found = measure(file, sources)
            tokenizers[name]["texts"][text] = {
                **asdict(found),
                "tokens_per_word": found.tokens_per_word,
                "characters_per_token": found.characters_per_token,
                "bytes_per_token": found.bytes_per_token,
                "byte_share": found.byte_share,
                "context_gain": base[text].tokens / found.tokens,
                "words_changed": segmentation_change(base_file, file, sources)["words_changed"],
            }
    report = {"example": options.example, "tokenizers": tokenizers}
    if options.json is not None:
        write_text(options.json, json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    if options.plot is not None:
        write_figure(report, options.plot)
    return report


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Prints the tables of a report on standard output."""
    # Read by people and by scripts: in a pipe it is not cut to a terminal's width.
    console = console or Console(width=None if Console().is_terminal else _TABLE_WIDTH)
    tokenizers = report["tokenizers"]
    names = list(tokenizers)
    texts = Table("text", "tokenizer", title="Texts")
    for heading in ("tokens/word", "chars/token", "bytes/token", "byte tokens", "context", "words changed"):
        texts.add_column(heading, justify="right")
    for text in tokenizers[names[0]]["texts"]:
        for name in names:
            found = tokenizers[name]["texts"][text]
            texts.add_row(
                text,
                name,
                f"{found['tokens_per_word']:.3f}",
                f"{found['characters_per_token']:.2f}",
                f"{found['bytes_per_token']:.2f}",
                f"{found['byte_share']:.2%}",
                f"{found['context_gain']:.2f}x",
                f"{found['words_changed']:.2%}",
            )
        texts.add_section()
    vocabularies = Table("tokenizer", title="Vocabularies")
    for heading in ("pieces", "unreachable", *(f"shared with {name}" for name in names)):
        vocabularies.add_column(heading, justify="right")
    example = Table("tokenizer", "tokens", "pieces", title=f"“{report['example']}”")
    for name, found in tokenizers.items():
        shared = (f"{found['shared'][other]:,}" for other in names)
        vocabularies.add_row(name, f"{found['pieces']:,}", f"{found['unreachable']:,}", *shared)
        example.add_row(name, str(len(found["example"])), " ".join(found["example"]))
    for table in (texts, vocabularies, example):
        console.print(table)


def write_figure(report: dict[str, Any], path: Path) -> None:
    """Figure 1 as PNG: tokens a word, lower is better, a group of bars a text and a bar a tokenizer."""
    from matplotlib.figure import Figure

    tokenizers = report["tokenizers"]
    texts = list(next(iter(tokenizers.values()))["texts"])
    figure = Figure(figsize=(1.6 + 1.1 * len(texts) * (0.5 + 0.5 * len(tokenizers)), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(tokenizers)
    for place, (name, found) in enumerate(tokenizers.items()):
        heights = [found["texts"][text]["tokens_per_word"] for text in texts]
        bars = axes.bar(
            [index + (place + 0.5) * width - 0.4 for index in range(len(texts))], heights, width, label=name
        )
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks(range(len(texts)), texts)
    axes.set_ylabel("tokens a word (lower is better)")
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(tokenizers), frameon=False)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})


def _texts(arguments: Sequence[str]) -> dict[str, list[Path]]:
    """The sources of each text by its name."""
    texts: dict[str, list[Path]] = {}
    for argument in arguments:
        name, equals, source = argument.partition("=")
        if not equals or Path(argument).exists():
            name, source = Path(argument).name.partition(".")[0], argument
        texts.setdefault(name, []).append(Path(source))
    return texts
