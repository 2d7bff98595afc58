"""The lines of text files, compressed or not, one at a time and numbered."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from vikhr_fast.errors import InputError

_READ_BYTES = 1 << 20
_UTF8_MARK = b"\xef\xbb\xbf"


class CutShortError(InputError):
    """A file cannot be read on: all that follows in it is lost."""


OnBad = Callable[[Path, int, InputError], None]
"""Gets the file, the line or row, and what is wrong there; raises it, or returns to go on with the next record."""


def one_line(error: BaseException) -> str:
    """What an error says, for messages."""
    return " ".join(str(error).split()) or type(error).__name__


class _ZstdStream(io.RawIOBase):
    """Decompresses zstd frames; unlike zstandard's own reader it notices a frame that is cut short."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        # Frames written with --long=31 need the largest window; memory is taken only when a frame asks for it.
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = b""
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # collections.abc.Buffer, once Python 3.12 is the oldest
        while not self._pending:
            compressed = self._compressed or self._file.read(_READ_BYTES)
            self._compressed = b""
            if not compressed:
                if self._frame is not None:
                    raise EOFError("the last frame is cut short")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            self._pending = memoryview(self._frame.decompress(compressed))
            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None
        target = memoryview(buffer)
        count = min(len(target), len(self._pending))
        target[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count


def numbered_lines(path: Path, on_bad: OnBad) -> Iterator[tuple[int, str | None]]:
    """Numbered lines (from 1) of a text file, without their ends (LF or CRLF); None for a bad one."""
    number, offset = 0, 0
    try:
        with path.open("rb") as file:
            stream: Iterable[bytes] = file
            if path.name.lower().endswith(".gz"):
                stream = gzip.GzipFile(fileobj=file)
            elif path.name.lower().endswith(".zst"):
                stream = io.BufferedReader(_ZstdStream(file), _READ_BYTES)
            for line in stream:
                number += 1
                start = len(_UTF8_MARK) if number == 1 and line.startswith(_UTF8_MARK) else 0
                text: str | None = None
                try:
                    text = line[start:].decode("utf-8").removesuffix("\n").removesuffix("\r")
                except UnicodeDecodeError as error:
                    place = f"line {number}, byte {offset + start + error.start}"
                    bad = InputError(f"{path}: {place}: invalid UTF-8; convert the file to UTF-8")
                    on_bad(path, number, bad)
                offset += len(line)
                yield number, text
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        place = f"after line {number}: " if number else ""
        reason = f"{path}: {place}cannot be read on: {one_line(error)}; fetch or make it again"
        on_bad(path, number + 1, CutShortError(reason))
