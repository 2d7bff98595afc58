"""What a name holds is shown, and nothing acts upon it: no terminal, no markup, no Markdown."""

import io
import logging
import unicodedata

import pytest
from hostile import WORST, is_seen, names, squeezed
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.table import Table

from vikhr_fast.io import console as module
from vikhr_fast.io.console import PlainConsole, configure_logging, logger
from vikhr_fast.io.plain import as_markdown, one_line, plain
from vikhr_fast.io.progress import progress_bar

BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@settings(deadline=None)
@given(st.one_of(names, st.text(st.characters(codec=None))))
def test_nothing_acts_on_what_stands_around_it(text: str) -> None:
    shown = plain(text)
    shown.encode("utf-8")
    for character in set(shown) - set("\n\t"):
        assert unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(character) not in BIDI
    assert plain(shown) == shown
    assert len(one_line(text).splitlines()) <= 1
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x9b\x00\x7f", r"\x1b[2J\x9b\x00\x7f"),
        ("a\r\nb\rc\td", "a\nb\\rc\td"),
        ("\u202eabc\u2066", r"\u202eabc\u2066"),
        ("\ud800\udcff", r"\ud800\udcff"),
        ("می‌خواهم 👩‍👩‍👧", "می‌خواهم 👩‍👩‍👧"),  # a joiner belongs to its letters
    ],
)
def test_what_acts_is_spelled_out(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_lines_become_one() -> None:
    assert one_line("a \n  b\r\n\u2028c  d\x0be\x85") == "a b  c  d e"


@settings(deadline=None)
@given(names, names)
@example("__a__b_c_", "| `x` |")
@example("[a](b)", "\\")
def test_markdown_reads_as_it_is(first: str, second: str) -> None:
    table = f"| name | other |\n|---|---|\n| {as_markdown(first)} | {as_markdown(second)} |\n"
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    cells = [token for token in parser.parse(table) if token.type == "inline"][2:]
    assert len(cells) == 2
    for cell, name in zip(cells, (first, second), strict=True):
        assert {child.type for child in cell.children or []} <= {"text", "text_special"}
        assert "".join(child.content for child in cell.children or []) == one_line(name).strip()


def printed(*things: object) -> str:
    file = io.StringIO()
    for thing in things:
        PlainConsole(file=file, width=500, force_terminal=True, color_system=None).print(thing)
    return file.getvalue()


@settings(deadline=None)
@given(st.lists(names, min_size=1, max_size=3))
@example(list(WORST))
def test_a_console_shows_every_name(found: list[str]) -> None:
    for name in found:
        assert is_seen(name, printed(name))
        table = Table(name, title=name, caption=name)
        table.add_row(name)
        shown = printed(table)
        assert "\x1b" not in shown
        assert "\x9b" not in shown
        if seen := squeezed(plain(name))[:30]:
            assert squeezed(shown).count(seen) >= 4  # title, heading, cell, caption


def test_a_log_line_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(module, "console", PlainConsole(file=file, width=80))
    configure_logging("info")
    monkeypatch.setattr(logger, "level", logging.INFO)
    for name in WORST:
        logger.warning(f"source {name}: no document")
    lines = file.getvalue().splitlines()
    assert [line.startswith("WARNING: source ") for line in lines] == [True] * len(WORST)
    assert all(map(is_seen, WORST, lines))
    assert not any("\x1b" in line for line in lines)


def test_a_progress_bar_shows_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from vikhr_fast.io import progress

    for name in WORST:
        file = io.StringIO()
        monkeypatch.setattr(progress, "console", PlainConsole(file=file, width=200, force_terminal=True))
        with progress_bar(name, 2) as advance:
            advance(2)
        assert is_seen(name, file.getvalue())
