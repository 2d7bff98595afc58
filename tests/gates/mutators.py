"""Small changes of JSON, TOML and safetensors files, most of which leave them readable and some of which don't."""

import json
import random
import struct
from collections.abc import Callable
from typing import Any

Chance = random.Random

# Values that are no value where they stand, as JSON spells them.
_ODD = (
    *("null", "true", "false", "0", "-1", "1", "2.5", "-0.0", "1e400", "NaN", "Infinity", "-Infinity", "[]", "{}"),
    *('""', '"x"', '"0"', '".."', '"../x"', '"/dev/zero"'),
    *("1000000000", "4294967295", "1000000000000", "9223372036854775807", "18446744073709551616"),
    *('"\\u0000"', '"\\ud800"', '"a\\nb"', f'"{"x" * 300}"', f'"{"я" * 100_000}"', "1" * 400, "1" * 5000),
    *("[1, 2, 3]", '{"a": 1}', "[[], {}]", "[null]", '{"": null}'),
    *("[" * 90 + "]" * 90, "[" * 200 + "]" * 200, '{"a":' * 150 + "1" + "}" * 150, "[" * 100_000),
)
_ODD_TOML = (
    *("true", "0", "-1", "1", "2.5", "nan", "inf", "-inf", "1e400", "[]", "{}", '""', "1979-05-27", "07:32:00"),
    *("1000000000000", "9223372036854775807", "9223372036854775808", "0x" + "f" * 6000, "1" * 5000),
    *('"x"', '"\\u0000"', '"a\\nb"', "'''\n'''", f'"{"я" * 100_000}"', "[1, 2]", "[[]]", "{a = 1}", '["x", 1]'),
    *("[" * 90 + "]" * 90, "[" * 400 + "]" * 400, "[" * 100_000, "{" + ".".join("a" * 150) + " = 1}"),
)
_ODD_EXPRESSIONS = (
    *("-" * 100_000 + "1", "-" * 900 + "1", "(" * 100_000, "(" * 190 + "1" + ")" * 190, "not " * 3000 + "1"),
    *("[[0]*9000]*9000", "9**9**9", "votes**votes**votes", "4000000**4000000", "(2**60000)**60000", "text*10**9"),
    *("'%999999999d' % 1", "f'{1:>999999999}'", "'x'.center(10**9)", "text.zfill(10**9)", "(1).to_bytes(10**9)"),
    *("max([10**9], key='x'.center)", "[a for a in text for b in text]", "votes << 10**9", "1 +" * 4000 + "1"),
    *("a" + ".b" * 3000, "text[votes]", "text[::-1]", "0x" + "f" * 9000 + " ** 9", "{}[votes]", "int(text)"),
    *("lambda: 1", "(text := 1)", "__import__('os')", "text.__class__", "votes > 1", "'я' in text", "\0", "votes;"),
)


def mutated(content: bytes, kind: str, chance: Chance) -> bytes:
    """A file with one to three changes; `kind` is "json", "lines" of it, "toml", "safetensors" or "bytes"."""
    change = _CHANGES[kind]
    if chance.random() < 0.2:
        change = _change_bytes
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        content = change(content, chance)
    return content


def _change_bytes(content: bytes, chance: Chance) -> bytes:
    at, end = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    made: Callable[[], bytes] = chance.choice(
        (
            lambda: content[:at],
            lambda: content[:at] + content[end:],
            lambda: content[:end] + content[at:],
            lambda: content[:at] + chance.randbytes(chance.randint(1, 8)) + content[at:],
            lambda: content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :],
            lambda: (
                content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
                if at < len(content)
                else b""
            ),
        )
    )
    return made()


