"""The page holds everything in itself, says in words what it shows, and lets no text become markup."""

import html
import re

import pytest
from hostile import WORST, Page, is_seen

from vikhr_fast.io.html import Figure, Line, Section, Segments, Table, bar_plot, line_plot, write_report

HOSTILE = "<script>alert(\"x\")</script> & 'quoted' <img src=x onerror=y>"


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


def drawn_texts(figure: Figure) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>(.*?)</text>", figure.svg)]


@pytest.mark.filterwarnings("error")
def test_plots_show_every_name_as_it_is() -> None:
    lines = line_plot("A.", "B.", WORST[0], WORST[1], [Line(name, [0, 1], [2.0, 1.0]) for name in WORST])
    bars = bar_plot("A.", "B.", WORST[0], WORST, {name: [1.0] * len(WORST) for name in WORST})
    for figure, times in ((lines, 1), (bars, 2)):
        texts = drawn_texts(figure)
        assert WORST[0] in texts
        for name in WORST:
            assert sum(is_seen(name, text) for text in texts) >= times
        Page(figure.svg)


@pytest.mark.filterwarnings("error")
def test_a_name_that_is_too_long_for_a_plot_is_cut() -> None:
    texts = drawn_texts(bar_plot("A.", "B.", "count", ["б" * 300, "short\nand " + "в" * 300], {"г" * 300: [1, 2]}))
    assert {f"{letter * 63}…" for letter in "бг"} <= set(texts)
    assert any(text.startswith("and ввв") and text.endswith("…") for text in texts)


def test_an_empty_name_has_its_place_in_the_legend() -> None:
    texts = drawn_texts(line_plot("A.", "B.", "x", "y", [Line(name, [0, 1], [2.0, 1.0]) for name in ("", "second")]))
    assert "second" in texts
