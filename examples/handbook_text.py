"""Makes Russian text to adapt a model with, or English for a replay, of the Debian Administrator's Handbook.

    python examples/handbook_text.py OUTPUT.txt [russian|english]

It comes out of a package of Debian: this needs Debian or Ubuntu with the lists of packages fetched (`apt-get update`),
no root. Paragraphs that nobody has translated are left out of the Russian. Passages of some paragraphs stand between
blank lines; the file is complete or absent.
"""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import refuse_existing, write_text

PACKAGE = "debian-handbook"
PAGES = f"usr/share/doc/{PACKAGE}/html/{{}}/*.html"
LOCALES = {"russian": "ru-RU", "english": "en-US"}
ADVICE = "give text of your own, `make real RUSSIAN=FILE` or `make replay ENGLISH=FILE`"
PASSAGE_CHARACTERS = 800
CYRILLIC = range(0x400, 0x500)


def main() -> None:
    """Makes the file that is named."""
    language = sys.argv[2] if len(sys.argv) == 3 else "russian"
    if len(sys.argv) not in (2, 3) or language not in LOCALES:
        sys.exit(f"usage: python {sys.argv[0]} OUTPUT.txt [russian|english]")
    try:
        with TemporaryDirectory() as directory:
            make_text(Path(directory), Path(sys.argv[1]), language)
    except InputError as error:
        sys.exit(f"error: {error}")


def make_text(place: Path, output: Path, language: str) -> None:
    """Writes the passages of the handbook in a language, each paragraph once."""
    refuse_existing(output)
    package = fetch(PACKAGE, place)
    seen: set[str] = set()
    texts: list[str] = []
    foreign = 0
    pages = PAGES.format(LOCALES[language])
    for page in sorted(place.glob(pages)):
        found = [one for one in paragraphs(page.read_text(encoding="utf-8")) if one not in seen]
        seen.update(found)
        kept = [one for one in dict.fromkeys(found) if is_russian(one) == (language == "russian")]
        foreign += len(found) - len(kept)
        texts += passages(kept)
    if not texts:
        raise InputError(f"{package}: no {language.title()} in {pages}; {ADVICE}")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, "\n\n".join(texts) + "\n")
    left_out = f"{foreign:,} paragraphs that aren't {language.title()} left out"
    print(f"{package}: {len(texts):,} passages, {output.stat().st_size:,} bytes; {left_out}")


def fetch(package: str, place: Path) -> str:
    """Unpacks the newest version of a package that the lists have; returns the file's name."""
    run(["apt-get", "--quiet", "--quiet", "download", package], place)
    file = next(place.glob(f"{package}_*.deb")).name
    run(["dpkg-deb", "--extract", file, "."], place)
    return file


def run(command: list[str], place: Path) -> None:
    """Runs a command; InputError with the last line of what it said where it fails."""
    try:
        ended = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError(f"{command[0]}: not on this machine; take Debian or Ubuntu, or {ADVICE}") from None
    if ended.returncode:
        said = ended.stderr.strip().rpartition("\n")[-1] or f"exit code {ended.returncode}"
        raise InputError(f"{' '.join(command)}: {said}; run `apt-get update`, or {ADVICE}")


def passages(found: Iterable[str]) -> Iterator[str]:
    """Consecutive paragraphs, a line each, joined to texts that are long enough to have a context."""
    passage: list[str] = []
    for paragraph in found:
        passage.append(paragraph)
        if sum(map(len, passage)) >= PASSAGE_CHARACTERS:
            yield "\n".join(passage)
            passage = []
    if passage:
        yield "\n".join(passage)


def paragraphs(page: str) -> Iterator[str]:
    """The paragraphs of a page of HTML, as a line each."""
    reader = ParagraphReader()
    reader.feed(page)
    yield from filter(None, (" ".join(text.split()) for text in reader.paragraphs))


def is_russian(text: str) -> bool:
    """Whether most letters of a text are Cyrillic."""
    letters = [character for character in text if character.isalpha()]
    return sum(ord(letter) in CYRILLIC for letter in letters) * 2 > len(letters)


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
