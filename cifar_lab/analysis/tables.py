"""Tables of results, as markdown."""

from collections.abc import Iterable, Sequence

import numpy as np

from cifar_lab.analysis.comparison import Difference, Sample, Summary

SUMMARY_HEADER = ("experiment", "n", "mean", "std", "95 % interval")
DIFFERENCE_HEADER = ("difference", "n", "mean", "95 % interval, t", "95 % interval, bootstrap", "p", "verdict")


def unit(metric: str) -> str:
    return ", percent" if metric.endswith("acc") else ""


def _number(metric: str, value: float, sign: str = "") -> str:
    if np.isnan(value):
        return "-"
    return f"{100 * value:{sign}.2f}" if metric.endswith("acc") else f"{value:{sign}.4f}"


def _interval(low: str, high: str) -> str:
    return low if low == "-" else f"{low} to {high}"


def summary_row(sample: Sample, summary: Summary) -> list[str]:
    mean, std, low, high = (
        _number(sample.metric, value) for value in (summary.mean, summary.std, summary.ci_low, summary.ci_high)
    )
    return [f"`{sample.name}`", str(summary.n), mean, std, _interval(low, high)]


def difference_row(difference: Difference) -> list[str]:
    metric = difference.metric
    mean, *bounds = (
        _number(metric, value, "+") for value in (difference.mean, *difference.ci, *difference.bootstrap_ci)
    )
    return [
        f"`{difference.first}` - `{difference.second}`",
        f"{difference.n} {'paired' if difference.paired else 'each'}",
        mean,
        _interval(*bounds[:2]),
        _interval(*bounds[2:]),
        "-" if np.isnan(difference.p) else f"{difference.p:.3g}",
        difference.verdict,
    ]


def method(differences: Sequence[Difference]) -> str:
    """How n, p and the intervals of difference_row were computed."""
    pairs = sum(not np.isnan(difference.p) for difference in differences)
    adjusted = f", adjusted for {pairs} pairs (Holm)" if pairs > 1 else ""
    return (
        f"n: common seeds, compared seed by seed (paired), or seeds of each. p: permutation test{adjusted}. Intervals "
        "are not adjusted; the bootstrap's (BCa) is too narrow for few seeds, so quote t."
    )


def markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], aligned: bool = True) -> str:
    """A markdown table; if `aligned`, its cells are padded, so that it reads well as plain text."""
    cells = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) if aligned else 1 for column in zip(*cells, strict=True)]
    lines = [markdown_row(map(str.ljust, row, widths)) for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
