"""Statistics over seeds: pure numpy and scipy."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from scipy import stats

from cifar_lab.analysis.uncertainty import (
    LEVEL,
    NO_INTERVAL,
    detectable,
    is_significant,
    mcnemar,
    probability_of_improvement,
    seeds_and_images,
)
from cifar_lab.errors import UserError


def is_accuracy(metric: str) -> bool:
    """Whether a metric such as "test/acc_tta" is an accuracy, shown in percent, and not a loss."""
    return "/acc" in metric


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
    """A metric's value by seed, and the images and split that it was measured on.

    correct: by seed, for an accuracy, which images were classified correctly, (images,) bool; empty if that is unknown.
    ensemble: the accuracy of the mean of all seeds' probabilities. later: the seeds that came after a first comparison.
    """

    name: str
    metric: str
    data: str
    split: str
    values: Mapping[int, float]
    correct: Mapping[int, np.ndarray] = field(default_factory=dict)
    ensemble: float = math.nan
    later: frozenset[int] = frozenset()

    def answers(self, seeds: Sequence[int]) -> np.ndarray | None:
        """Which images were classified correctly with each seed, (seeds, images) float64; None if that is unknown."""
        if not all(seed in self.correct for seed in seeds):
            return None
        return np.stack([self.correct[seed] for seed in seeds]).astype(float)

    @property
    def images_ci(self) -> tuple[float, float]:
        """95 % interval of the mean for other seeds and other images of the same kind."""
        answers = self.answers([*self.values])
        return NO_INTERVAL if answers is None else seeds_and_images(answers)


@dataclass(frozen=True)
class Difference:
    """First minus second sample, paired over the `n` seeds that both have, or between all seeds of each.

    ci: 95 % interval over seeds, Student's t; images_ci: over seeds and images (see seeds_and_images). p is that of a
    permutation test, with one run each McNemar's; smallest_p is the smallest that this n allows. Both are adjusted for
    the number of pairs. correlation: of the pairs. improvement: P(first > second) with its interval. spread: standard
    deviation of the differences, or of the samples. detectable: the smallest difference that is found with a power of
    0.8. worse_p, better_p: of the one-sided tests that first is lower, or higher, by `margin` or more. later: whether
    seeds came after a first comparison. What can't be told is nan.
    """

    metric: str
    first: str
    second: str
    n: int
    paired: bool
    mean: float
    margin: float = 0.0
    ci: tuple[float, float] = NO_INTERVAL
    images_ci: tuple[float, float] = NO_INTERVAL
    p: float = math.nan
    smallest_p: float = math.nan
    correlation: float = math.nan
    improvement: tuple[float, float, float] = (math.nan,) * 3
    spread: float = math.nan
    detectable: float = math.nan
    worse_p: float = math.nan
    better_p: float = math.nan
    later: bool = False

    @property
    def significant(self) -> bool:
        """Whether p is below LEVEL and the t interval excludes zero."""
        return is_significant(self.p, self.ci)

    @property
    def verdict(self) -> str:
        """Which one is higher, in words, or why nothing can be said; and which are equal within the margin."""
        if self.n == 1:
            return "these two runs differ" if self.p < LEVEL else "one run each tells nothing about others"
        if self.significant:
            found = f"{self.first if self.mean > 0 else self.second} is higher"
        else:
            found = "no clear difference" if self.smallest_p < LEVEL else f"n is too small for p < {LEVEL}"
        if self.margin and max(self.worse_p, self.better_p) < LEVEL:
            found += "; equal within the margin"
        elif self.margin and not self.significant and min(self.worse_p, self.better_p) < LEVEL:
            not_worse = (self.worse_p < LEVEL) == is_accuracy(self.metric)  # of a loss, the lower one is the better one
            one, other = (self.first, self.second) if not_worse else (self.second, self.first)
            found += f"; {one} is not worse than {other} by the margin"
        return f"{found} (but seeds were added after a first comparison)" if self.later else found


def compare(samples: Sequence[Sample], margin: float = 0.0) -> list[Difference]:
    """The difference of each pair of samples; p-values are adjusted for the number of pairs that have one (Holm, 1979).

    margin: a difference that does not matter, for tests of equivalence, whose p-values are not adjusted. Raises
    UserError unless all samples are of one metric on the same images and split.
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
        found = [_difference(*pair, tested, margin) for pair in pairs]
    adjusted = 0.0
    tests = [index for index in np.argsort([difference.p for difference in found]) if not np.isnan(found[index].p)]
    for rank, index in enumerate(tests):
        adjusted = max(adjusted, min(1.0, (len(tests) - rank) * found[index].p))
        found[index] = replace(found[index], p=adjusted)
    return found


