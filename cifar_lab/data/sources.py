"""A source of images, its decoded images, and progress while they are read."""

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import rich.progress

from cifar_lab.terminal import make_console

DATA = Path("data")
T = TypeVar("T")


@dataclass(frozen=True)
class Images:
    """A decoded data set, in any order: images (n, 32, 32, 3) uint8 RGB, labels (n,) of label_type, both by split."""

    name: str  # of the MLflow experiment: cifar10, cifar10-jpeg, cifar100, digits, ...
    title: str
    classes: tuple[str, ...]
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    superclasses: tuple[str, ...] = ()  # of each class
    note: str = ""  # what was done to the images, if anything


@dataclass(frozen=True)
class Source:
    """A place that holds a data set, not yet read."""

    place: str
    digest: Callable[[], str]  # a text that changes with the files and with how they are read; names the cache
    decode: Callable[[], Images]
    fallback_reason: str = ""  # why digits stand in for CIFAR-10


def label_type(classes: int) -> np.dtype:
    """The smallest unsigned type for so many classes: uint8 up to 256, then uint16."""
    return np.min_scalar_type(classes - 1)


def not_cifar10(reason: str) -> str:
    """The line that announces a stand-in; reason: see Source."""
    return f"NOT CIFAR-10. {reason}. A stand-in is used instead; its results say nothing about CIFAR-10."


def progress(items: Collection[T], description: str) -> Iterable[T]:
    """The items, with a progress bar on stderr."""
    return rich.progress.track(items, description, console=make_console(stderr=True))


def open_with_progress(path: Path, description: str) -> AbstractContextManager[BinaryIO]:
    """The file for reading bytes, with a progress bar on stderr."""
    return rich.progress.open(path, "rb", description=description, console=make_console(stderr=True))
