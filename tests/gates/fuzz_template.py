"""Renders random chat templates made of dangerous parts: each renders as in transformers, or is refused in one line.

    python tests/gates/fuzz_template.py [--seconds 600] [--seed 0]

Loops over ranges, powers, widths, wide filters, attributes with underscores, macros in macros, files, nesting, and text
that is no template. None may take more time or memory than the renderer has, and a text that comes out must be the one
of transformers, of placeholders and of what people may say. The exit code is 1 where one is not, with the template.
"""

import argparse
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from jinja2.defaults import DEFAULT_FILTERS, DEFAULT_TESTS

from vikhr_fast.chat.template import ChatTemplate, Message
from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer import chat_template
from vikhr_fast.tokenizer.chat_template import BEGIN, END, read_template, render_chats

SECONDS = 1
MOST_BYTES = 300 << 20  # what the limit of 256 MiB of address space leaves room for, and what Python has before it
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHANGING = ("random", "lipsum", "strftime_now", "urlize", "pprint", " at 0x", "sameas", "|map", "|select", "|reject")
"""What gives another text each time: chance, the time, addresses."""

NUMBERS = ("0", "1", "2", "-1", "7", "2.5", "99", "99999", "10**9", "10**10", "9**9**9", "1e308", "true", "none")
TEXTS = (
    "a", "", "я😀", "{0.__class__.__mro__}", "{:>1000000000}", "%1000000000d", "%s", "%c", "<|im_end|>", "\\x020\\x03 ",
    "\\x04", "\\x1b[2J", "\\ud800", "a,b;c", "__class__", "__globals__", "/etc/passwd",
)  # fmt: skip
NAMES = (
    "messages", "messages[0]", "messages[0].content", "messages[-1]['role']", "bos_token", "tools", "absent", "loop",
    "self", "caller", "varargs", "namespace", "cycler", "joiner('a')", "lipsum", "raise_exception", "x",
)  # fmt: skip
ATTRIBUTES = (
    "content", "role", "absent", "__class__", "__init__", "__globals__", "__mro__", "__subclasses__()", "gi_frame",
    "items()", "keys()", "get('role')", "pop()", "append(1)", "update({})", "format", "format(1)", "f_globals",
    "format_map({'x': 1})", "upper()", "split()", "zfill(10**9)", "ljust(10**9)", "center(99)", "encode('utf-16')",
    "replace('a', 'b' * 99999)", "expandtabs(10**9)", "join('ab')", "translate({97: 'b' * 9999})", "__add__('b')",
    "mro()", "index", "cycle('a', 'b')",
)  # fmt: skip
SAID = (
    "{{ m.content }}", "{{ m.content|FILTER }}", "{{ m.content }}{{ m.content.ATTRIBUTE }}", "{{ m.content[1:] }}",
    "{% if m.content %}{{ m.content }}{% else %}x{% endif %}", "{{ m.content.split('</think>')[-1] }}",
    "{% if m.content is TEST %}a{% endif %}{{ m.content }}", "{% if 'a' in m.content %}a{% endif %}{{ m.content }}",
    "{% if m.content == messages[0].content %}a{% endif %}{{ m.content }}", "{{ m.content|length }}{{ m.content }}",
    "{% set x %}{{ m.content }}{% endset %}{{ x|FILTER }}", "{{ ('' ~ m.content)|FILTER }}{{ bos_token + m.content }}",
    "{% macro g(x) %}{{ x|FILTER }}{% endmacro %}{{ g(m.content) }}",
    "{% filter FILTER %}{{ m.content }}{% endfilter %}",
)  # fmt: skip
HEARD = (
    "a", "", "Ответ", "MiXed <b>&\"'", "a</think>b", "\n\nя😀 ", "\x04\x05 \x020\x03 ", "<|im_end|>", "12", "{{ x }}",
)  # fmt: skip
OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and", "or", "is", "if true else")


