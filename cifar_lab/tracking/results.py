"""Results of tracked experiments, to export."""

from collections.abc import Sequence

import numpy as np
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab.analysis.comparison import summarise
from cifar_lab.analysis.exports import ACCURACY, Result
from cifar_lab.errors import UserError
from cifar_lab.tracking import queries, store
from cifar_lab.tracking.lookup import find_each, sample_of

DIGITS = 12  # of a data set's digest


def load_results(client: MlflowClient, names: Sequence[str]) -> list[Result]:
    """The results of experiments by name, config hash or parent run id, or of all with finished runs.

    Raises UserError if there are none, UsageError if two names mean the same.
    """
    everything = [parent for parent in queries.all_parents(client) if queries.finished_runs(client, parent)]
    parents = find_each(client, names) if names else everything
    if not parents:
        raise UserError("no run has finished; make experiment trains some")
    return [_result(client, parent) for parent in parents]


def _result(client: MlflowClient, parent: Run) -> Result:
    finished, tags = queries.finished_runs(client, parent), parent.data.tags
    sample = sample_of(client, parent, ACCURACY, parent.info.run_name)
    found = summarise([*sample.values.values()])
    validation = [run.data.metrics["val/acc"] for run in finished if "val/acc" in run.data.metrics]
    timed = [run for run in finished if "epoch_seconds" in run.data.metrics]
    images_ci = sample.images_ci
    return Result(
        sample.name,
        store.dataset_name(client, parent.info.experiment_id),
        found.n,
        found.mean,
        found.std,
        found.ci_low,
        found.ci_high,
        *images_ci,
        sample.ensemble,
        float(np.mean(validation)) if validation else float("nan"),
        parent.data.params.get("trainer.epochs", ""),
        queries.training_seconds(client, timed),
        tags["config_hash"],
        tags["data_digest"][:DIGITS],
        tags["split_digest"],
    )
