"""Start MLflow's UI and print the addresses of its saved views."""

import argparse
import os
import socket
import sys

from cifar_lab.errors import UserError
from cifar_lab.tracking.places import address, is_local
from cifar_lab.tracking.store import connect
from cifar_lab.tracking.views import VIEWS


def run(options: argparse.Namespace) -> int:
    """Print the addresses of the saved views; then, unless the runs are on a server, become MLflow's UI on 127.0.0.1.

    Raises UserError.
    """
    client, port = connect(), options.port
    server = f"http://127.0.0.1:{port}" if is_local() else address().rstrip("/")
    for found in client.search_experiments(filter_string="name != 'Default'"):
        page = f"{server}/#/experiments/{found.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey="
        for view in VIEWS:
            print(f"{found.name} {view}: {page}{view}", flush=True)
    if client.tracking_uri.startswith("http"):
        return 0
    check_port(port, f"make ui PORT={port + 1}")
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # its idle job runners take 1.3 GB
    command = ["-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, *command, "--backend-store-uri", client.tracking_uri])


def check_port(port: int, other: str) -> None:
    """Raises UserError, with `other` as a proposal, if `port` of 127.0.0.1 is in use."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"port {port} is in use; give another, such as {other}")
