"""A chat template comes from anywhere: it renders as in transformers, within limits, or is refused in one line."""

from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest
from jinja2.defaults import DEFAULT_FILTERS, DEFAULT_TESTS

from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer import chat_template
from vikhr_fast.tokenizer.chat_renderer import Opaque, OpaqueError, compiled, render
from vikhr_fast.tokenizer.chat_template import BEGIN, CHAT_TEMPLATES, END, read_template, render_chats
from vikhr_fast.tokenizer.export import ExportTokenizer, export

CHAT = [{"role": "user", "content": "Сколько?"}, {"role": "assistant", "content": "<b>'42'</b>"}]
VALUES = {"bos_token": "<s>", "eos_token": "</s>"}
TAIL = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
CAPTURED = "{% set x %}{% generation %}abc {% endgeneration %}{% endset %}"
TIME, MEMORY = "takes more than 1 s", "takes more than 256 MiB of memory"

HARMLESS = {
    "an attribute": "{{ raise_exception.__globals__ }}{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "an attribute by filter": "{{ ''|attr('__class__') }}",
    "a format by filter": "{% set f = '{0.__class__}'|attr('format') %}{{ f('x') }}",
    "attributes by map": "{{ [1, 'a']|map(attribute='__class__')|map('string')|join(',') }}",
    "a large constant": "{% if 9**9**9 > 0 %}yes{% endif %}",
    "messages as they are": "{{ messages }}{# endgeneration #}",
    "JSON": "{{ messages|tojson }}{{ messages[1]|tojson(indent=2, sort_keys=true) }}",
    "no tools": "{{ tools is none }}{{ documents is none }}{{ tools is defined }}",
    "loop control": "{% for m in [1, 2, 3] %}{% if m == 1 %}{% continue %}{% endif %}{{ m }}{% break %}{% endfor %}",
    "what is undefined": "{{ absent }}{{ absent is defined }}{{ messages[0].absent }}",
    "another codec": "{{ 'я'.encode('cp1251') }}",
    "a macro": "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a') }}{{ f(messages[0].content) }}",
    "a namespace": "{% set n = namespace(a=0) %}{% for m in messages %}{% set n.a = n.a + 1 %}{% endfor %}{{ n.a }}",
    "lines": "a\n{% if true %}\n  b\n{% endif %}\nc\n",
    "nothing": "",
    "marks": "\x04{{ '\\x05' }}",
    "a generation block that is kept": CAPTURED + "{{ x }}{{ 'a' + x ~ x }}",
    "text joined": "{{ messages[0].content ~ 1 }}{{ [1, none] ~ messages|length }}{{ 'a'|e ~ 'b<' }}",
}
LOOKS = "it looks at text that a generation block makes"
UNENDING = {
    "a range in a range": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a power": "{% set n = 10 %}{{ (2**(n**9))|string|length }}",
    "a power folded while it is compiled": "{% if 3**(10**8) > 0 %}{% endif %}",
    "two macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a sum of sums": "{% for i in range(99999) %}{% set x = range(99999)|sum %}{% endfor %}",
}
LARGE = {
    "a string": "{% set n=10 %}{{ ('a'*(n**10))|length }}",
    "a string folded while it is compiled": "{{ ('a'*10**10)|length }}",
    "a list": "{{ ([0]*10**9)|length }}",
    "strings joined": "{{ (['a'*100000]*5000)|join|length }}",
    "a width": "{{ '%1000000000d' % 1 }}",
    "a precision": "{{ '%.1000000000f' % 1 }}",
    "a width of format": "{{ '{:>1000000000}'.format(1) }}",
    "center": "{{ 'a'|center(10**9) }}",
    "indent": "{{ 'a\nb'|indent(10**9) }}",
    "JSON": "{{ messages|tojson(indent=10**9) }}",
    "batch": "{{ [1]|batch(10**9, 0)|list|length }}",
    "replace": "{{ ('a'*10**5).replace('a', 'b'*10**5)|length }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "lists of ranges": "{% set n = namespace(x=[0]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
}
REFUSED = {
    "a division": ("{{ 1/0 }}", "ZeroDivisionError: division by zero"),
    "a message that isn't there": ("{{ messages[7]['role'] }}", "list object has no element 7"),
    "a field that isn't there": ("{{ messages[0]['x']['y'] }}", "'dict object' has no attribute 'x'"),
    "a change of a list": ("{{ [].pop() }}", "access to attribute 'pop' of 'list' object is unsafe"),
    "a change of a message": ("{{ messages[0].update({'content': ''}) }}", "is unsafe"),
    "an undefined attribute": ("{{ x.y.z }}", "'x' is undefined"),
    "JSON of nothing": ("{{ x|tojson }}", "TypeError: Object of type Undefined"),
    "a long range": ("{% for i in range(10**9) %}{% endfor %}", "OverflowError: Range too big"),
    "a macro in itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "a file": ("{% include '/etc/passwd' %}", "no loader"),
    "an import": ("{% import '/etc/passwd' as x %}", "no loader"),
    "a parent": ("{% extends '/etc/passwd' %}", "no loader"),
    "globals of a class": ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "is unsafe"),
    "globals of a function": ("{{ lipsum.__globals__['os'].popen('id').read() }}", "is unsafe"),
    "globals of ours": ("{{ raise_exception.__globals__.jinja2 }}", "is unsafe"),
    "a format": ("{{ '{0.__class__.__mro__}'.format('x') }}", "is unsafe"),
    "a format that is kept": ("{% set ns=namespace(f='{0.__class__.__base__}'.format) %}{{ ns.f('') }}", "is unsafe"),
    "a format_map": ("{{ '{x.__class__.__base__}'.format_map({'x': 1}) }}", "is unsafe"),
    "what a method is bound to": ("{{ (''|attr('format')|attr('__self__')).x }}", "has no attribute '__self__'"),
    "frames of a generator": ("{{ (messages|map('string')).gi_frame.f_globals }}", "is unsafe"),
    "an unknown filter": ("{{ 1|nosuch }}", "line 1: not a Jinja template: No filter named 'nosuch'"),
    "many parentheses": ("{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}", "can be compiled: RecursionError"),
    "many blocks": ("{% if true %}" * 300 + "{% endif %}" * 300, "can be compiled: "),
    "too many lines of an error": ("{{ raise_exception('a\n' * 1000) }}", "a a a"),
    "half of a surrogate pair": (r"{{ '\ud83d' }}", "UnicodeEncodeError"),
    "a generation block trimmed": (CAPTURED + "{{ x|trim }}", LOOKS),
    "a generation block counted": (CAPTURED + "{{ x|length }}", LOOKS),
    "a generation block cut": (CAPTURED + "{{ x[0] }}", LOOKS),
    "a generation block compared": (CAPTURED + "{{ 'abc ' == x }}", LOOKS),
    "a generation block filtered": (
        "{% filter upper %}{% generation %}a{% endgeneration %}{% endfilter %}",
        LOOKS,
    ),
    "a generation block of a macro": (
        "{% macro f() %}{% generation %}a{% endgeneration %}{% endmacro %}{{ f()|trim }}",
        LOOKS,
    ),
    "a long text": ("{% for i in range(999) %}{{ range(99)|join }}{% endfor %}", "which is more than"),
}  # fmt: skip


def rendered(source: str, chat: list[dict[str, str]] = CHAT) -> str | InputError:
    return render_chats(source, "file", [{"messages": chat, "add_generation_prompt": True, **VALUES}])[0]


def of_transformers(source: str, chat: list[dict[str, str]] = CHAT) -> Any:
    from transformers.utils.chat_template_utils import render_jinja_template

    return render_jinja_template([chat], chat_template=source, add_generation_prompt=True, **VALUES)[0][0]


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_harmless_renders_as_in_transformers(name: str) -> None:
    found = rendered(HARMLESS[name] + TAIL)
    assert isinstance(found, str), found
    assert found.replace(BEGIN, "").replace(END, "") == of_transformers(HARMLESS[name] + TAIL)


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_our_own_render_as_in_transformers_but_for_the_marks(name: str) -> None:
    source = read_template(CHAT_TEMPLATES[name])
    found = rendered(source)
    assert isinstance(found, str)
    assert (found.count(BEGIN), found.count(END)) == (1, 1)
    assert found.replace(BEGIN, "").replace(END, "") == of_transformers(source)


def test_the_date_is_that_of_transformers() -> None:
    assert rendered("{{ strftime_now('%Y') }}") == of_transformers("{{ strftime_now('%Y') }}")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*UNENDING, *LARGE])
