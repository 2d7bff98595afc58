"""Tables for the terminal, and HTML pages that hold plots and styles in themselves and ask nothing of the network."""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from warnings import catch_warnings, filterwarnings

from vikhr_fast.io.console import PlainConsole
from vikhr_fast.io.files import write_text
from vikhr_fast.io.plain import one_line, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#3b82c4", "#e07b39", "#4f9d69", "#b05fc6", "#c9a227")  # told apart on white and on black
_STYLES = ("-", "--", "-.", ":")
_FIGURE_CHARACTERS = 30  # that the longest figure in a table takes
_TEXT_CHARACTERS = 64  # of a text in a terminal's line, and of a name in a plot; a SHA-256 has as many
_PIPE_CHARACTERS = 10_000  # in a line, for programs: no figure is cut there
_LABEL_CHARACTERS = 48  # that fit side by side under a plot
_INK = "#010203"  # stands for the page's own text colour, which is light in a dark room

Values = Mapping[str, Sequence[float]]
"""By their name."""


class Table(NamedTuple):
    """A table; the first column names the rows."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def has_text(self) -> list[bool]:
        """Of each column, whether it holds text rather than figures: it begins on the left, and its lines break."""
        columns = range(len(self.header))
        return [any(len(row[column]) > _FIGURE_CHARACTERS for row in self.rows) for column in columns]


class Figure(NamedTuple):
    """A plot."""

    caption: str
    alt: str
    """What the plot shows, for those who can't see it."""
    svg: str
    """An <svg> element of `line_plot` or `bar_plot`; goes into the page as it is."""


class Segments(NamedTuple):
    """Texts cut into pieces, such as one sentence by several tokenizers."""

    caption: str
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """A name and the pieces."""


class Section(NamedTuple):
    """A heading, what there is to say, what there is to see."""

    title: str
    paragraphs: tuple[str, ...] = ()
    parts: tuple[Table | Figure | Segments, ...] = ()


class Page(NamedTuple):
    """What `write_report` makes a page of."""

    title: str
    summary: str
    sections: Sequence[Section]


