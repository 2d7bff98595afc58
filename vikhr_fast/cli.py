"""The `vikhr-fast` command: runs one subcommand, and turns what becomes of it into a line and an exit code."""

import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib import metadata
from typing import Any, NoReturn, TextIO, cast, get_args

from vikhr_fast.commands import parse
from vikhr_fast.errors import ExitCode, InputError, RankLostError, outcome_of
from vikhr_fast.io.console import LogLevel, configure_logging
from vikhr_fast.io.files import json_text
from vikhr_fast.io.plain import one_line, plain

_COLORS = re.compile(r"\x1b\[[\d;]*m")


class _Plain:
    """Standard error for tyro, which shows wrong words as they are; without its colors, which a word may hold, too."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(plain(_COLORS.sub("", text)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits with one of `errors.ExitCode`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    level: LogLevel = "info"
    try:
        level = _take_log_level(words)
        configure_logging(level)
        if words == ["--version"]:
            print(f"vikhr-fast {metadata.version('vikhr-fast')}")
            sys.exit(ExitCode.SUCCESS)
        with redirect_stderr(cast(TextIO, _Plain(sys.stderr))):
            function, options = parse(words)
        result = function(options)
        if isinstance(result, dict):
            print(json_text(result, indent=2))
        elif result is not None and not isinstance(result, ExitCode):
            print(plain(str(result)))
        sys.exit(result if isinstance(result, ExitCode) else ExitCode.SUCCESS)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.SUCCESS)
    except (InputError, RankLostError, OSError) as error:
        _fail(*outcome_of(error), level)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a further one would only break what Python does at its end
        _fail(ExitCode.INTERRUPTED, "interrupted", level)


def _take_log_level(words: list[str]) -> LogLevel:
    """Removes --log-level from the words, wherever it stands; "info" where it doesn't."""
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == "--log-level":
            value = value if equals else next(iter(words[index + 1 : index + 2]), "")
            del words[index : index + (1 if equals else 2)]
            if value not in get_args(LogLevel):
                _fail(ExitCode.USAGE, f"--log-level {value}: must be one of {', '.join(get_args(LogLevel))}", "info")
            return cast(LogLevel, value)
    return "info"


def _fail(code: ExitCode, message: str, level: str) -> NoReturn:
    """One line on standard error; with --log-level debug the traceback before it."""
    if level == "debug" and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    among_others = "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    rank = f"rank {os.environ['RANK']}: " if among_others else ""
    sys.stderr.write(
        f"vikhr-fast: {rank}error: {one_line(' '.join(message.split()))}\n"
    )  # at once: ranks share the terminal
    sys.exit(code)
