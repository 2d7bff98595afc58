"""The errors that a user can mend, and the exit codes that scripts can rely on."""

import errno
from enum import IntEnum

_SHOWN_CHARACTERS = 2000  # of a long message, at its beginning and at its end
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the system's errors: a disk, a quota or a file is full."""
_PERMISSION = "choose what you may read, and a directory that you may write to"
_ADVICE = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: _PERMISSION,
    errno.EEXIST: "move it away or choose another output",
    errno.EIO: "look whether the disk is in order, then run the same command again",
    errno.EISDIR: "give a file",
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "look whether the path is right",
    errno.ENOTDIR: "a file stands where a directory should; choose another path",
}


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


def outcome_of(error: InputError | RankLostError | OSError) -> tuple[ExitCode, str]:
    """What a process that an error ends should exit with, and the line that it should say.

    Raises:
        OSError: the error itself, where it names no file: a bug, whose traceback says more.
    """
    if not isinstance(error, OSError):
        return ExitCode.BAD_INPUT if isinstance(error, InputError) else ExitCode.RANK_LOST, str(error)
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in FULL_DISK:
        advice = "free some and run the same command again (a quota or `ulimit -f` may be too low)"
        return ExitCode.NO_SPACE, f"{where}no space left on the disk; {advice}"
    if error.filename is None:
        raise error
    advice = f"; {_ADVICE[error.errno]}" if error.errno in _ADVICE else ""
    return ExitCode.BAD_INPUT, f"{where}{error.strerror}{advice}"


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
