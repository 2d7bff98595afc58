"""The paper's table 1 and figure 1 for any tokenizers and texts: how many tokens a language costs in each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import atomic_file, refuse_existing, write_json
from vikhr_fast.io.html import Table, draw_bars, print_tables
from vikhr_fast.io.names import distinct_names
from vikhr_fast.tokenizer.bpe import BpeEncoder
from vikhr_fast.tokenizer.efficiency import measure
from vikhr_fast.tokenizer.export import BYTE, CONTROL, MODEL_NAME, find_model, read_model
from vikhr_fast.tokenizer.pieces import unreachable_pieces

EXAMPLE = "Машинное обучение изменяет мир"  # of table 1
_FIGURES = {
    "tokens/word": ("tokens_per_word", "{:.3f}"),
    "chars/token": ("characters_per_token", "{:.2f}"),
    "bytes/token": ("bytes_per_token", "{:.2f}"),
    "byte tokens": ("byte_share", "{:.2%}"),
    "context": ("context_gain", "{:.2f}x"),
    "words changed": ("words_changed", "{:.2%}"),
}
"""By their heading, figures of `measure` and how they are shown."""


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
    json: Path | None = None
    """File for all figures, as JSON."""
    plot: Path | None = None
    """File for figure 1, as PNG: tokens a word, a bar a tokenizer and text."""


def report_tokenizers(options: ReportTokenizers) -> None:
    """Measures, prints the tables, and writes the JSON and PNG files that are asked for.

    The JSON file holds, for each name in `tokenizers`, its number of `pieces`, `unreachable` ones, pieces `shared` with
    each tokenizer, the `example` in pieces, and for each of `texts` what `efficiency.measure` gives.

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
    pieces = {name: {piece.piece for piece in read_model(file).pieces} for name, file in files.items()}
    tokenizers: dict[str, dict[str, Any]] = {}
    for name, file in files.items():
        encoder = BpeEncoder.from_file(file)
        tokenizers[name] = {
            "pieces": len(pieces[name]),
            "unreachable": len(unreachable_pieces(file)),
            "shared": {other: len(pieces[name] & pieces[other]) for other in files},
            "example": [encoder.piece(index) for index in encoder.encode(EXAMPLE)],
            "texts": {},
        }
    for text, sources in _texts(options.text).items():
        for name, found in zip(files, measure(list(files.values()), sources), strict=True):
            tokenizers[name]["texts"][text] = found
    if options.json is not None:
        write_json(options.json, {"example": EXAMPLE, "tokenizers": tokenizers})
    if options.plot is not None:
        write_figure(tokenizers, options.plot)
    examples = tuple((name, str(len(own["example"])), " ".join(own["example"])) for name, own in tokenizers.items())
    example_table = Table(f"“{EXAMPLE}”", ("tokenizer", "tokens", "pieces"), examples)
    print_tables((_texts_table(tokenizers), vocabularies_table(files), example_table))


def _texts_table(tokenizers: dict[str, dict[str, Any]]) -> Table:
    rows = tuple(
        (text, name, *(form.format(own["texts"][text][figure]) for figure, form in _FIGURES.values()))
        for text in next(iter(tokenizers.values()))["texts"]
        for name, own in tokenizers.items()
    )
    return Table("Texts", ("text", "tokenizer", *_FIGURES), rows)


def vocabularies_table(files: dict[str, Path]) -> Table:
    """The pieces of tokenizers, by the names to show: how many, those no text is encoded to, those that are shared."""
    pieces = {name: {piece.piece: piece.type for piece in read_model(file).pieces} for name, file in files.items()}
    others, rows = pieces if len(pieces) > 1 else {}, []
    for name, own in pieces.items():
        kinds = Counter(own.values())
        shared = (len(own.keys() & other.keys()) for other in others.values())
        counts = (len(own), kinds[BYTE], kinds[CONTROL], len(unreachable_pieces(files[name])), *shared)
        rows.append((name, *(f"{count:,}" for count in counts)))
    header = ("tokenizer", "pieces", "single bytes", "control", "unreachable", *(f"shared with {o}" for o in others))
    return Table("Vocabularies", header, tuple(rows))


def write_figure(tokenizers: dict[str, dict[str, Any]], path: Path) -> None:
    """Figure 1 as PNG: tokens a word, lower is better, a group of bars a text and a bar a tokenizer."""
    from matplotlib.figure import Figure

    bars = {name: [own["tokens_per_word"] for own in found["texts"].values()] for name, found in tokenizers.items()}
    texts = list(next(iter(tokenizers.values()))["texts"])
    figure = Figure(figsize=(1.6 + 1.1 * len(texts) * (0.5 + 0.5 * len(bars)), 4), layout="constrained")
    draw_bars(figure.subplots(), "tokens a word (lower is better)", texts, bars)
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
