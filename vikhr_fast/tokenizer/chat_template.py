"""The Jinja source of a chat template, which is a file of the tokenizer: those that come with this package, and any."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vikhr_fast.errors import InputError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)
TEMPLATES = Path(__file__).parent.parent / "templates"
CHAT_TEMPLATES = {name: TEMPLATES / f"{name}.jinja" for name in ("chatml", "mistral-instruct")}
"""The templates that come with this package, by name."""
BEGIN, END = "\x04", "\x05"
"""What a parsed template leaves around what the assistant says."""


class _Generation(Extension):
    """The `{% generation %}` block, as in transformers; leaves marks around what is in it."""

    tags = {"generation"}  # noqa: RUF012  as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return f"{BEGIN}{caller()}{END}"


def parse_template(source: str, name: str) -> jinja2.Template:
    """Compiles a template as transformers does; InputError, with the line, where it is none."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )

    def refuse(message: str) -> Any:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"{name}: line {error.lineno}: not a Jinja template: {error.message}") from None


def read_template(file: Path) -> str:
    """The source of a template; InputError where it cannot be read or is none."""
    try:
        source = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start}: not UTF-8") from None
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; give a file with a chat template") from None
    parse_template(source, str(file))
    return source