def _change_json(content: bytes, chance: Chance) -> bytes:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return _change_bytes(content, chance)
    odd: dict[str, str] = {}
    levels = _levels(value)
    if not levels or chance.random() < 0.03:
        return chance.choice(_ODD).encode()
    container, key = chance.choice(chance.choice(levels))  # long lists lie deep
    kind = chance.choice(("odd", "odd", "odd", "other", "remove", "rename", "wrap", "add"))
    if kind == "odd":
        container[key] = _stands_for(chance.choice(_ODD), odd)
    elif kind == "other":
        other, name = chance.choice(chance.choice(levels))
        container[key] = json.loads(json.dumps(other[name]))
    elif kind == "remove":
        del container[key]
    elif kind == "wrap":
        container[key] = chance.choice(([container[key]], {"a": container[key]}, str(container[key])))
    elif isinstance(container, dict):
        _, name = chance.choice(chance.choice(levels))
        name = chance.choice((str(name), "", "x", "a\nb", "\ud800", "я" * 1000))
        container[name] = container.pop(key) if kind == "rename" else _stands_for(chance.choice(_ODD), odd)
    else:
        container.insert(key, _stands_for(chance.choice(_ODD), odd))
    text = json.dumps(value)
    for name, spelt in odd.items():
        text = text.replace(json.dumps(name), spelt)
    return text.encode()


def _levels(value: Any) -> list[list[tuple[Any, Any]]]:
    """The lists and objects inside a value with each of their keys, by how deep they are."""
    levels: list[list[tuple[Any, Any]]] = []
    pending = [value]
    while pending := [one for one in pending if isinstance(one, dict | list) and one]:
        keys = [(one, key) for one in pending for key in (one if isinstance(one, dict) else range(len(one)))]
        levels.append(keys)
        pending = [one[key] for one, key in keys]
    return levels


def _stands_for(spelt: str, odd: dict[str, str]) -> str:
    """A string that is replaced once all is written: what is odd can't be written."""
    name = f"odd {len(odd)}"
    odd[name] = spelt
    return name


def _change_toml(content: bytes, chance: Chance) -> bytes:
    lines = content.decode("utf-8", "replace").split("\n")
    at = chance.randrange(len(lines))
    key, equals, _ = lines[at].partition("=")
    kind = chance.choice(("odd", "odd", "odd", "expression", "remove", "repeat", "move", "add", "key", "header"))
    if kind == "odd" and equals:
        lines[at] = f"{key}= {chance.choice(_ODD_TOML)}"
    elif kind == "expression":
        fitting = [n for n, line in enumerate(lines) if line.startswith(("where", "sort_by"))] or [at]
        at = chance.choice(fitting)
        lines[at] = f"{lines[at].partition('=')[0]}= {json.dumps(chance.choice(_ODD_EXPRESSIONS))}"
    elif kind == "remove":
        del lines[at]
    elif kind == "repeat":
        lines.insert(at, lines[at])
    elif kind == "move":
        lines.insert(chance.randrange(len(lines)), lines.pop(at))
    elif kind == "add":
        lines.insert(at, f"{chance.choice(('x', 'seed', 'text', 'a.b'))} = {chance.choice(_ODD_TOML)}")
    elif kind == "key":
        lines.insert(at, f"{chance.choice(('.', ' . ', '.x.')).join('a' * chance.choice((3, 120, 20_000)))} = 1")
    else:
        header = ".".join(chance.choice(("a", "sources", "data", "stages", '"я"')) for _ in range(chance.randint(1, 4)))
        lines.insert(at, chance.choice(("[{}]", "[[{}]]", "[{}", "{}]")).format(header))
    return "\n".join(lines).encode("utf-8", "replace")


def _change_safetensors(content: bytes, chance: Chance) -> bytes:
    size = struct.unpack("<Q", content[:8].ljust(8, b"\0"))[0]
    header, data = content[8 : 8 + size], content[8 + size :]
    kind = chance.choice(("header", "header", "header", "lie", "data"))
    if kind == "header":
        header = _change_json(header, chance)
        size = len(header)
    elif kind == "lie":
        size = chance.choice((0, 1, size + 1, max(size - 1, 0), len(content), 2**31, 2**63, 2**64 - 1))
    else:
        data = _change_bytes(data, chance)
    return struct.pack("<Q", size % 2**64) + header + data


def _change_lines(content: bytes, chance: Chance) -> bytes:
    lines = content.split(b"\n")
    at = chance.randrange(len(lines))
    lines[at] = _change_json(lines[at], chance)
    return b"\n".join(lines)


_CHANGES = {
    "json": _change_json,
    "lines": _change_lines,
    "toml": _change_toml,
    "safetensors": _change_safetensors,
    "bytes": _change_bytes,
}
