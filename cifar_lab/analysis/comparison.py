"""Statistics over seeds: pure numpy and scipy."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy import stats

from cifar_lab.errors import UserError

LEVEL = 0.05  # of significance
NO_INTERVAL = (math.nan, math.nan)


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation and 95 % interval of the mean of n values; for n = 1 only the mean is not nan."""

    n: int
    mean: float
    std: float
    ci_low: float
    ci_high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f} ± {100 * self.std:.2f} %" if self.n > 1 else f"{100 * self.mean:.2f} %"


def summarise(values: Sequence[float] | np.ndarray) -> Summary:
    """Summary of one value per seed; the interval is Student's t (scipy.stats.t). Raises ValueError for no values."""
    n = len(values)
    if n == 0:
        raise ValueError("no values to summarise")
    mean = float(np.mean(values))
    if n == 1:
        return Summary(1, mean, np.nan, np.nan, np.nan)
    std = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * std / n**0.5
    return Summary(n, mean, std, mean - half, mean + half)


@dataclass(frozen=True)
class Sample:
    """A metric's value by seed, and the images and split that it was measured on."""

    name: str
    metric: str
    data: str
    split: str
    values: Mapping[int, float]


@dataclass(frozen=True)
class Difference:
    """First minus second sample, paired over the `n` seeds that both have, or between all seeds of each.

    The mean has two 95 % intervals, Student's t and bootstrap. p is that of a permutation test, smallest_p the smallest
    that this n allows; both are adjusted for the number of pairs. What n is too small for is nan.
    """

    metric: str
    first: str
    second: str
    n: int
    paired: bool
    mean: float
    ci: tuple[float, float]
    bootstrap_ci: tuple[float, float]
    p: float
    smallest_p: float

    @property
    def significant(self) -> bool:
        """Whether p is below LEVEL and the t interval excludes zero."""
        return bool(self.p < LEVEL and (self.ci[0] > 0 or self.ci[1] < 0))

    @property
    def verdict(self) -> str:
        """Which one is higher, in words, or why nothing can be said."""
        if self.significant:
            return f"{self.first if self.mean > 0 else self.second} is higher"
        return "no clear difference" if self.smallest_p < LEVEL else f"n is too small for p < {LEVEL}"


def compare(samples: Sequence[Sample]) -> list[Difference]:
    """The difference of each pair of samples; p-values are adjusted for the number of pairs that have one (Holm, 1979).

    Raises UserError unless all samples are of one metric on the same images and split.
    """
    for sample in samples[1:]:
        for what in ("metric", "data", "split"):
            one, other = getattr(samples[0], what), getattr(sample, what)
            if one != other:
                raise UserError(f"{samples[0].name} and {sample.name} can't be compared: {what} {one} and {other}")
    pairs = list(combinations(samples, 2))
    tested = sum(_arrays(*pair)[1] > 1 for pair in pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # about samples without variance
        found = [_difference(*pair, tested) for pair in pairs]
    adjusted = 0.0
    for rank, index in enumerate(np.argsort([difference.p for difference in found])[:tested]):  # nan sorts last
        adjusted = max(adjusted, min(1.0, (tested - rank) * found[index].p))
        found[index] = replace(found[index], p=adjusted)
    return found


def _arrays(first: Sample, second: Sample) -> tuple[tuple[np.ndarray, ...], int]:
    """The differences over common seeds, or both samples if they share fewer than two; and the (smaller) n."""
    common = sorted(first.values.keys() & second.values.keys())
    if len(common) > 1:
        return (np.array([first.values[seed] - second.values[seed] for seed in common]),), len(common)
    arrays = tuple(np.array(list(sample.values.values())) for sample in (first, second))
    return arrays, min(map(len, arrays))


def _difference(first: Sample, second: Sample, tested: int) -> Difference:
    """By scipy.stats: Student's or Welch's t interval, BCa bootstrap, permutation test (exact for up to 13 pairs)."""
    arrays, n = _arrays(first, second)
    paired = len(arrays) == 1
    names, mean = (first.metric, first.name, second.name), float(_mean_difference(*arrays))
    if n < 2:
        return Difference(*names, n, paired, mean, NO_INTERVAL, NO_INTERVAL, math.nan, math.nan)
    test = stats.ttest_1samp(*arrays, 0) if paired else stats.ttest_ind(*arrays, equal_var=False)
    interval = test.confidence_interval()
    kind = "samples" if paired else "independent"
    p = stats.permutation_test(arrays, _mean_difference, permutation_type=kind, rng=_rng()).pvalue
    smallest_p = min(1.0, tested * 2 / (2**n if paired else math.comb(sum(map(len, arrays)), n)))
    ci = (float(interval.low), float(interval.high))
    return Difference(*names, n, paired, mean, ci, _bootstrap(arrays), float(p), smallest_p)


def _mean_difference(first: np.ndarray, second: np.ndarray | float = 0.0, *, axis: int = -1) -> np.ndarray:
    return np.mean(first, axis=axis) - np.mean(second, axis=axis if np.ndim(second) else None)


def _bootstrap(samples: tuple[np.ndarray, ...]) -> tuple[float, float]:
    if min(map(len, samples)) < 3 or all(np.ptp(sample) == 0 for sample in samples):
        return NO_INTERVAL
    interval = stats.bootstrap(samples, _mean_difference, method="BCa", rng=_rng()).confidence_interval
    return float(interval.low), float(interval.high)


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)  # equal samples give equal statistics
