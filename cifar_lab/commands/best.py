"""The best run of each data set and split, by validation accuracy, and the reason."""

import argparse
from collections.abc import Sequence

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab.analysis.uncertainty import LEVEL, mcnemar
from cifar_lab.errors import UserError
from cifar_lab.tracking import queries, store, summaries
from cifar_lab.tracking.artifacts import text_digest


def run(options: argparse.Namespace) -> int:
    """Print the best run of every data set and split; the test accuracy is shown but not used. Raises UserError."""
    client = store.connect()
    found = False
    for experiment in client.search_experiments(order_by=["name ASC"]):
        for images, split in queries.splits(client, experiment.experiment_id):
            found = True
            if split.startswith("varied"):
                print(f"{experiment.name}, split {split}: each seed has validation images of its own")
                continue
            ranking = queries.ranked_runs(client, experiment.experiment_id, images, split)
            if not ranking:
                print(f"{experiment.name}, split {split}: no images held out, so there is nothing to choose by")
                continue
            print(f"{experiment.name}, split {split}: {_name(ranking[0])}")
            print(f"  {_reason(client, ranking)}")
            print(f"  test/acc {ranking[0].data.metrics['test/acc']:.2%}, not used to choose")
    if not found:
        raise UserError("no run has finished; make experiment trains some")
    return 0


def _name(run: Run) -> str:
    return f"{run.info.run_name} ({run.info.run_id})"


def _chance(client: MlflowClient, first: Run, second: Run) -> str:
    """Whether other validation images might have given another order; "" for runs without predictions."""
    path = summaries.PREDICTIONS.format("val")
    if not (text_digest(first, path) and text_digest(second, path)):
        return ""
    (one, labels), (other, _) = (summaries.load_predictions(client, run, "val") for run in (first, second))
    p = mcnemar(one.argmax(1) == labels, other.argmax(1) == labels)
    verdict = "more than chance" if p < LEVEL else "within what chance does"
    return f"; on {len(labels):,} validation images that lead is {verdict} (McNemar p = {p:.2g})"


def _reason(client: MlflowClient, ranking: Sequence[Run]) -> str:
    first, accuracy = ranking[0], ranking[0].data.metrics["val/acc"]
    if len(ranking) == 1:
        return f"val/acc {accuracy:.2%}, the only finished run"
    second = ranking[1]
    reason = f"val/acc {accuracy:.2%} is the highest of {len(ranking)} finished runs"
    if second.data.metrics["val/acc"] < accuracy:
        next_one = f"{reason}; next is {_name(second)} with {second.data.metrics['val/acc']:.2%}"
        return f"{next_one}{_chance(client, first, second)}"
    loss, other = (run.data.metrics["val/loss"] for run in (first, second))
    lower = f"has the lower val/loss, {loss:.4f} against {other:.4f}" if loss < other else "started earlier"
    return f"{reason}, as is that of {_name(second)}; this one {lower}"
