"""The errors that a user can mend, and the exit codes that scripts can rely on."""

from enum import IntEnum

_SHOWN_CHARACTERS = 2000  # of a long message, at its beginning and at its end


class ExitCode(IntEnum):
    """Exit codes of every `vikhr-fast` command."""

    SUCCESS = 0
    BUG = 1  # an unexpected exception, with its traceback
    USAGE = 2  # wrong flags
    BAD_INPUT = 3  # a file, config or value that the user can mend
    NO_SPACE = 4  # a disk or quota is full
    RANK_LOST = 5  # another rank of the run died or hangs; starting all again goes on from the last checkpoint
    INTERRUPTED = 130  # Ctrl-C
    TERMINATED = 143  # SIGTERM or SIGUSR1; a training run saves a checkpoint first, and can be put back into a queue


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: what, where, and what to do.

    Args:
        message: line breaks in it, as what it quotes may have, become spaces, and the middle of a long one three dots.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.splitlines())
        if len(line) > 2 * _SHOWN_CHARACTERS:
            line = f"{line[:_SHOWN_CHARACTERS]} ... {line[-_SHOWN_CHARACTERS:]}"
        super().__init__(line)


class RankLostError(Exception):
    """Another rank of the run died or hangs. The message is one line: which, and what it was doing."""


def require(options: object, **wanted: tuple[bool, str]) -> None:
    """Checks the fields of a command's options.

    Args:
        options: a dataclass whose fields are flags.
        wanted: by field, whether its value is possible, and what it must be: `batch=(options.batch >= 1, "1 or more")`.

    Raises:
        InputError: the first flag with an impossible value, and what it must be.
    """
    for name, (is_possible, must_be) in wanted.items():
        if not is_possible:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be {must_be}")
