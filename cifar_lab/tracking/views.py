"""Saved views of the runs table in MLflow's UI."""

import base64
import json
import time
import zlib

from mlflow.tracking import MlflowClient

VIEWS = ("leaderboard", "averages")


def save_views(client: MlflowClient, experiment_id: str) -> None:
    """Save the VIEWS in an MLflow experiment: a leaderboard by val/acc, and averages over seeds.

    The format is internal to MLflow 3.17; another version shows its default columns instead.
    """
    columns = ["metrics.`val/acc`", "metrics.`test/acc`", "tags.`experiment`", "tags.`seed`"]
    keys = [{"mode": "tag", "groupByData": tag} for tag in ("experiment", "config_hash")]
    average = {"aggregateFunction": "average", "groupByKeys": keys}
    for name, group in zip(VIEWS, (None, average), strict=True):
        state = {
            "searchFilter": "tags.kind = 'run'",
            "orderByKey": "metrics.`val/acc`",
            "orderByAsc": False,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": columns,
            "columnOrder": [],
            "columnWidths": {},
            "runsHiddenMode": "FIRST_10_RUNS",
            "viewMaximized": False,
            "runListHidden": False,
            "isAccordionReordered": False,
            "useGroupedValuesInCharts": True,
            "hideEmptyCharts": True,
            "groupBy": group,
            "groupsExpanded": {},
            "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        }
        packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
        now = int(1000 * time.time())
        view = {"name": name.capitalize(), "createdAt": now, "updatedAt": now, "state": packed}
        client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{name}", json.dumps(view))
