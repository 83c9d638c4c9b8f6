"""Sets of repeats beside one another: which is higher, by how much, and whether there are enough seeds to tell."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab import runs, store
from cifar_lab.comparison import Difference, Sample, Summary
from cifar_lab.figures import plot_comparison
from cifar_lab.sets import curves_of, load_sets, remarks, values_of
from cifar_lab.sources import staged

SUMMARY_HEADER = ("experiment", "n", "mean", "std", "95 % interval")
DIFFERENCE_HEADER = ("difference", "n", "mean", "95 % interval, t", "95 % interval, bootstrap", "p", "enough seeds?")


def compare_experiments(names: Sequence[str], metric: str, figure: Path) -> int:
    """Print the table of `metric` of each set of repeats and of each pair's difference; draw them into `figure`."""
    client = store.connect()
    sets = load_sets(client, names, metric)
    print(f"{metric}{unit(metric)}; images {sets.samples[0].data}, split {sets.samples[0].split}\n")
    print(_table(SUMMARY_HEADER, map(summary_row, sets.samples, sets.summaries)))
    if sets.differences:
        print(f"\n{_table(DIFFERENCE_HEADER, map(difference_row, sets.differences))}")
        print(f"\nn: seeds that both have, compared seed by seed, or of both together. {method(sets.differences)}")
    for sample, parent in zip(sets.samples, sets.parents, strict=True):
        for line in _duplicates(client, parent):
            print(f"{sample.name}: {line}")
    for line in remarks(sets):
        print(line)
    curve, curves = curves_of(client, sets)
    with staged(figure) as path:
        plot_comparison(values_of(sets), sets.summaries, curves, metric, curve).savefig(
            path, format=figure.suffix[1:], dpi=110
        )
    print(f"\ndrawn in {figure}")
    return 0


def _duplicates(client: MlflowClient, parent: Run) -> list[str]:
    finished = runs.children(client, parent, "attributes.status = 'FINISHED'")
    seeds = sorted(int(run.data.tags["seed"]) for run in finished)
    return [f"seed {seed} finished {n} times; only the first counts" for seed, n in Counter(seeds).items() if n > 1]


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
    pairs = sum(not np.isnan(difference.p) for difference in differences)
    adjusted = f", adjusted for {pairs} pairs (Holm)" if pairs > 1 else ""
    caution = "the bootstrap's (BCa) is too narrow for few seeds: quote t"
    return f"p: permutation test{adjusted}. Intervals are of one pair at a time; {caution}."


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown, aligned to be read as it is."""
    cells = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
