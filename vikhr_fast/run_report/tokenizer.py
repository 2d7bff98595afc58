"""The page of a tokenizer, or of several side by side; and of a model that was adapted to one."""

from collections import Counter
from pathlib import Path
from typing import Any

from fontTools.unicodedata import script, script_name

from vikhr_fast.adapt import REPORT_NAME as ADAPTATION
from vikhr_fast.report import Page, Section, Segments, Table, bar_plot
from vikhr_fast.run_report.making import flat, read_values, value_table
from vikhr_fast.tokenizer.bpe import BpeEncoder
from vikhr_fast.tokenizer.export import BYTE, CONTROL, MODEL_NAME, NORMAL, read_model
from vikhr_fast.tokenizer.extend import REPORT_NAME as EXTENSION
from vikhr_fast.tokenizer.pieces import unreachable_pieces
from vikhr_fast.tokenizer.report import EXAMPLE

_LENGTHS = (1, 2, 3, 4, 6, 8, 12)  # where the classes of lengths begin
_SCRIPTS = 6
_LONGEST = 20
_SENTENCES = (EXAMPLE, "Machine learning changes the world")


def tokenizer_page(directories: dict[str, Path]) -> Page:
    """The page of tokenizers by the names to show."""
    models = {name: read_model(directory / MODEL_NAME) for name, directory in directories.items()}
    sections = [_pieces(directories, models), _lengths(models), _sentences(directories)]
    sections += [
        Section("Extension", parts=(value_table("What was added to the base.", flat(read_values(file))),))
        for directory in directories.values()
        if len(directories) == 1 and (file := directory / EXTENSION).exists()
    ]
    said = ", ".join(f"{name} {len(model.pieces):,}" for name, model in models.items())
    title = f"Tokenizer {next(iter(models))}" if len(models) == 1 else "Tokenizers"
    return Page(title, f"Pieces: {said}.", sections)


def adapted_page(directory: Path) -> Page:
    """The page of a model that `vikhr-fast adapt` made."""
    report = read_values(directory / ADAPTATION)
    worst = tuple((f"{one['piece']}", f"{one['id']}", f"{one['base_pieces']}") for one in report["worst"])
    counts = {name.replace("_", " "): value for name, value in report.items() if name not in ("worst", "base_ids")}
    rows = Section(
        "Rows of the embedding and the head",
        ("A piece that the base knew keeps its row; a new one gets the mean of those of its pieces in the base.",),
        (
            value_table("Where the rows come from.", counts),
            Table("New rows that are the mean of most.", ("piece", "id", "pieces in the base"), worst),
        ),
    )
    kept, new = report["copied"] + report["by_role"], report["averaged"]
    said = f"{kept:,} of {kept + new:,} pieces keep the base's rows, {new:,} are new."
    name = directory.resolve().name
    return Page(f"Adapted model {name}", said, [rows, *tokenizer_page({name: directory}).sections])


def _pieces(directories: dict[str, Path], models: dict[str, Any]) -> Section:
    scripts = {name: _scripts(model) for name, model in models.items()}
    common = [one for one, _ in sum(scripts.values(), Counter()).most_common(_SCRIPTS)]
    rows: dict[str, list[int]] = {"pieces": [len(model.pieces) for model in models.values()]}
    for kind, label in ((NORMAL, "of text"), (BYTE, "single bytes"), (CONTROL, "control")):
        rows[label] = [sum(piece.type == kind for piece in model.pieces) for model in models.values()]
    for one in common:
        rows[f"of text, {one}"] = [own[one] for own in scripts.values()]
    rows["never encoded"] = [len(unreachable_pieces(directory / MODEL_NAME)) for directory in directories.values()]
    texts = {name: {piece.piece for piece in model.pieces} for name, model in models.items()}
    for other, own in texts.items() if len(models) > 1 else ():
        rows[f"shared with {other}"] = [len(own & pieces) for pieces in texts.values()]
    table = Table(
        "Pieces; a script's are those whose letters are all of it.",
        ("", *models),
        tuple((label, *(f"{count:,}" for count in counts)) for label, counts in rows.items()),
    )
    longest = {
        name: sorted(_texts(model), key=lambda text: (-len(text), text))[:_LONGEST] for name, model in models.items()
    }
    return Section(
        "Pieces", parts=(table, Segments("The longest pieces.", tuple((n, tuple(p)) for n, p in longest.items())))
    )


def _lengths(models: dict[str, Any]) -> Section:
    ends = [*(start - 1 for start in _LENGTHS[1:]), None]
    labels = [str(a) if a == b else f"{a}-{b}" if b else f"{a} +" for a, b in zip(_LENGTHS, ends, strict=True)]
    shares: dict[str, list[float]] = {}
    for name, model in models.items():
        lengths = [len(text.replace("▁", " ").strip()) for text in _texts(model)]
        counts = [sum(a <= n and (b is None or n <= b) for n in lengths) for a, b in zip(_LENGTHS, ends, strict=True)]
        shares[name] = [100 * count / len(lengths) for count in counts]
    caption = "Pieces of text by their length in characters, the space before a word left out."
    said = "; ".join(
        f"{name}: " + ", ".join(f"{label} characters {share:.0f}%" for label, share in zip(labels, own, strict=True))
        for name, own in shares.items()
    )
    return Section("Lengths", parts=(bar_plot(caption, f"Bars of shares. {said}.", "% of pieces", labels, shares),))


def _sentences(directories: dict[str, Path]) -> Section:
    encoders = {name: BpeEncoder.from_file(directory / MODEL_NAME) for name, directory in directories.items()}
    parts = []
    for sentence in _SENTENCES:
        pieces = {name: tuple(e.piece(i) for i in e.encode(sentence).tolist()) for name, e in encoders.items()}
        counts = ", ".join(f"{len(own)} by {name}" for name, own in pieces.items())
        parts.append(Segments(f"“{sentence}”: {counts}.", tuple(pieces.items())))
    return Section("Two sentences in pieces", parts=tuple(parts))


def _texts(model: Any) -> list[str]:
    return [piece.piece for piece in model.pieces if piece.type == NORMAL]


def _scripts(model: Any) -> Counter[str]:
    """Pieces of text by the script of their letters."""
    found: Counter[str] = Counter()
    for text in _texts(model):
        scripts = {script(character) for character in text if character.isalpha()}
        if len(scripts) == 1:
            found[script_name(scripts.pop())] += 1
        else:
            found["several scripts" if scripts else "no letters"] += 1
    return found