def test_what_has_no_bounds_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(chat_template, "_SECONDS", 1)
    found = rendered({**UNENDING, **LARGE}[name] + TAIL)
    assert isinstance(found, InputError), found
    assert TIME in str(found) or (name in LARGE and MEMORY in str(found))
    assert str(found).startswith("file: ")
    assert str(found).endswith("; mend the template, or take another")


@pytest.mark.parametrize("name", REFUSED)
def test_what_fails_is_refused_in_one_line(name: str) -> None:
    source, reason = REFUSED[name]
    found = rendered(source + TAIL)
    assert isinstance(found, InputError), found
    with pytest.raises(InputError, match=rf"^file: .*({reason}).*; mend the template, or take another$"):
        raise found
    assert len(str(found)) < 400


def test_a_chat_that_is_refused_leaves_the_others() -> None:
    source = "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}" + TAIL
    values = [{"messages": CHAT * count, **VALUES} for count in (1, 4, 1)]
    first, second, third = render_chats(source, "file", values)
    assert first == third == "[user]Сколько?[assistant]<b>'42'</b>"
    roles = "user, assistant, user, assistant and 4 more"
    assert str(second) == f"file: refuses a chat of {roles}: too long; mend the template, or take another"


def test_a_chat_that_takes_too_much_is_refused_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "_SECONDS", 1)
    slow = "{% for a in range(messages|length - 2) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}"
    values = [{"messages": CHAT * count, **VALUES} for count in (1, 1, 2, 1)]
    found = render_chats(slow + "{% endfor %}{% endfor %}" + TAIL, "file", values)
    assert found[:2] + found[3:] == ["[user]Сколько?[assistant]<b>'42'</b>"] * 3
    assert str(found[2]) == "file: rendering takes more than 1 s; mend the template, or take another"


