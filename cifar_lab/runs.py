"""What is read back from MLflow: runs, their histories, which are finished, which is best."""

from collections.abc import Iterator

import numpy as np
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

PAGE = 1000


def _search(
    client: MlflowClient, experiment_id: str, condition: str, order_by: list[str] | None = None
) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs([experiment_id], condition, max_results=PAGE, order_by=order_by, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def find_parent(client: MlflowClient, experiment_id: str, config_hash: str) -> Run | None:
    """The run that holds the repeats of a config, if it was ever started."""
    condition = f"tags.kind = 'repeats' and tags.config_hash = '{config_hash}'"
    return next(_search(client, experiment_id, condition, ["attributes.start_time ASC"]), None)


def children(client: MlflowClient, parent: Run) -> list[Run]:
    """The runs under `parent`, by their start."""
    condition = f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    return list(_search(client, parent.info.experiment_id, condition, ["attributes.start_time ASC"]))


def finished_runs(client: MlflowClient, parent: Run) -> list[Run]:
    """The finished runs under `parent`, by seed; of several of one seed the first."""
    by_seed: dict[int, Run] = {}
    for run in children(client, parent):
        if run.info.status == "FINISHED":
            by_seed.setdefault(int(run.data.tags["seed"]), run)
    return [by_seed[seed] for seed in sorted(by_seed)]


def unfinished_runs(client: MlflowClient, parent: Run) -> dict[int, Run]:
    """By seed the runs under `parent` that are not finished; of several of one seed the last."""
    return {int(run.data.tags["seed"]): run for run in children(client, parent) if run.info.status != "FINISHED"}


def running_runs(client: MlflowClient, experiment_id: str) -> list[Run]:
    """The runs, parents and reproductions that are marked as running."""
    return list(_search(client, experiment_id, "attributes.status = 'RUNNING'", ["attributes.start_time ASC"]))


def best_run(client: MlflowClient, experiment_id: str, data_digest: str, split_digest: str) -> Run | None:
    """The finished run with the highest val/acc, then lower val/loss, then earlier start, on the same images."""
    same = f"tags.data_digest = '{data_digest}' and tags.split_digest = '{split_digest}'"
    condition = f"tags.kind = 'run' and attributes.status = 'FINISHED' and {same} and metrics.`val/acc` <= 1"
    order = ["metrics.`val/acc` DESC", "metrics.`val/loss` ASC", "attributes.start_time ASC"]
    return next(_search(client, experiment_id, condition, order), None)


def history(client: MlflowClient, run_id: str, metric: str) -> np.ndarray:
    """A metric's values by completed epoch, (epochs,); of a step logged twice, the later value."""
    by_step = {
        point.step: point.value
        for point in sorted(client.get_metric_history(run_id, metric), key=lambda point: point.timestamp)
    }
    return np.array([by_step[step] for step in sorted(by_step)])


def curves(client: MlflowClient, run_id: str) -> dict[str, dict[str, np.ndarray]]:
    """`curves["train"]["loss"]` and so on, each (epochs,)."""
    return {
        stage: {metric: history(client, run_id, f"{stage}/{metric}") for metric in ("loss", "acc")}
        for stage in ("train", "val")
    }
