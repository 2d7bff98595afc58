"""Text that others wrote, shown as what it is: a name may hold what a terminal, a page or Markdown would act upon."""

import re

# Control characters but for line breaks and tabs; what turns the direction of the text around it; halves of characters.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# An underscore within a word is one to Markdown, too.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$&]|(?<![^\W_])_|_(?![^\W_])")


def plain(text: str) -> str:
    r"""Text with what can't be seen, but acts on a terminal or on its neighbours, spelled out: `\x1b`, `\u202e`.

    Line breaks and tabs stay, and the result always encodes to UTF-8.
    """
    return _ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """As `plain`, with spaces in place of line breaks."""
    return plain(" ".join(line.strip() for line in text.splitlines()))


def as_markdown(text: object) -> str:
    """A value in one line of Markdown, a table's cell say, that reads as it is."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(str(text)))