def test_a_chat_too_large_for_the_renderer_is_refused_alone() -> None:
    large = [{"role": "user", "content": "а" * (24 << 20)}]
    first, second, third = render_chats(TAIL, "file", [{"messages": one, **VALUES} for one in (CHAT, large, CHAT)])
    assert first == third == "[user]Сколько?[assistant]<b>'42'</b>"
    assert isinstance(second, InputError)
    assert len(str(second)) < 300


def _expressions() -> list[str]:
    """What a template may do with `x`, a text, and `y`, another."""
    tests = [name for name in DEFAULT_TESTS if name.isalpha()]
    methods = [name for name in dir(str) if name[0] != "_"]
    found = [f"x|{name}{more}" for name in DEFAULT_FILTERS for more in ("", "(1)", "('a', 'b')", "(y)")]
    found += [f"'a'|{name}(x)" for name in DEFAULT_FILTERS]
    found += [f"{value} is {name}{more}" for name in tests for value in ("x", "'a'") for more in ("", "(x)")]
    found += [f"x.{name}({more})" for name in methods for more in ("", "1", "'a'", "'a', 'b'", "y")]
    found += [f"'a'.{name}({more})" for name in methods for more in ("x", "x, 'b'", "'a', x", "[x]")]
    pairs = ("x {} 'a'", "'a' {} x", "x {} y", "x {} 1", "1 {} x", "x {} absent", "x {} ['a']", "x {} m")
    operators = ("+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=", "in", "and", "or")
    found += [pair.format(operator) for operator in operators for pair in pairs]
    found += ["x[0]", "x[:1]", "'a'[x]", "[1][x]", "{'a': 1}[x]", "m[x]", "{x: 1}", "x()", "loop[x]", "-x", "not x"]
    found += ["range(x)", "dict(a=x).a", "dict(x)", "namespace(a=x).a", "cycler(x).next()", "joiner(x)"]
    found += ["[x, y]|join", "[x, y]|sort|first", "[x]|map('int')|sum", "[x]|map('upper')|list", "x|e + 'a'"]
    found += ["[m]|map(attribute=x)|list", "m|string", "m|tojson", "m|dictsort(by='value')", "[m]|groupby('content')"]
    return [one for one in found if "random" not in one and "sameas" not in one]


