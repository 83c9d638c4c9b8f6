"""What other seeds and other test images would have given, and how many seeds tell a difference."""

import functools
import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy import optimize, stats

LEVEL = 0.05  # of significance
NO_INTERVAL = (math.nan, math.nan)
POWER = 0.8
SIMULATED = 2000  # comparisons
EXACT = 10  # largest n for which the simulation permutes; above, the t test's p is as good


def seeds_and_images(first: np.ndarray, second: np.ndarray | None = None) -> tuple[float, float]:
    """95 % interval of the mean of `first`, (seeds, images), for other seeds and other images of the same kind.

    With `second`, (its seeds, the same images), of the difference of the means; its seeds are independent. nan for one
    seed. The variances over seeds and over images add up; degrees of freedom by Satterthwaite (1946). What is due to a
    single seed on a single image counts twice, but it is hundreds of times smaller. With few seeds, whose quantiles of
    Student's t are large, the interval is at least as wide as that over seeds alone.
    """
    samples = [first] if second is None else [first, second]
    if min(map(len, samples)) < 2:
        return NO_INTERVAL
    mean = first.mean() - (0 if second is None else second.mean())
    over_images = first.mean(0) - (0 if second is None else second.mean(0))
    parts = [(np.var(sample.mean(1), ddof=1) / len(sample), len(sample) - 1) for sample in samples]
    parts.append((np.var(over_images, ddof=1) / len(over_images), len(over_images) - 1))
    half = max(_half(parts[:-1]), _half(parts))
    return float(mean - half), float(mean + half)


def _half(parts: Sequence[tuple[float, int]]) -> float:
    """Half of the 95 % interval of a mean from independent parts of its variance, each with its degrees of freedom."""
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    return float(stats.t.ppf(1 - LEVEL / 2, freedom)) * math.sqrt(variance)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact p-value of two runs' (images,) bool of correct answers (McNemar, 1947; scipy.stats.binomtest)."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    different = only_first + only_second
    return float(stats.binomtest(only_first, different).pvalue) if different else 1.0


def ensemble_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of the mean of (seeds, images, classes) probabilities."""
    return float((probabilities.mean(0, dtype=np.float32).argmax(1) == labels).mean())


def probability_of_improvement(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """P(a run of `first` is higher than one of `second`), ties counted half, and its 95 % interval.

    Mann and Whitney's U over the number of pairs; interval: Newcombe (2006), Statistics in Medicine 25, method 5.
    """
    m, n = len(first), len(second)
    found = float(stats.mannwhitneyu(first, second).statistic / (m * n))
    others = (m + n) / 2 - 1
    z = stats.norm.ppf(1 - LEVEL / 2)

    def excess(p: float) -> float:
        variance = p * (1 - p) * (1 + others * (1 - p) / (2 - p) + others * p / (1 + p)) / (m * n)
        return (found - p) ** 2 - z**2 * variance

    tiny = 1e-9  # at 0 and 1 the variance is zero
    low = optimize.brentq(excess, 0, found - tiny) if found > 0 else 0.0
    high = optimize.brentq(excess, found + tiny, 1) if found < 1 else 1.0
    return found, float(low), float(high)


def is_significant(p: float, interval: tuple[float, float]) -> bool:
    """The rule that decides: p of the permutation test is below LEVEL, and the t interval excludes zero."""
    return bool(p < LEVEL and (interval[0] > 0 or interval[1] < 0))


@functools.cache
def detectable(n: int, paired: bool = True, tested: int = 1) -> float:
    """The smallest difference that n seeds (of each) show with a power of 0.8 under `is_significant`.

    In standard deviations: of the differences of pairs, or of a sample. tested: the number of pairs of experiments,
    which p is multiplied by. nan if n is too small for any. By simulation, from normal distributions.
    """
    generator = np.random.default_rng(0)
    size = n if paired else 2 * n
    draws = generator.standard_normal((SIMULATED, size))
    exact = size <= EXACT
    signs = (_signs(n) if paired else _groupings(n)) if exact else None

    def power(difference: float) -> float:
        values = draws + difference * (np.arange(size) < n)
        if paired:
            mean, spread, freedom = values.mean(1), values.std(1, ddof=1) / math.sqrt(n), n - 1.0
        else:
            groups = values[:, :n], values[:, n:]
            mean = groups[0].mean(1) - groups[1].mean(1)
            parts = np.stack([group.var(1, ddof=1) / n for group in groups])
            spread, freedom = np.sqrt(parts.sum(0)), parts.sum(0) ** 2 * (n - 1) / (parts**2).sum(0)
        p = 2 * stats.t.sf(np.abs(mean) / spread, freedom)
        significant = p < LEVEL
        if signs is not None:
            p = (np.abs(values @ signs.T) >= np.abs(mean)[:, None] * n - 1e-9).mean(1)
        return float((significant & (p * tested < LEVEL)).mean())

    if n < 2 or power(100.0) < POWER:
        return math.nan
    return float(optimize.bisect(lambda difference: power(difference) - POWER, 0, 100, xtol=1e-3))


def _signs(n: int) -> np.ndarray:
    """(2^n, n): all ways to exchange the members of n pairs."""
    return 1.0 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)


def _groupings(n: int) -> np.ndarray:
    """(2n over n, 2n): all ways to divide 2n values into two groups of n."""
    chosen = np.array([*combinations(range(2 * n), n)])
    signs = -np.ones((len(chosen), 2 * n))
    np.put_along_axis(signs, chosen, 1, 1)
    return signs
