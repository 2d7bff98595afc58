"""The program that renders chats with a Jinja template: a request on standard input, the texts on standard output.

A template comes with a model, from whoever made it, and Jinja computes what it asks for: `9 ** 9 ** 9`, a range in a
range, `'a' * 10 ** 10`, `center(10 ** 9)`, some of it while it is only compiled. No list of such places is complete, so
this is a process of its own, whose time and memory the operating system limits.

`chat_template.render_chats` runs this file, with its own import path as arguments. Requests and answers are lines of
JSON. The first request has the `source` of the template, `marks` to put around what the assistant says, the time that
it is `now`, `seconds` of computing and `memory_bytes`; its answer is empty, or has the `error` for which the template
can't be compiled. Then each request is a chat, the values for the template, in which `{"opaque": text}` is a text that
can only be put out; its answer has the `text` or an `error`.
"""

import sys

if __name__ == "__main__":
    sys.path.extend(sys.argv[1:])

import json
import resource
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_FRAME_CHARACTERS = 1_000  # a message: control pieces, and what a short template repeats
_ERROR_CHARACTERS = 200


class OpaqueError(BaseException):
    """An opaque text was looked at; filters and tests that catch each Exception let this one through."""


class Opaque:
    """A text that can be joined with others and put out. Whatever else would tell it from another is an OpaqueError.

    It passes for a str where Python code asks; code in C, which would read it without asking, finds that it is none.
    """

    __class__ = property(lambda _: str)

    def __init__(self, text: str) -> None:
        self._text = text  # with an underscore, which the sandbox keeps from templates

    def _refuse(self, *_: object) -> Any:
        raise OpaqueError("it looks at text that a generation block makes, which it may only put out")

    __str__ = __repr__ = __format__ = __bool__ = __len__ = __float__ = __hash__ = __getattr__ = _refuse

    def __eq__(self, other: object) -> Any:
        return self._refuse() if isinstance(other, str) else NotImplemented

    def __iter__(self) -> Iterator[Any]:
        yield self._refuse()

    def __add__(self, other: object) -> Any:
        return _joined((self, other)) if type(other) in (str, Opaque) else NotImplemented

    def __radd__(self, other: object) -> Any:
        return _joined((other, self)) if type(other) is str else NotImplemented


def _plain(value: Any) -> Any:
    return value._text if type(value) is Opaque else value


def _put_out(value: object) -> object:
    return value if type(value) is Opaque else str(value)


def _joined(parts: Iterable[object]) -> Any:
    parts = list(parts)
    text = "".join(map(_plain, parts))
    return Opaque(text) if any(type(part) is Opaque for part in parts) else text


class _Environment(ImmutableSandboxedEnvironment):
    concat = staticmethod(_joined)  # of what is put out, at the end and where a template keeps it

    def getitem(self, obj: Any, argument: Any) -> Any:
        # Opaque has no __getitem__, with which `'a' % opaque` would take it for a mapping.
        return obj._refuse() if type(obj) is Opaque else super().getitem(obj, argument)


def main() -> None:
    """Answers all requests."""
    request = json.loads(sys.stdin.readline())
    memory_bytes: int = request["memory_bytes"]
    _limit(resource.RLIMIT_CPU, request["seconds"])
    _limit(resource.RLIMIT_AS, memory_bytes)

    def error_of(error: BaseException) -> dict[str, str]:
        if isinstance(error, MemoryError):
            return {"error": f"it takes more than {memory_bytes >> 20} MiB of memory"}
        kind = "" if isinstance(error, jinja2.TemplateError | OpaqueError) else f"{type(error).__name__}: "
        return {"error": " ".join(f"{kind}{error}".split())[:_ERROR_CHARACTERS].rstrip(".")}

    def answer(values: dict[str, str]) -> None:
        print(json.dumps(values), flush=True)

    found = {}
    try:
        template = compiled(request["source"], request["marks"], datetime.fromisoformat(request["now"]))
    except jinja2.TemplateSyntaxError as error:
        found = {"error": f"line {error.lineno}: not a Jinja template: {error_of(error)['error']}"}
    except Exception as error:
        found = {"error": f"not a Jinja template that can be compiled: {error_of(error)['error']}"}
    answer(found)
    if not found:
        for line in sys.stdin:
            try:
                chat = json.loads(line, object_hook=lambda one: Opaque(one["opaque"]) if "opaque" in one else one)
                answer({"text": render(template, chat, len(request["source"]))})
            except (Exception, OpaqueError) as error:
                answer(error_of(error))


def _limit(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def render(template: jinja2.Template, chat: dict[str, Any], source_characters: int) -> str:
    """A chat as text; an error for a text that is longer than template and chat said again for each message."""
    text: str = _plain(template.render({"tools": None, "documents": None, **chat}))
    text.encode("utf-8")
    each = source_characters + len(json.dumps(chat, ensure_ascii=False, default=_plain)) + _FRAME_CHARACTERS
    if len(text) > (most := (len(chat["messages"]) + 1) * each):
        raise ValueError(f"it makes {len(text):,} characters of it, which is more than {most:,}")
    return text


def compiled(source: str, marks: tuple[str, str], now: datetime) -> jinja2.Template:
    """A template that leaves what is opaque so; an error where it can't be compiled."""
    template = _environment(*marks, now).from_string(source)
    # What compiled templates call to put values out, and for `~`.
    template.root_render_func.__globals__.update(str=_put_out, str_join=lambda values: _joined(map(_put_out, values)))
    return template


def _environment(begin: str, end: str, now: datetime) -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up for chats, but for the marks that `{% generation %}` leaves."""

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  as the base class declares it

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller: Callable[[], object]) -> Opaque:
            return Opaque(f"{begin}{_plain(caller())}{end}")  # nothing but this knows of the marks

    def tojson(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(f"{message}")  # an opaque one fails here, not where the error is shown

    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = now.strftime
    return environment


if __name__ == "__main__":
    main()
