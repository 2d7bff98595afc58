"""The paper's table 1 and figure 1 for any tokenizers and texts: how many tokens a language costs in each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import atomic_file, refuse_existing, write_json
from vikhr_fast.io.html import Table, draw_bars, print_tables
from vikhr_fast.io.names import distinct_names
from vikhr_fast.tokenizer.byte_level import readable, token_bytes
from vikhr_fast.tokenizer.efficiency import measure
from vikhr_fast.tokenizer.export import BYTE, CONTROL, read_model
from vikhr_fast.tokenizer.extend_byte_level import unreachable_tokens
from vikhr_fast.tokenizer.files import TOKENIZER, TOKENIZER_JSON
from vikhr_fast.tokenizer.json_encoder import JsonEncoder
from vikhr_fast.tokenizer.load import find_tokenizer, load_encoder
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
    """SentencePiece .model files, byte-level tokenizer.json files, or directories with one."""
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
    meant = [path.parent if path.name in (TOKENIZER, TOKENIZER_JSON) else path for path in options.models]
    files = {name: find_tokenizer(path) for name, path in zip(distinct_names(meant), options.models, strict=True)}
    vocabularies = {name: _Vocabulary.of(file) for name, file in files.items()}
    tokenizers: dict[str, dict[str, Any]] = {}
    for name, own in vocabularies.items():
        encoder = load_encoder(files[name])
        spelt = map(encoder.piece, encoder.encode(EXAMPLE).tolist())
        tokenizers[name] = {
            "pieces": len(own.pieces),
            "unreachable": own.unreachable,
            "shared": {other: len(own.pieces & found.pieces) for other, found in vocabularies.items()},
            "example": list(map(readable, spelt) if isinstance(encoder, JsonEncoder) else spelt),
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
    print_tables((_texts_table(tokenizers), _vocabularies_table(vocabularies), example_table))


def _texts_table(tokenizers: dict[str, dict[str, Any]]) -> Table:
    rows = tuple(
        (text, name, *(form.format(own["texts"][text][figure]) for figure, form in _FIGURES.values()))
        for text in next(iter(tokenizers.values()))["texts"]
        for name, own in tokenizers.items()
    )
    return Table("Texts", ("text", "tokenizer", *_FIGURES), rows)


@dataclass(frozen=True)
class _Vocabulary:
    """What a table says of one."""

    pieces: set[str]
    """As SentencePiece spells them, of whichever kind the tokenizer is."""
    single_bytes: int
    control: int
    unreachable: int

    @classmethod
    def of(cls, file: Path) -> "_Vocabulary":
        if file.suffix != ".json":
            kinds = {piece.piece: piece.type for piece in read_model(file).pieces}
            single_bytes, control = (sum(kind == wanted for kind in kinds.values()) for wanted in (BYTE, CONTROL))
            return cls(set(kinds), single_bytes, control, len(unreachable_pieces(file)))
        library = JsonEncoder.from_file(file).tokenizer
        added = library.get_added_tokens_decoder()
        own = {token: id_ for token, id_ in library.get_vocab(with_added_tokens=False).items() if id_ not in added}
        contents = {content: id_ for token, id_ in own.items() if (content := token_bytes(token))}
        return cls(
            {*map(readable, own), *(token.content for token in added.values())},
            sum(len(content) == 1 and not content.isascii() for content in contents),
            sum(token.special for token in added.values()),
            len(unreachable_tokens(file, contents)),
        )


def vocabularies_table(files: dict[str, Path]) -> Table:
    """The pieces of tokenizers, by the names to show: how many, those no text is encoded to, those that are shared."""
    return _vocabularies_table({name: _Vocabulary.of(file) for name, file in files.items()})


def _vocabularies_table(vocabularies: dict[str, _Vocabulary]) -> Table:
    others = vocabularies if len(vocabularies) > 1 else {}
    rows = []
    for name, own in vocabularies.items():
        shared = (len(own.pieces & other.pieces) for other in others.values())
        counts = (len(own.pieces), own.single_bytes, own.control, own.unreachable, *shared)
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
