"""Reports: one HTML page that holds its plots and styles in itself and asks nothing of the network."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from vikhr_fast.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TEMPLATES = Path(__file__).parent / "templates"
_COLOURS = ("#3b82c4", "#e07b39", "#4f9d69", "#b05fc6", "#c9a227")  # told apart on white and on black
_STYLES = ("-", "--", "-.", ":")
_FIGURE_CHARACTERS = 30  # that the longest figure in a table takes
_LABEL_CHARACTERS = 48  # that fit side by side under a plot
_INK = "#010203"  # stands for the page's own text colour, which is light in a dark room


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows."""

    kind: ClassVar[str] = "table"
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def has_text(self) -> list[bool]:
        """Of each column, whether it holds text rather than figures: it begins on the left, and its lines break."""
        columns = zip(*self.rows, strict=True)
        return [any(len(cell) > _FIGURE_CHARACTERS for cell in column) for column in columns]


@dataclass(frozen=True)
class Figure:
    """A plot."""

    kind: ClassVar[str] = "figure"
    caption: str
    alt: str
    """What the plot shows, for those who can't see it."""
    svg: str
    """An <svg> element of `line_plot` or `bar_plot`; goes into the page as it is."""


@dataclass(frozen=True)
class Segments:
    """Texts cut into pieces, such as one sentence by several tokenizers."""

    kind: ClassVar[str] = "segments"
    caption: str
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """A name and the pieces."""


@dataclass(frozen=True)
class Section:
    """A heading, what there is to say, what there is to see."""

    title: str
    paragraphs: tuple[str, ...] = ()
    parts: tuple[Table | Figure | Segments, ...] = ()


class Page(NamedTuple):
    """What `write_report` makes a page of."""

    title: str
    summary: str
    sections: Sequence[Section]


@dataclass(frozen=True)
class Line:
    """One line of a plot."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    """Lines that belong together share a number,"""
    style: int = 0
    """and differ in this one."""
    markers: bool = False


def write_report(path: Path, title: str, summary: str, sections: Sequence[Section]) -> None:
    """Writes the page, complete or not at all. Every text in it is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html").render(title=title, summary=summary, sections=sections)
    write_text(path, page)


def line_plot(caption: str, alt: str, x_label: str, y_label: str, lines: Sequence[Line]) -> Figure:
    """Lines over one pair of axes."""

    def draw(axes: "Axes") -> None:
        for line in lines:
            axes.plot(
                line.x,
                line.y,
                label=line.name,
                color=_COLOURS[line.colour % len(_COLOURS)],
                linestyle=_STYLES[line.style % len(_STYLES)],
                marker="o" if line.markers else None,
                markersize=3,
                linewidth=1.6,
            )
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.legend()

    return Figure(caption, alt, _svg(draw, caption))


def bar_plot(
    caption: str,
    alt: str,
    y_label: str,
    groups: Sequence[str],
    bars: Mapping[str, Sequence[float]],
    errors: Mapping[str, Sequence[float]] | None = None,
) -> Figure:
    """Bars side by side in groups: for each name in `bars`, a value a group, and its standard error if given."""

    def draw(axes: "Axes") -> None:
        width = 0.8 / len(bars)
        for index, (name, values) in enumerate(bars.items()):
            places = [group + (index - (len(bars) - 1) / 2) * width for group in range(len(groups))]
            colour, error = _COLOURS[index % len(_COLOURS)], (errors or {}).get(name)
            drawn = axes.bar(places, values, width * 0.92, label=name, color=colour, yerr=error, ecolor=_INK, capsize=3)
            axes.bar_label(drawn, fmt="%.3g", padding=2, fontsize=8)
        axes.set(ylabel=y_label)
        is_crowded = sum(max(map(len, group.split("\n"))) for group in groups) > _LABEL_CHARACTERS
        axes.set_xticks(range(len(groups)), groups)
        if is_crowded:
            axes.tick_params("x", labelrotation=30)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        axes.margins(y=0.15)
        axes.legend()

    return Figure(caption, alt, _svg(draw, caption))


def _svg(draw: Callable[["Axes"], None], salt: str) -> str:
    """Draws on fresh axes and returns an <svg> element that fits any width and takes the page's text colour.

    Args:
        draw: called with the axes.
        salt: makes ids differ from those of the page's other plots, and the same on every run.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    settings = {
        **dict.fromkeys(inked, _INK),
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.alpha": 0.2,
        "legend.frameon": False,
    }
    with rc_context(settings):
        canvas = Canvas(figsize=(5.2, 3.2), layout="constrained")
        draw(canvas.subplots())
        file = io.StringIO()
        canvas.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # the names of groups are the same in every plot
    # In HTML the namespaces are known, and the size is the page's.
    opening, rest = svg.split(">", 1)
    opening = re.sub(r'\s(?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", opening)
    return f"{opening}>{rest.strip()}"
