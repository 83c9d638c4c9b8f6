"""Runs, curves and comparisons as pandas tables."""

import ast
from collections.abc import Sequence
from typing import Any

import pandas as pd
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cifar_lab.errors import UserError
from cifar_lab.tracking import queries, store
from cifar_lab.tracking.lookup import Comparison

RUN = ["run_id", "dataset", "experiment", "config_hash", "seed", "status"]
POINT = ["run_id", "experiment", "config_hash", "seed", "epoch"]
PER_EPOCH = ("train/", "val/", "lr", "epoch_seconds")  # how the metrics begin that are logged after every epoch
DIFFERENCE = ["first", "second", "n", "paired", "mean", "ci_low", "ci_high", "images_ci_low", "images_ci_high"]


def runs_named(client: MlflowClient, names: Sequence[str] | None) -> list[Run]:
    """The runs of repeats, finished or not, by experiment name, config hash or parent run id; None for all.

    Raises UserError for a name that no repeats have.
    """
    if names is None:
        return queries.tracked_runs(client)
    parents: dict[str, Run] = {}
    for name in names:
        found = queries.find_parents(client, name)
        if not found:
            raise UserError(f"{name}: no runs with that name, config hash or run id")
        parents |= {parent.info.run_id: parent for parent in found}
    return [run for parent in parents.values() for run in queries.children(client, parent, "tags.kind = 'run'")]


def runs_table(client: MlflowClient, runs: Sequence[Run]) -> pd.DataFrame:
    """A row per run: RUN, then its last metrics, then its settings with their types."""
    rows: list[dict[str, Any]] = []
    metrics, settings = set[str](), set[str]()
    ids = {run.info.experiment_id for run in runs}
    names = {experiment_id: store.dataset_name(client, experiment_id) for experiment_id in ids}
    for run in runs:
        values = {name: _value(text) for name, text in run.data.params.items() if name != "seed"}
        metrics |= run.data.metrics.keys()
        settings |= values.keys()
        described = {"dataset": names[run.info.experiment_id], "status": run.info.status}
        rows.append(_identity(run) | described | run.data.metrics | values)
    return _sorted(pd.DataFrame(rows, columns=[*RUN, *sorted(metrics), *sorted(settings)]))


def curves_table(client: MlflowClient, runs: Sequence[Run]) -> pd.DataFrame:
    """A row per run and completed epoch: POINT, then a column for each metric that is logged after every epoch."""
    tables = []
    for run in runs:
        metrics = sorted(name for name in run.data.metrics if name.startswith(PER_EPOCH))
        table = pd.DataFrame({name: pd.Series(queries.history(client, run.info.run_id, name)) for name in metrics})
        if metrics:
            tables.append(table.assign(**_identity(run), epoch=table.index + 1))
    if not tables:
        return pd.DataFrame(columns=POINT)
    table = pd.concat(tables, ignore_index=True)
    return _sorted(table[[*POINT, *sorted(set(table.columns) - {*POINT})]])


def differences_table(comparison: Comparison) -> pd.DataFrame:
    """A row per pair of experiments: DIFFERENCE, p and verdict (see analysis.comparison.Difference)."""
    rows = [
        (d.first, d.second, d.n, d.paired, d.mean, *d.ci, *d.images_ci, d.p, d.verdict) for d in comparison.differences
    ]
    return pd.DataFrame(rows, columns=[*DIFFERENCE, "p", "verdict"])


def _identity(run: Run) -> dict[str, Any]:
    tags = run.data.tags
    names = {"experiment": tags["experiment"], "config_hash": tags["config_hash"]}
    return {"run_id": run.info.run_id, **names, "seed": queries.seed_of(run)}


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    by = [name for name in ("dataset", "experiment", "config_hash", "seed", "epoch") if name in table]
    return table.sort_values(by, kind="stable", ignore_index=True)


def _value(text: str) -> Any:
    """A setting as Python's value: MLflow keeps it as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
