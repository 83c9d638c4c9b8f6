"""Compare experiments: which is higher, by how much, and whether the difference is significant."""

import argparse
from collections import Counter

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab.analysis.comparison import is_accuracy
from cifar_lab.analysis.figures import plot_comparison
from cifar_lab.analysis.tables import (
    DIFFERENCE_HEADER,
    SUMMARY_HEADER,
    difference_row,
    markdown_table,
    method,
    plan,
    summary_row,
    unit,
)
from cifar_lab.experiment_files import experiment_name
from cifar_lab.files import atomic_write
from cifar_lab.tracking import queries, store
from cifar_lab.tracking.lookup import curves_of, load_comparison


def run(options: argparse.Namespace) -> int:
    """Print and draw a metric of each experiment, and the difference of each pair. Raises UserError."""
    metric, figure = options.metric, options.figure
    client = store.connect()
    margin = options.margin / 100 if is_accuracy(metric) else options.margin
    comparison = load_comparison(client, [*map(experiment_name, options.experiments)], metric, margin)
    items, first = comparison.items, comparison.items[0].sample
    print(f"{metric}{unit(metric)}; images {first.data}, split {first.split}\n")
    print(markdown_table(SUMMARY_HEADER, [summary_row(item.sample, item.summary) for item in items]))
    if comparison.differences:
        print(f"\n{markdown_table(DIFFERENCE_HEADER, map(difference_row, comparison.differences))}")
        print(f"\n{method(comparison.differences)}")
    if options.plan and any(difference.spread > 0 for difference in comparison.differences):
        print(f"\n{markdown_table(*plan(comparison.differences))}")
    for item in items:
        for line in _duplicates(client, item.parent):
            print(f"{item.name}: {line}")
    for line in comparison.remarks:
        print(line)
    curve, curves = curves_of(client, comparison)
    with atomic_write(figure) as path:
        drawing = plot_comparison(comparison.values, comparison.summaries, curves, metric, curve)
        drawing.savefig(path, format=figure.suffix[1:], dpi=110)
    print(f"\ndrawn in {figure}")
    return 0


def _duplicates(client: MlflowClient, parent: Run) -> list[str]:
    finished = queries.children(client, parent, "attributes.status = 'FINISHED'")
    seeds = sorted(map(queries.seed_of, finished))
    return [f"seed {seed} finished {n} times; only the first counts" for seed, n in Counter(seeds).items() if n > 1]
