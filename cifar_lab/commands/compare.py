"""Compare experiments: which is higher, by how much, and whether the difference is significant."""

import argparse
from collections import Counter

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab.analysis.figures import plot_comparison
from cifar_lab.analysis.tables import (
    DIFFERENCE_HEADER,
    SUMMARY_HEADER,
    difference_row,
    markdown_table,
    method,
    summary_row,
    unit,
)
from cifar_lab.config import experiment_name
from cifar_lab.files import atomic_write
from cifar_lab.tracking import queries, store
from cifar_lab.tracking.lookup import curves_of, load_sets, remarks, values_of


def run(options: argparse.Namespace) -> int:
    """Print and draw a metric of each experiment, and the difference of each pair. Raises UserError."""
    metric, figure = options.metric, options.figure
    client = store.connect()
    sets = load_sets(client, [*map(experiment_name, options.experiments)], metric)
    print(f"{metric}{unit(metric)}; images {sets.samples[0].data}, split {sets.samples[0].split}\n")
    print(markdown_table(SUMMARY_HEADER, map(summary_row, sets.samples, sets.summaries)))
    if sets.differences:
        print(f"\n{markdown_table(DIFFERENCE_HEADER, map(difference_row, sets.differences))}")
        print(f"\n{method(sets.differences)}")
    for sample, parent in zip(sets.samples, sets.parents, strict=True):
        for line in _duplicates(client, parent):
            print(f"{sample.name}: {line}")
    for line in remarks(sets):
        print(line)
    curve, curves = curves_of(client, sets)
    with atomic_write(figure) as path:
        plot_comparison(values_of(sets), sets.summaries, curves, metric, curve).savefig(
            path, format=figure.suffix[1:], dpi=110
        )
    print(f"\ndrawn in {figure}")
    return 0


def _duplicates(client: MlflowClient, parent: Run) -> list[str]:
    finished = queries.children(client, parent, "attributes.status = 'FINISHED'")
    seeds = sorted(map(queries.seed_of, finished))
    return [f"seed {seed} finished {n} times; only the first counts" for seed, n in Counter(seeds).items() if n > 1]
