"""The best run of each data set and split, by validation accuracy, and the reason."""

import argparse
from collections.abc import Sequence

from mlflow.entities import Run

from cifar_lab.errors import UserError
from cifar_lab.tracking import queries, store


def run(options: argparse.Namespace) -> int:
    """Print the best run of every data set and split; the test accuracy is shown but not used. Raises UserError."""
    client = store.connect()
    found = False
    for experiment in client.search_experiments(order_by=["name ASC"]):
        for images, split in queries.splits(client, experiment.experiment_id):
            found = True
            ranking = queries.ranked_runs(client, experiment.experiment_id, images, split)
            if not ranking:
                print(f"{experiment.name}, split {split}: no images held out, so there is nothing to choose by")
                continue
            print(f"{experiment.name}, split {split}: {_name(ranking[0])}")
            print(f"  {_reason(ranking)}")
            print(f"  test/acc {ranking[0].data.metrics['test/acc']:.2%}, not used to choose")
    if not found:
        raise UserError("no run has finished; make experiment trains some")
    return 0


def _name(run: Run) -> str:
    return f"{run.info.run_name} ({run.info.run_id})"


def _reason(ranking: Sequence[Run]) -> str:
    first, accuracy = ranking[0], ranking[0].data.metrics["val/acc"]
    if len(ranking) == 1:
        return f"val/acc {accuracy:.2%}, the only finished run"
    second = ranking[1]
    reason = f"val/acc {accuracy:.2%} is the highest of {len(ranking)} finished runs"
    if second.data.metrics["val/acc"] < accuracy:
        return f"{reason}; next is {_name(second)} with {second.data.metrics['val/acc']:.2%}"
    loss, other = (run.data.metrics["val/loss"] for run in (first, second))
    lower = f"has the lower val/loss, {loss:.4f} against {other:.4f}" if loss < other else "started earlier"
    return f"{reason}, as is that of {_name(second)}; this one {lower}"
