"""Names that something might act upon instead of showing them, and what must be seen of them."""

import re
from html.parser import HTMLParser

from hypothesis import strategies as st
from rich.cells import cell_len

from vikhr_fast.io.plain import plain

WORST = (
    "$x_{$",
    "_name",
    "[/x]",
    "\x1b[2J\u202eabc\r\n",
    "</text><script>&amp;",
    "| `a` |__b__\\",
    "{{ 1/0 }}",
    "中😀é\u0301",
)
"""A few that each broke something once."""
_PARTS = (
    *"$_{}\\[]/<>&\"'|`*~#!:;=%@-. \n\r\t\x1b\x00\x7f\x9b", "$a$", "\\frac", "[red]", "[/]", ":smile:", "<b>", "</td>",
    "&lt;", "{{", "\u200b", "\u202e", "\u2028", "\u0301", "中", "😀", "ё", "עב", "\ud800", "a", "name", "A" * 40,
)  # fmt: skip
names = st.one_of(
    st.sampled_from([*WORST, "", " ", "-x", "a" * 300]), st.lists(st.sampled_from(_PARTS), max_size=8).map("".join)
)
file_names = names.map(lambda name: re.sub("[/\x00\ud800]", "", name)).filter(
    lambda name: name not in ("", ".", "..") and len(name.encode()) <= 255
)
"""Those that a file may have."""


def squeezed(text: str) -> str:
    """Without white space, the strokes of a terminal's table, and what has no width there, which it may leave out."""
    return "".join(c for c in re.sub(r"[\s\u200b\u2500-\u257f]", "", text) if cell_len(c))


def is_seen(name: str, text: str) -> bool:
    """Whether a text has what can be seen of a name; of a long one, its beginning."""
    return squeezed(plain(name))[:30] in squeezed(text)


class Page(HTMLParser):
    """Elements with their attributes, and the text outside of styles; fails on tags that don't match."""

    _VOID = ("meta", "path", "use", "img", "br", "rect")

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
        if tag not in self._VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self._VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data
