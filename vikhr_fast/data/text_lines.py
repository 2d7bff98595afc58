"""The lines of text files, compressed or not, one at a time and numbered, in memory that no file can exceed."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

import zstandard

from vikhr_fast.errors import InputError, require
from vikhr_fast.io.plain import one_line

MAX_MEGABYTES = 64.0
"""Of a line, unless told otherwise."""
MAX_LINE = int(MAX_MEGABYTES * 1e6)
"""The same in bytes."""
_READ_BYTES = 1 << 20
_ZSTD_BYTES = 1 << 12  # become 128 MiB at most: a block of 128 KiB can take 4 bytes
_UTF8_MARK = b"\xef\xbb\xbf"


class CutShortError(InputError):
    """A file cannot be read on: all that follows in it is lost."""


OnBad = Callable[[Path, int, InputError], None]
"""Gets the file, the line or row, and what is wrong there; raises it, or returns to go on with the next record."""


def reason_of(error: BaseException) -> str:
    """What an error says, for messages."""
    return one_line(str(error)) or type(error).__name__


class HasMaxLine(Protocol):
    """Options of a command."""

    @property
    def max_line(self) -> float:
        """MB of a line."""


def line_bytes(options: HasMaxLine) -> int:
    """How many bytes a line may have by a command's options; InputError where that cannot be."""
    require(options, max_line=(1e-6 <= options.max_line < 1e9, "a number of MB"))
    return int(options.max_line * 1e6)


def too_long(path: Path, number: int, max_line: int) -> InputError:
    """What is wrong with a line, or a document of lines from this one on, that has more than `max_line` bytes."""
    advice = "cut it up, or allow more where that can be: --max-line, or max_line in corpus.toml"
    return InputError(f"{path}: line {number}: more than {max_line / 1e6:,g} MB; {advice}")


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
            compressed = self._compressed or self._file.read(_ZSTD_BYTES)
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


def numbered_lines(path: Path, on_bad: OnBad, max_line: int = MAX_LINE) -> Iterator[tuple[int, str | None]]:
    """Numbered lines (from 1) of a text file, without their ends (LF or CRLF); None for a bad one.

    Args:
        path: the file.
        on_bad: gets what is wrong.
        max_line: bytes of a line; a longer one is bad, and is passed over without being held.
    """
    number, offset = 0, 0
    try:
        with path.open("rb") as file:
            stream: io.BufferedIOBase = file
            if path.name.lower().endswith(".gz"):
                stream = gzip.GzipFile(fileobj=file)
            elif path.name.lower().endswith(".zst"):
                stream = io.BufferedReader(_ZstdStream(file), _READ_BYTES)
            for line in iter(partial(stream.readline, max_line + 1), b""):
                number += 1
                size = len(line)
                text: str | None = None
                if size > max_line and not line.endswith(b"\n"):
                    on_bad(path, number, too_long(path, number, max_line))
                    size += _pass_over(stream)
                else:
                    start = len(_UTF8_MARK) if number == 1 and line.startswith(_UTF8_MARK) else 0
                    try:
                        text = line[start:].decode("utf-8").removesuffix("\n").removesuffix("\r")
                    except UnicodeDecodeError as error:
                        place = f"line {number}, byte {offset + start + error.start}"
                        bad = InputError(f"{path}: {place}: invalid UTF-8; convert the file to UTF-8")
                        on_bad(path, number, bad)
                offset += size
                yield number, text
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        place = f"after line {number}: " if number else ""
        reason = f"{path}: {place}cannot be read on: {reason_of(error)}; fetch or make it again"
        on_bad(path, number + 1, CutShortError(reason))


def _pass_over(stream: io.BufferedIOBase) -> int:
    """Reads to the end of a line; returns how many bytes that were."""
    size = 0
    for part in iter(partial(stream.readline, _READ_BYTES), b""):
        size += len(part)
        if part.endswith(b"\n"):
            break
    return size
