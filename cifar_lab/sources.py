"""What the readers of image formats share: a source, its decoded images, files that appear whole or not at all."""

import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import rich.progress
from rich.console import Console

from cifar_lab.config import UserError

DATA = Path("data")
T = TypeVar("T")


class DataError(UserError):
    """Images that are missing, damaged or not what they should be."""


class Unreachable(DataError):
    """A download that the network did not give."""


@dataclass(frozen=True)
class Images:
    """A decoded data set: images (n, 32, 32, 3) uint8 RGB, labels (n,) uint8, both by split."""

    name: str  # of the MLflow experiment: cifar10, cifar10-jpeg, cifar100, digits, ...
    title: str
    classes: tuple[str, ...]
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    superclasses: tuple[str, ...] = ()  # of each class


@dataclass(frozen=True)
class Source:
    """A place that holds a data set, not yet read."""

    place: str
    digest: Callable[[], str]  # changes when the files change; names the cache
    decode: Callable[[], Images]
    stand_in_because: str = ""  # why digits stand in for CIFAR-10


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or folder at: becomes `target` if the block succeeds, else is removed.

    A file is on the disk before it replaces another: a power cut leaves the old one or the new one. A folder that
    another process put at `target` meanwhile is kept. Raises DataError if it can't be written.
    """
    path = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(path)  # of a killed process that had this number
        yield path
        if path.is_file():
            _flush(path)
        if not (path.is_dir() and target.is_dir()):
            os.replace(path, target)
            with suppress(OSError):  # not every file system can
                _flush(target.parent)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror or f'{error}; is the disk full?'}") from None
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def progress(items: Collection[T], description: str) -> Iterable[T]:
    """The items, with a progress bar on stderr."""
    return rich.progress.track(items, description, console=Console(stderr=True))


def open_with_progress(path: Path, description: str) -> BinaryIO:
    """The file for reading bytes, with a progress bar on stderr."""
    return rich.progress.open(path, "rb", description=description, console=Console(stderr=True))
