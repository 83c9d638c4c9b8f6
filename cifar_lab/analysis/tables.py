"""Tables of results, as markdown."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cifar_lab.analysis.comparison import Difference, Sample, Summary, is_accuracy
from cifar_lab.analysis.uncertainty import detectable

SUMMARY_HEADER = ("experiment", "n", "mean", "std", "95 %, seeds", "95 %, seeds and images", "ensemble")
PLANNED = (4, 6, 8, 10, 12, 16, 24, 32)  # seeds
DIFFERENCE_HEADER = (
    "difference",
    "n",
    "mean",
    "95 %, seeds",
    "95 %, seeds and images",
    "P(first is higher)",
    "p",
    "found from",
    "verdict",
)
SCORE_TITLES = {"acc": "accuracy, percent", "nll": "NLL", "brier": "Brier score", "ece": "ECE, percent"}
SCORE_HEADER = ("images", "probabilities", *SCORE_TITLES.values())
ENSEMBLE = "_ensemble"  # ends the name of a score


def unit(metric: str) -> str:
    return ", percent" if is_accuracy(metric) else ""


def number(metric: str, value: float, sign: str = "") -> str:
    """Percent with two decimals for an accuracy, four decimals for a loss, "-" for nan."""
    if np.isnan(value):
        return "-"
    return f"{100 * value:{sign}.2f}" if is_accuracy(metric) else f"{value:{sign}.4f}"


def interval(low: str, high: str) -> str:
    return low if low == "-" else f"{low} to {high}"


def summary_row(sample: Sample, summary: Summary) -> list[str]:
    """Cells under SUMMARY_HEADER."""
    numbers = summary.mean, summary.std, summary.ci_low, summary.ci_high, *sample.images_ci, sample.ensemble
    mean, std, low, high, images_low, images_high, ensemble = (number(sample.metric, value) for value in numbers)
    intervals = interval(low, high), interval(images_low, images_high)
    return [f"`{sample.name}`", str(summary.n), mean, std, *intervals, ensemble]


def difference_row(difference: Difference) -> list[str]:
    """Cells under DIFFERENCE_HEADER."""
    metric = difference.metric
    numbers = difference.mean, *difference.ci, *difference.images_ci
    mean, *bounds = (number(metric, value, "+") for value in numbers)
    improvement, low, high = (f"{value:.2f}" for value in difference.improvement)
    correlation = "" if np.isnan(difference.correlation) else f", r = {difference.correlation:.2f}"
    return [
        f"`{difference.first}` - `{difference.second}`",
        f"{difference.n} {'paired' if difference.paired else 'each'}{correlation}",
        mean,
        interval(*bounds[:2]),
        interval(*bounds[2:]),
        "-" if improvement == "nan" else f"{improvement} ({low} to {high})",
        "-" if np.isnan(difference.p) else f"{difference.p:.3g}",
        number(metric, difference.detectable),
        difference.verdict,
    ]


def mean_and_half(score: str, summary: Summary) -> str:
    """The mean, and half of its interval if n > 1; accuracy and ECE in percent, with one decimal."""
    factor, digits = (100, 1) if score.startswith(("acc", "ece")) else (1, 4)
    half = f" ± {factor * (summary.ci_high - summary.mean):.{digits}f}" if summary.n > 1 else ""
    return f"{factor * summary.mean:.{digits}f}{half}"


def score_rows(summaries: Mapping[tuple[str, str], Summary]) -> list[list[str]]:
    """Cells under SCORE_HEADER, from summaries by images and score: as trained, scaled, and of the ensemble."""
    rows = []
    for images in dict.fromkeys(images for images, _ in summaries):
        for kind, ending in (("as trained", ""), ("temperature scaled", "_scaled"), ("ensemble", ENSEMBLE)):
            if (images, f"nll{ending}") in summaries:
                names = [f"{score}{ending}" for score in SCORE_TITLES]
                names[0] = names[0].removesuffix("_scaled")  # which no temperature changes
                rows.append([images, kind, *(mean_and_half(name, summaries[images, name]) for name in names)])
    return rows


def method(differences: Sequence[Difference]) -> str:
    """How the numbers of difference_row were computed."""
    pairs = sum(not np.isnan(difference.p) for difference in differences)
    repeated = any(difference.n > 1 for difference in differences)
    tests = "permutation test" if repeated else "McNemar's exact test of two runs"
    tests += f", adjusted for {pairs} pairs (Holm)" if pairs > 1 else ""
    return (
        "Intervals: for another seed on these images (Student's t), and for another seed on other such images. "
        f"n: common seeds, compared seed by seed (paired; r: their correlation), or seeds of each. p: {tests}. "
        "Found from: the difference that so many seeds with this spread find in 80 % of the cases."
    )


def plan(differences: Sequence[Difference]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the smallest difference found in 80 % of the cases, by number of seeds, with today's spread."""
    told = [difference for difference in differences if difference.spread > 0]
    header = ["seeds", *(f"`{difference.first}` - `{difference.second}`" for difference in told)]
    rows = [[str(n), *(number(d.metric, d.spread * detectable(n, d.paired, len(told))) for d in told)] for n in PLANNED]
    return header, rows


def markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], aligned: bool = True) -> str:
    """A markdown table; if `aligned`, its cells are padded, so that it reads well as plain text."""
    cells = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) if aligned else 1 for column in zip(*cells, strict=True)]
    lines = [markdown_row(map(str.ljust, row, widths)) for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
