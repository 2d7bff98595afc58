"""What a check found, and how it is printed."""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from vikhr_fast.errors import ExitCode, InputError
from vikhr_fast.io.console import PlainConsole
from vikhr_fast.io.plain import one_line


class Note(str):
    """What a check says where nothing is wrong, but something is to be known."""


class Finding(NamedTuple):
    """What a check found."""

    mark: Literal["ok", "note", "mend"]
    subject: str
    text: str


_COLOURS = {"ok": "green", "note": "yellow", "mend": "red"}


def checked(subject: str, check: Callable[[], str]) -> Finding:
    """What a check says; its error is what to mend, an unexpected one, too."""
    try:
        text = check()
    except Exception as error:
        said = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        return Finding("mend", subject, said)
    return Finding("note" if isinstance(text, Note) else "ok", subject, text)


def show_findings(findings: Iterable[Finding], heading: str = "") -> ExitCode:
    """Prints a line each as it comes; the exit code tells whether anything needs mending."""
    code, console = ExitCode.SUCCESS, PlainConsole()
    if heading:
        console.print(one_line(heading), soft_wrap=True)
    for mark, subject, text in findings:
        console.print(f"{mark:<4} ", style=_COLOURS[mark], end="")
        console.print(f"{subject:<10} ", style="bold", end="")
        console.print(one_line(text), soft_wrap=True)
        code = ExitCode.BAD_INPUT if mark == "mend" else code
    return code