class _Grammar:
    """Makes templates; the same for a generator's state."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def template(self) -> str:
        """A template, now and then with another's end, or cut somewhere."""
        deep = self._chance.choice((1, 1, 1, 2, 3))
        source = "".join(self._statement(deep) for _ in range(self._chance.randint(1, 2)))
        if self._chance.random() < 0.5:
            said = self._chance.choice(SAID)
            for name, words in (("FILTER", DEFAULT_FILTERS), ("TEST", DEFAULT_TESTS), ("ATTRIBUTE", ATTRIBUTES)):
                said = said.replace(name, self._chance.choice(sorted(words)))
            source += (
                f"{{% for m in messages %}}<|im_start|>{{% generation %}}{said}{{% endgeneration %}}{{% endfor %}}"
            )
        if self._chance.random() < 0.1:
            cut = self._chance.randint(0, len(source))
            source = (
                source[:cut] + self._chance.choice(("{{", "%}", "{% end %}", "\0", "#}", "\r\n", "-%}")) + source[cut:]
            )
        return source

    def _expression(self, deep: int) -> str:
        take = self._chance.choice
        if deep <= 0 or self._chance.random() < 0.15:
            return take((take(NUMBERS), f"'{take(TEXTS)}'", take(NAMES), f"[{take(NUMBERS)}]", "{'a': 1}"))
        one, two = (lambda: self._expression(deep - 1)), (lambda: self._expression(deep - 2))
        return take(
            (
                lambda: f"({one()} {take(OPERATORS)} {two()})",
                lambda: f"({take(NUMBERS)} {take(('*', '**', '%', '+', '-'))} {take(NUMBERS)})",
                lambda: f"({one()} {take(('*', '~', '~'))} {take(NUMBERS)})",
                lambda: f"{one()}.{take(ATTRIBUTES)}",
                lambda: f"({one()})[{take((two(), '::2', ':99', '-1'))}]",
                lambda: f"{one()}|{take(sorted(DEFAULT_FILTERS))}",
                lambda: f"{one()}|{take(sorted(DEFAULT_FILTERS))}({two()}{take(('', ', ' + two(), ', indent=10**9'))})",
                lambda: f"{one()}|attr('{take(ATTRIBUTES)}')",
                lambda: f"{one()}|map(attribute='{take(ATTRIBUTES)}')|list",
                lambda: f"({one()} is {take(sorted(DEFAULT_TESTS))})",
                lambda: f"range({two()})|{take(('list', 'join', 'sum', 'length', 'string'))}",
                lambda: f"[{one()}, {two()}]",
                lambda: f"{take(('range', 'dict', 'namespace', 'lipsum', 'cycler', 'f', 'strftime_now'))}({two()})",
                lambda: "(" * (count := take((1, 9, 300))) + "1" + ")" * count,
            )
        )()  # fmt: skip

    def _statement(self, deep: int) -> str:
        take, body = self._chance.choice, (lambda: self._statement(deep - 1) if deep > 0 else "a")
        value = lambda: self._expression(deep)  # noqa: E731
        many = take((1, 2, 30, 300))
        return take(
            (
                lambda: f"{{{{ {value()} }}}}",
                lambda: f"{{{{ {value()} }}}}",
                lambda: f"{{{{- ({value()})|length -}}}}\n",
                lambda: f"{{% set x = {value()} %}}",
                lambda: f"{{% for x in {value()} %}}{body()}{{% endfor %}}",
                lambda: f"{{% for x in range({take((2, 9, 99, 99999))}) %}}{body()}{{% endfor %}}",
                lambda: f"{{% for x in messages recursive %}}{{{{ loop({value()}) }}}}{{% endfor %}}",
                lambda: f"{{% if {value()} %}}{body()}{{% else %}}{body()}{{% endif %}}",
                lambda: f"{{% macro f(x) %}}{body()}{{{{ f(x) if x }}}}{{% endmacro %}}{{{{ f({value()}) }}}}",
                lambda: "{% macro f(n) %}{{ (f(n - 1) ~ f(n - 1)) if n > 0 }}{% endmacro %}{{ f(__) }}".replace(
                    "__", take(NUMBERS)
                ),
                lambda: f"{{% set n = namespace(x={value()}) %}}{{% for i in range(99) %}}"
                f"{{% set n.x = n.x {take(('+', '~', '*'))} n.x %}}{{% endfor %}}",
                lambda: f"{{% filter {take(sorted(DEFAULT_FILTERS))} %}}{body()}{{% endfilter %}}",
                lambda: f"{{% call(x) f({value()}) %}}{body()}{{% endcall %}}",
                lambda: f"{{% generation %}}{body()}{{% endgeneration %}}",
                lambda: f"{{% with x = {value()} %}}{body()}{{% endwith %}}",
                lambda: f"{{% {take(('include', 'extends', 'import'))} {value()} %}}",
                lambda: f"{{% from {value()} import x %}}",
                lambda: f"{{% block b %}}{body()}{{{{ super() }}}}{{% endblock %}}",
                lambda: f"{{% autoescape {value()} %}}{body()}{{% endautoescape %}}",
                lambda: take(("{% break %}", "{% continue %}", "{% raw %}{{{% endraw %}", "{# a #}", "{% do x %}")),
                lambda: "{% if true %}" * many + body() + "{% endif %}" * many,
                lambda: f"{{{{ {'[' * many}1{']' * many} }}}}",
                lambda: f"{{{{ {' + '.join(['1'] * many * 9)} }}}}",
                lambda: f"{{{{ raise_exception({value()}) }}}}",
                lambda: take(TEXTS),
            )
        )()  # fmt: skip


