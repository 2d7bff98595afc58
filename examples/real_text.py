"""Makes text to adapt a model with, out of two packages of Debian: their documentation in Russian and in English.

    python examples/real_text.py OUTPUT

Russian is the Debian Administrator's Handbook as far as it is translated, English the Debian Policy, so that the one is
no translation of the other. It needs Debian or Ubuntu with the lists of packages fetched (`apt-get update`), no root.
OUTPUT has ru/handbook.txt and en/policy.txt, a paragraph between blank lines, and is complete or absent.
"""

import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import atomic_directory, write_text


class Source(NamedTuple):
    """Where a language's text is."""

    package: str
    pages: str
    """A pattern below the package's documentation."""
    file: str
    """To make of them."""
    alphabet: range
    """Code points, of which most letters must be; a page may have paragraphs that nobody has translated."""


SOURCES = (
    Source("debian-handbook", "html/ru-RU/*.html", "ru/handbook.txt", range(0x400, 0x500)),
    Source("debian-policy", "*.html/*.html", "en/policy.txt", range(0x41, 0x7B)),
)


def main() -> None:
    """Makes the directory that is named."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} OUTPUT")
    try:
        with atomic_directory(Path(sys.argv[1])) as directory, TemporaryDirectory() as unpacked:
            for source in SOURCES:
                make_text(source, Path(unpacked), directory / source.file)
    except InputError as error:
        sys.exit(f"error: {error}")


def make_text(source: Source, place: Path, file: Path) -> None:
    """Writes the paragraphs of a package's pages, each once."""
    package = fetch(source.package, place)
    pages = sorted((place / "usr" / "share" / "doc" / source.package).glob(source.pages))
    found = dict.fromkeys(paragraph for page in pages for paragraph in paragraphs(page.read_text(encoding="utf-8")))
    kept = [paragraph for paragraph in found if is_written_in(paragraph, source.alphabet)]
    if not kept:
        raise InputError(f"{package}: no paragraphs in {source.pages}; give text of your own")
    file.parent.mkdir()
    write_text(file, "\n\n".join(kept) + "\n")
    size = file.stat().st_size
    print(f"{package}: {len(kept):,} paragraphs, {size:,} bytes; {len(found) - len(kept):,} in another script left out")


def fetch(package: str, place: Path) -> str:
    """Unpacks the newest version of a package that the lists have; returns the file's name."""
    run(["apt-get", "--quiet", "--quiet", "download", package], place)
    file = next(place.glob(f"{package}_*.deb")).name
    run(["dpkg-deb", "--extract", file, "."], place)
    return file


def run(command: list[str], place: Path) -> None:
    """Runs a command; InputError with the last line of what it said where it fails."""
    advice = "or give text of your own, `make real DATA=DIRECTORY`"
    try:
        ended = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError(f"{command[0]}: not on this machine; take Debian or Ubuntu, {advice}") from None
    if ended.returncode:
        said = ended.stderr.strip().rpartition("\n")[-1] or f"exit code {ended.returncode}"
        raise InputError(f"{' '.join(command)}: {said}; run `apt-get update`, {advice}")


def paragraphs(page: str) -> Iterator[str]:
    """The paragraphs of a page of HTML, as a line each."""
    reader = ParagraphReader()
    reader.feed(page)
    yield from filter(None, (" ".join(text.split()) for text in reader.paragraphs))


def is_written_in(text: str, alphabet: range) -> bool:
    """Whether most letters of a text are of an alphabet."""
    letters = [character for character in text if character.isalpha()]
    return sum(ord(letter) in alphabet for letter in letters) * 2 > len(letters)


class ParagraphReader(HTMLParser):
    """Collects the text of `<p>` and `<div class="para">`; one that stands in another is a paragraph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._open: list[tuple[str, list[str] | None]] = []
        """Tags that are open, with the text of those that are paragraphs."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begins a paragraph, or something else that ends."""
        if tag in ("p", "div", "pre"):
            is_paragraph = tag == "p" or (tag == "div" and ("class", "para") in attrs)
            self._open.append((tag, [] if is_paragraph else None))

    def handle_endtag(self, tag: str) -> None:
        """Ends what is open."""
        while tag in (name for name, _ in self._open):
            name, text = self._open.pop()
            if text is not None:
                self.paragraphs.append("".join(text))
            if name == tag:
                return

    def handle_data(self, data: str) -> None:
        """Adds to the paragraph around it; what is laid out, or outside, isn't wanted."""
        if self._open and (text := self._open[-1][1]) is not None:
            text.append(data)


if __name__ == "__main__":
    main()