def _arrays(first: Sample, second: Sample) -> tuple[tuple[np.ndarray, np.ndarray], int, bool]:
    """Both samples, over common seeds if there are at least two, else over all; the (smaller) n; whether paired."""
    common = sorted(first.values.keys() & second.values.keys())
    paired = len(common) > 1
    arrays = [
        np.array([sample.values[seed] for seed in (common if paired else sample.values)]) for sample in (first, second)
    ]
    return (arrays[0], arrays[1]), min(map(len, arrays)), paired


def _difference(first: Sample, second: Sample, tested: int, margin: float) -> Difference:
    """By scipy.stats: Student's or Welch's t interval, permutation test (exact for up to 13 pairs)."""
    (one, other), n, paired = _arrays(first, second)
    found = Difference(first.metric, first.name, second.name, n, paired, float(one.mean() - other.mean()), margin)
    correct = [[*sample.correct.values()] for sample in (first, second)]
    if max(len(first.values), len(second.values)) == 1 and all(correct):
        return replace(found, p=mcnemar(correct[0][0], correct[1][0]))
    if n < 2:
        return found
    test = stats.ttest_rel(one, other) if paired else stats.ttest_ind(one, other, equal_var=False)
    interval = test.confidence_interval()
    arrays, kind = ((one - other,), "samples") if paired else ((one, other), "independent")
    smallest_p = min(1.0, tested * 2 / (2**n if paired else math.comb(len(one) + len(other), n)))
    spread = np.std(one - other, ddof=1) if paired else math.sqrt((np.var(one, ddof=1) + np.var(other, ddof=1)) / 2)
    worse_p, better_p = _beyond(one, other, paired, margin)
    seeds = first.values.keys() & second.values.keys() if paired else first.values.keys() | second.values.keys()
    return replace(
        found,
        ci=(float(interval.low), float(interval.high)),
        images_ci=_over_images(first, second, paired),
        p=float(stats.permutation_test(arrays, _mean_difference, permutation_type=kind, rng=_rng()).pvalue),
        smallest_p=smallest_p,
        correlation=float(np.corrcoef(one, other)[0, 1]) if paired else math.nan,
        improvement=probability_of_improvement(one, other),
        spread=float(spread),
        detectable=float(spread * detectable(n, paired, tested)),
        worse_p=worse_p,
        better_p=better_p,
        later=bool((first.later | second.later) & seeds),
    )


def _beyond(one: np.ndarray, other: np.ndarray, paired: bool, margin: float) -> tuple[float, float]:
    """p-values for `one` being lower, and higher, than `other` by `margin` or more: two one-sided t tests."""
    if not margin:
        return math.nan, math.nan
    welch = {} if paired else {"equal_var": False}
    test = stats.ttest_rel if paired else stats.ttest_ind
    worse = test(one + margin, other, alternative="greater", **welch).pvalue
    return float(worse), float(test(one - margin, other, alternative="less", **welch).pvalue)


def _over_images(first: Sample, second: Sample, paired: bool) -> tuple[float, float]:
    seeds = [*(first.values.keys() & second.values.keys())]
    one, other = (sample.answers(seeds if paired else [*sample.values]) for sample in (first, second))
    if one is None or other is None:
        return NO_INTERVAL
    return seeds_and_images(one - other) if paired else seeds_and_images(one, other)


def _mean_difference(first: np.ndarray, second: np.ndarray | float = 0.0, *, axis: int = -1) -> np.ndarray:
    return np.mean(first, axis=axis) - np.mean(second, axis=axis if np.ndim(second) else None)


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)  # equal samples give equal statistics
