"""MLflow's UI, started lean, and saved views of its runs table that show what matters here."""

import base64
import json
import os
import socket
import sys
import time
import zlib

from mlflow.tracking import MlflowClient

from cifar_lab.config import UserError
from cifar_lab.store import address, connect, is_local

PORT = 5000
VIEWS = ("leaderboard", "averages")


def save_views(client: MlflowClient, experiment_id: str) -> None:
    """Store the VIEWS of the runs table in the experiment: each run by val/acc, and averages over seeds.

    The format is MLflow 3.17's own and undocumented; another version shows its default columns instead.
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


def view_addresses(client: MlflowClient, experiment_id: str, port: int = PORT) -> list[str]:
    """A line with the address of each saved view of an MLflow experiment."""
    name = client.get_experiment(experiment_id).name
    page = f"{server(port)}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey="
    return [f"{name} {view}: {page}{view}" for view in VIEWS]


def server(port: int = PORT) -> str:
    """Address of the UI: the tracking server's, or the local one's."""
    return f"http://127.0.0.1:{port}" if is_local() else address().rstrip("/")


def start_ui(port: int) -> None:
    """Print the addresses of the saved views, then become MLflow's UI, lean and on 127.0.0.1.

    Only prints them where the runs are on a server. Raises UserError.
    """
    client = connect()
    for found in client.search_experiments(filter_string="name != 'Default'"):
        print("\n".join(view_addresses(client, found.experiment_id, port)), flush=True)
    if client.tracking_uri.startswith("http"):
        return
    check_port(port, f"make ui PORT={port + 1}")
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # its job runners are idle here, and 1.3 GB
    command = ["-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, *command, "--backend-store-uri", client.tracking_uri])


def check_port(port: int, other: str) -> None:
    """Raise UserError, which proposes the command `other`, if something listens on `port` of 127.0.0.1."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"port {port} is in use; give another, such as {other}")
