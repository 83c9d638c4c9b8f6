"""What can go wrong by a mistake or a circumstance that the user can mend, and how it is told."""

import errno
from pathlib import Path

DISK_TROUBLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR)


class UserError(Exception):
    """A mistake or a circumstance that the user can mend: shown as one line, never as a traceback."""

    exit_code = 1


class UsageError(UserError):
    """A wrong command line or experiment file."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind if it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def printable(text: str) -> str:
    """`text` with what would control a terminal, or can't be written at all, as an escape sequence."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def disk_trouble(error: BaseException) -> str:
    """One line for what a disk did not allow; "" for another error."""
    if not isinstance(error, OSError) or error.errno not in DISK_TROUBLE:
        return ""
    return f"{error.filename2 or error.filename or Path.cwd()}: {error.strerror}"


class DataError(UserError):
    """Images that are missing, damaged or not what they should be."""


class Unreachable(DataError):
    """A download that the network did not give."""
