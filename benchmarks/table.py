"""A row of the table, and how both its sides are timed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

TIMES = 3


@dataclass(frozen=True)
class Row:
    """What is measured, our figure, the other figure, ours relative to it, and which is better, "lower" or "higher"."""

    what: str
    ours: str
    other: str
    ratio: float
    better: str

    def __str__(self) -> str:
        return f"| {self.what} | {self.ours} | {self.other} | {self.ratio:.2f} | {self.better} |"


def alternate(measures: Sequence[Callable[[], float]], times: int = TIMES) -> list[float]:
    """Medians of what each of `measures` returns, called in turn, `times` each."""
    rounds = [[measure() for measure in measures] for _ in range(times)]
    return [median(values) for values in zip(*rounds, strict=True)]


def timed() -> Callable[[], float]:
    """A function that gives the seconds since now."""
    start = time.perf_counter()
    return lambda: time.perf_counter() - start
