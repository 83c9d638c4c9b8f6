"""What `evaluate` measures, added to runs that stay finished."""

import io
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from mlflow.entities import Metric, Run
from mlflow.tracking import MlflowClient

from cifar_lab.analysis.comparison import Summary
from cifar_lab.tracking.artifacts import downloaded, load_text, log_texts

FOLDER = "evaluate"  # of the artifacts
SCORES = "{}-scores"  # the table of summaries, by key


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
    log_texts(client, run_id, {f"{FOLDER}/{name}.csv": table for name, table in tables.items()})
    if figure:
        client.log_figure(run_id, figure, f"{FOLDER}/{key}.png")
    client.set_tag(run_id, f"{FOLDER}.{key}", title)  # last: from then on `report` shows the rest


def evaluated(run: Run) -> dict[str, str]:
    """What the run was evaluated on: titles by key."""
    return {tag.partition(".")[2]: title for tag, title in run.data.tags.items() if tag.startswith(f"{FOLDER}.")}


def load_scores(client: MlflowClient, run: Run, key: str) -> dict[tuple[str, str], Summary]:
    """Summaries over seeds by images and score. Raises UserError if the table is missing or damaged."""
    table = pd.read_csv(io.StringIO(load_text(client, run, f"{FOLDER}/{SCORES.format(key)}.csv")))
    rows = table.to_dict("records")
    return {(row.pop("images"), row.pop("score")): Summary(**row) for row in rows}


def load_heatmap(client: MlflowClient, run: Run, key: str) -> bytes:
    """The heatmap as PNG; empty if there is none, as for images without strengths."""
    path = f"{FOLDER}/{key}.png"
    if all(file.path != path for file in client.list_artifacts(run.info.run_id, FOLDER)):
        return b""
    with downloaded(client, run, path) as file:
        return file.read_bytes()
