"""JSON and TOML that anybody may have written: whatever is wrong with it is one line.

What comes back is nested `MOST_NESTED` deep at most, so that any function may go through it by calling itself.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from vikhr_fast.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_NESTED = 100
"""Lists and objects that may stand one in another."""
MOST_BYTES = 256 << 20
"""Of a file that is read whole."""
_MOST_TOML_BYTES = 1 << 20  # tomllib takes seconds for it
_CHUNK_BYTES = 1 << 20
_TOO_DEEP = f"nested more than {MOST_NESTED} deep"
# The memory that tomllib takes for a key grows with the square of its parts.
_KEY_PART = r"""(?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_LONG_KEY = re.compile(rf"(?:^|[\[{{,])[ \t]*{_KEY_PART}(?:[ \t]*\.[ \t]*{_KEY_PART}){{{MOST_NESTED}}}", re.MULTILINE)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, in which NaN and infinities may stand.

    Raises:
        ValueError: the reason alone: no JSON (a JSONDecodeError), not UTF-8, nested too deeply, or a number with more
            digits than Python reads.
    """
    value = _parsed(json.loads, text, json.JSONDecodeError, UnicodeDecodeError)
    brackets = text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    if brackets > MOST_NESTED:
        _refuse_deep(value)
    return value


def read_json(path: Path, advice: str = "") -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: of the file.
        advice: what errors tell the reader to do.

    Raises:
        InputError: as `read_json_value`, or the file holds something else.
    """
    values = read_json_value(path, advice)
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise InputError(f"{path}: damaged: must hold a JSON object, holds a {kind}{advice and f'; {advice}'}")
    return values


def read_json_value(path: Path, advice: str = "") -> Any:
    """The JSON value in a file.

    Args:
        path: of the file.
        advice: what errors tell the reader to do.

    Raises:
        InputError: the file can't be read, is not UTF-8, or not JSON (with line and column), or nested too deeply.
    """
    advice = advice and f"; {advice}"
    try:
        return parse_json(read_bytes(path).decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file{advice}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}{advice}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: damaged: byte {error.start}: not UTF-8{advice}") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{path}: damaged: {place}: not JSON: {error.msg}{advice}") from None
    except ValueError as error:
        raise InputError(f"{path}: damaged: {error}{advice}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The values in a TOML file.

    Raises:
        InputError: it can't be read, isn't TOML (with line and column), or has a value that nobody means (with key).
    """
    try:
        text = read_bytes(path, _MOST_TOML_BYTES).decode("utf-8-sig")
        if _LONG_KEY.search(text):
            raise ValueError(f"a key of more than {MOST_NESTED} parts")
        values: dict[str, Any] = _parsed(tomllib.loads, text, tomllib.TOMLDecodeError)
        _refuse_deep(values)
        for keys, value in _leaves(values):
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{'.'.join(keys)}: an integer of more than 64 bits")
            if any("\0" in one for one in (*keys, value) if isinstance(one, str)):
                raise ValueError(f"{'.'.join(keys)}: a string with the character U+0000")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    return values


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """A whole file; OSError where it can't be read, InputError where it is larger than what anybody means to give."""
    size, chunks = 0, []
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > most:
                reason = f"larger than {most >> 20} MiB, the most that is read of such a file"
                raise InputError(f"{path}: {reason}; is it the right one?")
            chunks.append(chunk)
    return b"".join(chunks)


def _parsed(parse: Callable[[Any], Any], text: str | bytes, *own: type[ValueError]) -> Any:
    """What a parser makes of a text; its own errors, or a ValueError where it fails otherwise."""
    try:
        return parse(text)
    except own:
        raise
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except ValueError:  # of Python's int
        raise ValueError("a number of too many digits") from None


def _refuse_deep(value: object) -> None:
    """ValueError where more than `MOST_NESTED` lists and objects stand one in another; goes level by level."""
    level = [value]
    for _ in range(MOST_NESTED):
        level = [own for one in level for own in _inside(one) if isinstance(own, dict | list)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _leaves(value: object, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """What is no list and no object in a value, with the keys that lead there."""
    if isinstance(value, dict):
        for key, own in value.items():
            yield from _leaves(own, (*keys, key))
    elif isinstance(value, list):
        for own in value:
            yield from _leaves(own, keys)
    else:
        yield keys, value


def _inside(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
