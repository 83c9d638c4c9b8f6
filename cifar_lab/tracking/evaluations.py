"""What `evaluate` measures, added to runs that stay finished."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from mlflow.entities import Metric, Run
from mlflow.tracking import MlflowClient

from cifar_lab.tracking.artifacts import log_texts

FOLDER = "evaluate"  # of the artifacts


def log_values(client: MlflowClient, run: Run, values: Mapping[str, float], beside: str) -> None:
    """Log metrics with the time and step of the last point of the metric `beside`.

    A value that is already there is not logged again; one that differs gets the later time, and so replaces it.
    """
    run_id = run.info.run_id
    known = client.get_run(run_id).data.metrics
    last = max(client.get_metric_history(run_id, beside), key=lambda point: (point.step, point.timestamp))
    points = []
    for name, value in values.items():
        if name in known and known[name] == value:
            continue
        times = [point.timestamp + 1 for point in client.get_metric_history(run_id, name)] if name in known else []
        points.append(Metric(name, value, max([last.timestamp, *times]), last.step))
    client.log_batch(run_id, metrics=points)


def log_artifacts(
    client: MlflowClient, run: Run, key: str, title: str, tables: Mapping[str, str], figure: Figure | None
) -> None:
    """Log CSV tables by name and a heatmap named `key`; a tag says what was evaluated."""
    run_id = run.info.run_id
    client.set_tag(run_id, f"{FOLDER}.{key}", title)
    log_texts(client, run_id, {f"{FOLDER}/{name}.csv": table for name, table in tables.items()})
    if figure:
        client.log_figure(run_id, figure, f"{FOLDER}/{key}.png")
