"""The page holds everything in itself, says in words what it shows, and lets no text become markup."""

import re
from html.parser import HTMLParser

import pytest

from vikhr_fast.io.html import Figure, Line, Section, Segments, Table, bar_plot, line_plot, write_report

HOSTILE = "<script>alert(\"x\")</script> & 'quoted' <img src=x onerror=y>"
VOID = {"meta", "path", "use", "img", "br", "rect"}


class Page(HTMLParser):
    """Elements with their attributes, and the text outside of styles; fails on tags that don't match."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data


def figures() -> list[Figure]:
    return [
        line_plot(
            "A line.", "It falls from 2 to 1.", "step", HOSTILE, [Line(HOSTILE, [0, 1], [2.0, 1.0], markers=True)]
        ),
        bar_plot("Bars.", "Two bars.", "count", ["left", HOSTILE], {"one": [1, 2], HOSTILE: [3, 4]}),
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    parts = (
        *figures(),
        Table(HOSTILE, ("name", HOSTILE), ((HOSTILE, "1.5"),)),
        Segments(HOSTILE, ((HOSTILE, ("▁Ма", HOSTILE)),)),
        Figure(HOSTILE, HOSTILE, "<svg></svg>"),
    )
    write_report(path, HOSTILE, HOSTILE, [Section(HOSTILE, (HOSTILE,), parts)])
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_asks_nothing_of_the_network(source: str, page: Page) -> None:
    assert not re.search(r"https?:|@import|//[a-z]", re.sub(r"&[#\w]+;", "", source))
    assert not any(tag in {"script", "link", "img", "iframe", "object", "embed", "base"} for tag, _ in page.elements)
    for _, attributes in page.elements:
        assert "src" not in attributes
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")  # type: ignore[union-attr]
        assert not any(name.startswith("on") for name in attributes)
        assert not any(re.search(r"url\((?!#)", value or "") for value in attributes.values())


def test_text_stays_text(page: Page) -> None:
    # title twice (head, heading), summary, section title, paragraph, 3 captions, header, row, name, piece; in the
    # plots: axis label, legend twice, group
    assert page.text.count(HOSTILE) == 16


def test_every_figure_has_words(page: Page) -> None:
    images = [attributes for _, attributes in page.elements if attributes.get("role") == "img"]
    assert [image["aria-label"] for image in images] == ["It falls from 2 to 1.", "Two bars.", HOSTILE]
    assert sum(tag == "svg" for tag, _ in page.elements) == len(images)


def test_fits_a_phone(source: str, page: Page) -> None:
    viewport = [attributes for tag, attributes in page.elements if attributes.get("name") == "viewport"]
    assert viewport[0]["content"] == "width=device-width, initial-scale=1"
    assert not any({"width", "height"} & attributes.keys() for tag, attributes in page.elements if tag == "svg")
    assert "prefers-color-scheme: dark" in source


def test_ids_are_unique_and_plots_repeatable(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    assert figures() == figures()
