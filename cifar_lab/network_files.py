"""Network files, found by `model.kind`: those of this package, and `networks/<kind>.py` beside `experiments/`."""

import functools
import importlib
import linecache
import traceback
from pathlib import Path
from types import ModuleType

from cifar_lab.errors import UsageError

FOLDER = Path("networks")
PACKAGED = ("linear", "cnn", "mlp", "resnet", "torchvision")


def kinds() -> list[str]:
    """The kinds that can be named here: the package's, then those of the current folder."""
    own = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem.isidentifier() and file.stem not in PACKAGED)
    return [*PACKAGED, *own]


def find_source(kind: str) -> str:
    """The text of `networks/<kind>.py`; "" for a network of this package.

    Raises UsageError if there is no such network, or one of the same name in both places.
    """
    file = FOLDER / f"{kind}.py"
    if kind not in kinds():
        raise UsageError(f"model.kind = {kind!r}: use {', '.join(kinds())}, or write {file}")
    if kind in PACKAGED and file.exists():
        raise UsageError(f"{file} has the name of a network of cifar_lab; rename it")
    try:
        return "" if kind in PACKAGED else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: {error}") from None


@functools.cache
def load(kind: str, source: str) -> ModuleType:
    """The module of a network; `source`, if not empty, is executed, once per process.

    Raises UsageError with the file and line of an error, or if it has no `Config` or no `Network`.
    """
    if not source and kind in PACKAGED:
        return importlib.import_module(f"cifar_lab.networks.{kind}")
    name = str(FOLDER / f"{kind}.py")
    module = ModuleType(f"networks.{kind}")
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # for tracebacks
    try:
        exec(compile(source, name, "exec"), module.__dict__)
    except Exception as error:
        raise UsageError(explain(error, name)) from None
    for needed in ("Config", "Network"):
        if not isinstance(getattr(module, needed, None), type):
            raise UsageError(f"{name} defines no class {needed}")
    return module


def explain(error: Exception, name: str) -> str:
    """An error of the code in file `name`, with the line of that file in which it happened."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{name}{f', line {line}' if line else ''}: {type(error).__name__}: {message}"