def check(chance: random.Random) -> str:
    """Makes and renders one template; returns what came of it. AssertionError where that may not be."""
    source = _Grammar(chance).template()
    roles = ["user", "assistant"] * chance.randint(1, 2)
    chat = [{"role": role, "content": f" \x02{number}\x03 "} for number, role in enumerate(roles)]
    before = _used_seconds()
    with mock.patch.object(chat_template, "_SECONDS", SECONDS), tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "chat_template.jinja"
        file.write_bytes(source.encode("utf-8", "surrogatepass"))
        try:
            source = read_template(file)
        except InputError as error:
            _check_line(error, source)
            return "not read"
        (found,) = render_chats(source, "file", [{"messages": chat, "add_generation_prompt": False, **TOKENS}])
        seconds = _used_seconds() - before
    assert seconds < 2 * SECONDS + 1, f"{seconds:.1f} s of computing: {source!r}"
    assert (peak := resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10) < MOST_BYTES, f"{peak:,}: {source!r}"
    if isinstance(found, InputError):
        _check_line(found, source)
        return "out of bounds" if "takes more" in str(found) or "more than" in str(found) else "refused"
    assert len(found) <= (len(chat) + 1) * (len(source) + 2_000), f"{len(found):,} characters: {source[:200]!r}"
    if any(word in source or word in found for word in CHANGING):
        return "rendered"
    expected = _of_transformers(source, chat)
    if expected is not None:
        unmarked = found.replace(BEGIN, "").replace(END, "")
        assert unmarked == expected.replace(BEGIN, "").replace(END, ""), f"{source!r}: {found!r} != {expected!r}"
        _check_said(source, [Message(one["role"], chance.choice(HEARD)) for one in chat])
    return "rendered as in transformers"


def _check_said(source: str, chat: list[Message]) -> None:
    """What is said comes out as in transformers, or is refused."""
    (parts,) = ChatTemplate(source, "file", ["<|im_start|>", "</s>"], TOKENS).parts([chat], False)
    if isinstance(parts, InputError):
        _check_line(parts, source)
        return
    expected = _of_transformers(source, [{"role": one.role, "content": one.content} for one in chat])
    found = "".join(part.value for part in parts)
    assert expected in (None, found), f"{source!r} of {chat}: {found!r} != {expected!r}"


def _used_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _check_line(error: InputError, source: str) -> None:
    said = str(error)
    assert said.isprintable(), f"{said!r}: {source!r}"
    assert len(said) < 500, f"{said!r}: {source!r}"


def _of_transformers(source: str, chat: list[dict[str, str]]) -> str | None:
    """What transformers makes of it; None where it is too deep for the stack of this process."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        values: dict[str, Any] = {"add_generation_prompt": False, **TOKENS}
        rendered: str = render_jinja_template([chat], chat_template=source, **values)[0][0]
    except RecursionError:
        return None
    return rendered


def main() -> None:
    """Checks until the time is over, and prints what came of the templates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    seed, end = options.seed, time.monotonic() + options.seconds
    while time.monotonic() < end:
        try:
            counts[check(random.Random(seed))] += 1
        except AssertionError as error:
            sys.exit(f"seed {seed}: {error}")
        seed += 1
    print(f"{sum(counts.values()):,} templates, from seed {options.seed}: {dict(counts)}")


if __name__ == "__main__":
    main()
