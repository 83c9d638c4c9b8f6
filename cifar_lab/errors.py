"""Errors that the user can fix, and one-line descriptions of errors."""

import errno
from pathlib import Path

DISK_TROUBLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR)


class UserError(Exception):
    """An error that the user can fix: shown as one line, never as a traceback."""

    exit_code = 1


class UsageError(UserError):
    """A wrong command line or experiment file."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def printable(text: str) -> str:
    """`text` with control characters and lone surrogates escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def disk_trouble(error: BaseException) -> str:
    """One line for an error of the disk or its permissions; "" for any other error."""
    if not isinstance(error, OSError) or error.errno not in DISK_TROUBLE:
        return ""
    return f"{error.filename2 or error.filename or Path.cwd()}: {error.strerror}"


class DataError(UserError):
    """Images are missing, damaged or of the wrong kind."""


class Unreachable(DataError):
    """The network failed during a download."""
