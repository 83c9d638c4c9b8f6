"""The command line: runs a command and reports an error in one line."""

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
    _replace_unencodable_characters()
    _drop_error_filters()
    options = make_parser().parse_args(arguments)
    logger = logging.getLogger("cifar_lab")
    logger.setLevel(logging.DEBUG if options.debug else logging.WARNING)  # mlflow.pytorch hides warnings by default
    if options.debug:
        logging.basicConfig()
    code, handlers = 1, [signal.signal(number, _interrupt) for number in INTERRUPTS]
    try:
        code = importlib.import_module(f"cifar_lab.commands.{options.command.replace('-', '_')}").run(options)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        code = INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_left(sys.stdout):
            return 128 + signal.SIGPIPE
        logger.debug("", exc_info=error)
        print(f"cifar_lab: {_reason(error)}", file=sys.stderr)
        return error.exit_code if isinstance(error, UserError) else 1
    finally:
        if code != INTERRUPTED:  # after an interrupt, signals stay ignored until the process ends
            for number, handler in zip(INTERRUPTS, handlers, strict=True):
                signal.signal(number, handler)
    return 128 + signal.SIGPIPE if _reader_left(sys.stdout) else code


def _reader_left(output: TextIO | None) -> bool:
    """Whether the reader of `output` is gone, as after `| head`; if so, the rest of the output is discarded."""
    if output is None:
        return False
    watch = select.poll()
    try:
        watch.register(output, 0)
        output.flush()
        left = any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))
    except io.UnsupportedOperation:  # not a file descriptor
        return False
    except BrokenPipeError:
        left = True
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
    return left


def _drop_error_filters() -> None:
    """Ignore PYTHONWARNINGS=error, here and in workers: warnings of the libraries would abort their imports."""
    if any(option.startswith("error") for option in sys.warnoptions):
        os.environ.pop("PYTHONWARNINGS", None)
        sys.warnoptions[:] = [option for option in sys.warnoptions if not option.startswith("error")]
        kept = [found for found in warnings.filters if found[0] != "error"]
        warnings.filters[:] = kept  # type: ignore[index]  # a list


def _interrupt(*_: object) -> None:
    """Interrupt the command once: a second Ctrl-C is ignored while it stops its workers."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _reason(error: Exception) -> str:
    """One line: what the user can fix, or that this is a bug."""
    if isinstance(error, UserError):
        return printable(str(error))
    store = sys.modules.get("cifar_lab.tracking.store")  # if it is not loaded, the error is not about tracking
    reason = store.explain(error) if store else disk_trouble(error)
    if isinstance(error, ImportError):
        reason = f"{error} (a package is missing, or the memory to load it)"
    bug = f"{type(error).__name__}: {error} (a bug in cifar_lab, please report it; --debug shows the traceback)"
    return printable(" ".join((reason or bug).split()))


def _replace_unencodable_characters() -> None:
    """Print "?" (for ± "+-") where the terminal's encoding lacks a character, instead of raising."""

    def replace(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        missing = error.object[error.start : error.end]
        return "".join("+-" if character == "±" else "?" for character in missing), error.end

    codecs.register_error("cifar_lab", replace)
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a closed one is None
        stream.reconfigure(errors="cifar_lab")


if __name__ == "__main__":
    sys.exit(main())
