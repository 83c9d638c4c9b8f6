"""The command line: finds the command, runs it, and says in one line what went wrong."""

import codecs
import importlib
import io
import logging
import os
import select
import signal
import sys
import warnings
from typing import TextIO

from cifar_lab.arguments import make_parser
from cifar_lab.errors import UserError, disk_trouble, printable

INTERRUPTED = 130  # exit code
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 for a failure, 2 for a wrong command line, 130 if interrupted."""
    _write_what_the_terminal_can()
    _let_libraries_warn()
    options = make_parser().parse_args(arguments)
    logger = logging.getLogger("cifar_lab")
    if options.debug:
        logging.basicConfig()
        logger.setLevel(logging.DEBUG)
    code, handlers = 1, [signal.signal(number, _interrupt) for number in INTERRUPTS]
    try:
        code = importlib.import_module(f"cifar_lab.commands.{options.command.replace('-', '_')}").run(options)
    except (KeyboardInterrupt, SystemExit):  # which Lightning makes of the former
        code = INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_left(sys.stdout):
            return 128 + signal.SIGPIPE
        logger.debug("", exc_info=error)
        print(f"cifar_lab: {_reason(error)}", file=sys.stderr)
        return error.exit_code if isinstance(error, UserError) else 1
    finally:
        if code != INTERRUPTED:  # else they stay ignored to the end of the process
            for number, handler in zip(INTERRUPTS, handlers, strict=True):
                signal.signal(number, handler)
    return 128 + signal.SIGPIPE if _reader_left(sys.stdout) else code


def _reader_left(output: TextIO | None) -> bool:
    """Whether nobody reads what is printed any more, as after `| head`; what is still to be written is dropped."""
    if output is None:
        return False
    watch = select.poll()
    try:
        watch.register(output, 0)
        output.flush()
        left = any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))
    except io.UnsupportedOperation:  # no file of the system
        return False
    except BrokenPipeError:
        left = True
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
    return left


def _let_libraries_warn() -> None:
    """Where warnings are to be errors (PYTHONWARNINGS=error), the libraries' own would end their imports."""
    if any(option.startswith("error") for option in sys.warnoptions):
        os.environ.pop("PYTHONWARNINGS", None)
        sys.warnoptions[:] = [option for option in sys.warnoptions if not option.startswith("error")]  # of workers too
        warnings.filters[:] = [found for found in warnings.filters if found[0] != "error"]


def _interrupt(*_: object) -> None:
    """End the command, once: while it ends its workers, another Ctrl-C changes nothing."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _reason(error: Exception) -> str:
    """One line: what the user can mend, or that this is our mistake."""
    if isinstance(error, UserError):
        return printable(str(error))
    store = sys.modules.get("cifar_lab.tracking.store")  # where it is not loaded, the trouble is not tracking's
    reason = store.explain(error) if store else disk_trouble(error)
    if isinstance(error, ImportError):
        reason = f"{error} (a package is missing, or memory to load it)"
    ours = f"{type(error).__name__}: {error} (a mistake of cifar_lab, please report it; --debug shows where it is)"
    return printable(" ".join((reason or ours).split()))


def _write_what_the_terminal_can() -> None:
    """Let no character end a command that the terminal's encoding lacks."""

    def replace(error: UnicodeError) -> tuple[str, int]:
        missing = error.object[error.start : error.end]
        return "".join("+-" if character == "±" else "?" for character in missing), error.end

    codecs.register_error("cifar_lab", replace)
    for stream in filter(None, (sys.stdout, sys.stderr)):  # one that is closed is None
        stream.reconfigure(errors="cifar_lab")


if __name__ == "__main__":
    sys.exit(main())
