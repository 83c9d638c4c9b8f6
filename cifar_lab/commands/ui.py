"""MLflow's UI, started lean, and saved views of its runs table that show what matters here."""

import argparse
import os
import socket
import sys

from mlflow.tracking import MlflowClient

from cifar_lab.errors import UserError
from cifar_lab.tracking.places import address, is_local
from cifar_lab.tracking.store import connect
from cifar_lab.tracking.views import VIEWS

PORT = 5000


def view_addresses(client: MlflowClient, experiment_id: str, port: int = PORT) -> list[str]:
    """A line with the address of each saved view of an MLflow experiment."""
    name = client.get_experiment(experiment_id).name
    page = f"{server(port)}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey="
    return [f"{name} {view}: {page}{view}" for view in VIEWS]


def server(port: int = PORT) -> str:
    """Address of the UI: the tracking server's, or the local one's."""
    return f"http://127.0.0.1:{port}" if is_local() else address().rstrip("/")


def run(options: argparse.Namespace) -> int:
    """Print the addresses of the saved views, then become MLflow's UI, lean and on 127.0.0.1.

    Only prints them where the runs are on a server. Raises UserError.
    """
    client, port = connect(), options.port
    for found in client.search_experiments(filter_string="name != 'Default'"):
        print("\n".join(view_addresses(client, found.experiment_id, port)), flush=True)
    if client.tracking_uri.startswith("http"):
        return 0
    check_port(port, f"make ui PORT={port + 1}")
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # its job runners are idle here, and 1.3 GB
    command = ["-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, *command, "--backend-store-uri", client.tracking_uri])


def check_port(port: int, other: str) -> None:
    """Raise UserError, which proposes the command `other`, if something listens on `port` of 127.0.0.1."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"port {port} is in use; give another, such as {other}")
