"""A row of the table, and the timing of its two sides."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from cifar_lab.analysis.tables import markdown_row

TIMES = 3


@dataclass(frozen=True)
class Row:
    """A measurement of our code and of other code."""

    what: str
    ours: str
    other: str
    ratio: float  # ours to the other
    better: str  # "lower" or "higher"

    def __str__(self) -> str:
        return markdown_row((self.what, self.ours, self.other, f"{self.ratio:.2f}", self.better))


def alternate(measures: Sequence[Callable[[], float]], times: int = TIMES) -> list[float]:
    """The median of each of `measures`, called alternately, `times` times each."""
    rounds = [[measure() for measure in measures] for _ in range(times)]
    return [median(values) for values in zip(*rounds, strict=True)]


def timed() -> Callable[[], float]:
    """A function that returns the seconds since this call."""
    start = time.perf_counter()
    return lambda: time.perf_counter() - start