class Line(NamedTuple):
    """One line of a plot."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    """Lines that belong together share a number,"""
    style: int = 0
    """and differ in this one."""
    markers: bool = False


def print_tables(tables: Iterable[Table]) -> None:
    """Prints the tables that have rows on standard output, as wide as the terminal; in a pipe, as wide as they are."""
    from rich.table import Table as TerminalTable

    width = None if PlainConsole().is_terminal else _PIPE_CHARACTERS
    console = PlainConsole(width=width)
    for table in (table for table in tables if table.rows):
        console.print(table.caption, style="italic", soft_wrap=True)
        shown = TerminalTable(show_lines=any(len(cell) > _TEXT_CHARACTERS for row in table.rows for cell in row))
        for number, (name, is_text) in enumerate(zip(table.header, table.has_text, strict=True)):
            is_left = number == 0 or is_text or any(row[number][:1] not in "+-–0123456789" for row in table.rows)
            limit = _TEXT_CHARACTERS if is_text else None
            shown.add_column(name, justify="left" if is_left else "right", max_width=limit, overflow="fold")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)


def write_report(path: Path, title: str, summary: str, sections: Sequence[Section]) -> None:
    """Writes the page, complete or not at all. Every text in it is plain, and escaped."""
    import jinja2
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return value if isinstance(value, Markup) else plain(str(value))

    template = (Path(__file__).parent.parent / "templates" / "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=shown
    )
    write_text(path, environment.from_string(template).render(title=title, summary=summary, sections=sections))


def line_plot(caption: str, alt: str, x_label: str, y_label: str, lines: Sequence[Line]) -> Figure:
    """Lines over one pair of axes."""

    def draw(axes: "Axes") -> None:
        drawn = []
        for line in lines:
            colour, style = _COLOURS[line.colour % len(_COLOURS)], _STYLES[line.style % len(_STYLES)]
            marker = "o" if line.markers else ""
            drawn += axes.plot(line.x, line.y, style, c=colour, marker=marker, markersize=3, linewidth=1.6)
        axes.set_xlabel(_label(x_label), parse_math=False)
        axes.set_ylabel(_label(y_label), parse_math=False)
        _add_legend(axes, drawn, [line.name for line in lines])

    return Figure(caption, alt, _svg(draw, caption))


def bar_plot(
    caption: str, alt: str, y_label: str, groups: Sequence[str], bars: Values, errors: Values | None = None
) -> Figure:
    """Bars side by side in groups, see `draw_bars`."""
    return Figure(caption, alt, _svg(lambda axes: draw_bars(axes, y_label, groups, bars, errors), caption))


def draw_bars(axes: "Axes", y_label: str, groups: Sequence[str], bars: Values, errors: Values | None = None) -> None:
    """Draws for each name in `bars` a bar a group, and its standard error if given."""
    width, all_drawn = 0.8 / len(bars), []
    for index, (name, values) in enumerate(bars.items()):
        places = [group + (index - (len(bars) - 1) / 2) * width for group in range(len(groups))]
        colour, error = _COLOURS[index % len(_COLOURS)], (errors or {}).get(name)
        drawn = axes.bar(places, values, width * 0.92, color=colour, yerr=error, ecolor=_INK, capsize=3)
        axes.bar_label(drawn, fmt="%.3g", padding=2, fontsize=8)
        all_drawn.append(drawn)
    axes.set_ylabel(_label(y_label), parse_math=False)
    labels = ["\n".join(map(_label, group.split("\n"))) for group in groups]
    is_crowded = sum(max(map(len, label.split("\n"))) for label in labels) > _LABEL_CHARACTERS
    slanted: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(labels)), labels, parse_math=False, **(slanted if is_crowded else {}))
    axes.margins(y=0.15)
    _add_legend(axes, all_drawn, list(bars))


def _add_legend(axes: "Axes", drawn: Sequence[Any], names: Sequence[str]) -> None:
    """A legend with every name as it is: matplotlib leaves out `_name`, and takes `$a$` for a formula.

    Args:
        axes: that it is for.
        drawn: lines or groups of bars.
        names: of each.
    """
    legend = axes.legend(drawn, [str(number) for number in range(len(drawn))])
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=_label(name), parse_math=False)


def _label(name: str) -> str:
    """A name in a plot: one line, and a beginning of it where there is no room for it all."""
    name = one_line(name)
    return name if len(name) <= _TEXT_CHARACTERS else f"{name[: _TEXT_CHARACTERS - 1]}…"


def _svg(draw: Callable[["Axes"], None], salt: str) -> str:
    """Draws on fresh axes and returns an <svg> element that fits any width and takes the page's text colour.

    Args:
        draw: called with the axes.
        salt: makes ids differ from those of the page's other plots, and the same on every run.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    left_out = ("axes.spines.top", "axes.spines.right", "legend.frameon")
    settings = {"svg.fonttype": "none", "svg.hashsalt": plain(salt), "axes.grid": True, "grid.alpha": 0.2}
    with rc_context({**settings, **dict.fromkeys(inked, _INK), **dict.fromkeys(left_out, False)}), catch_warnings():
        # The page's fonts have more than the one that measures; very long names leave little room for the curves.
        filterwarnings("ignore", "Glyph .* missing|constrained_layout not applied", UserWarning)
        canvas = Canvas(figsize=(5.2, 3.2), layout="constrained")
        draw(canvas.subplots())
        file, unnamed = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
        canvas.savefig(file, format="svg", transparent=True, metadata=unnamed)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # the names of groups are the same in every plot
    # In HTML the namespaces are known, and the size is the page's.
    opening, rest = svg.split(">", 1)
    opening = re.sub(r'\s(?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", opening)
    return f"{opening}>{rest.strip()}"