@pytest.mark.slow
def test_what_comes_of_an_opaque_text_comes_of_any() -> None:
    texts = ["", "a", "<B>\n1 b ", "12", "upper", "content"]
    forms = (
        "{{ ({}) }}",
        "{% if {} %}1{% endif %}",
        "{% for z in {} %}{{ z }}{% endfor %}",
        "{% set z = {} %}{{ z ~ 1 }}",
    )
    same = set()
    for expression in _expressions():
        for form in forms:
            source = "{% set m = messages[0] %}{% set x = m.content %}" + form.replace("{}", expression)
            template = compiled(source, ("", ""), datetime.now())

            def said(one: object, two: object, template: jinja2.Template = template) -> Any:
                return render(template, {"messages": [{"content": one}], "y": two}, 999)

            try:
                found = said(Opaque("{x}"), Opaque("{y}"))
            except (Exception, OpaqueError):
                continue
            if " at 0x" in found:
                continue
            same.add(expression)
            for one, two in zip(texts, reversed(texts), strict=True):
                assert said(one, two) == found.replace("{x}", one).replace("{y}", two), f"{form}: {expression}"
    assert {"x + 'a'", "'a' ~ x", "x is string", "x != 1"} <= same
    assert not {"x|lower", "x is eq('a')", "x in 'a'", "m|tojson", "x.split()"} & same


def test_a_machine_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "_PATIENCE", 0.001)
    with pytest.raises(InputError, match=r"takes more than 0\.001 s"):
        rendered(TAIL)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xd0\xaf{{ x }}\xff", "byte 9: not UTF-8"),
        (b"a" * (2 << 20), r"longer than 1,048,576 bytes"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "t.jinja").write_bytes(content)
    with pytest.raises(InputError, match=rf"t\.jinja: {reason}; give a file with a chat template$"):
        read_template(tmp_path / "t.jinja")
    with pytest.raises(InputError, match=r"Is a directory; give a file with a chat template$"):
        read_template(tmp_path)


def test_only_the_beginning_of_an_endless_file_is_read() -> None:
    with pytest.raises(InputError, match="/dev/zero: longer than"):
        read_template(Path("/dev/zero"))


def test_an_export_tries_the_template_with_the_tokens_of_the_vocabulary(trained: Path, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    for source, reason in (("{{ 1/0 }}", "division by zero"), ("{{ pad_token + 'a' }}", "'pad_token' is undefined")):
        template.write_text(source)
        with pytest.raises(InputError, match=rf"t\.jinja: refuses a chat of user, assistant: .*{reason}"):
            export(ExportTokenizer(trained, tmp_path / "out", chat_template=template))
        assert not (tmp_path / "out").exists()
    template.write_text("{{ bos_token + eos_token }}")
    export(ExportTokenizer(trained, tmp_path / "out", chat_template=template))
