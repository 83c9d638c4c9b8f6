"""Statistics over repeats: pure numpy and scipy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Summary:
    """n values: mean, sample standard deviation and the 95 % interval of the mean; nan where n = 1 gives none."""

    n: int
    mean: float
    std: float
    ci_low: float
    ci_high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f} ± {100 * self.std:.2f} %" if self.n > 1 else f"{100 * self.mean:.2f} %"


def summarise(values: Sequence[float]) -> Summary:
    """Summary of one value per seed; the interval is Student's t (scipy.stats.t). Raises ValueError for no values."""
    n = len(values)
    if n == 0:
        raise ValueError("no values to summarise")
    mean = float(np.mean(values))
    if n == 1:
        return Summary(1, mean, np.nan, np.nan, np.nan)
    std = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * std / np.sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half)
