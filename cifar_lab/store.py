"""Where the runs are kept: `mlflow.db` and `mlruns/` in the current directory, or the server of MLFLOW_TRACKING_URI."""

import logging
import os
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.tracking import MlflowClient

from cifar_lab.config import UserError
from cifar_lab.sources import staged

DATABASE = Path("mlflow.db")
ARTIFACTS = Path("mlruns")


def connect() -> MlflowClient:
    """Client of MLFLOW_TRACKING_URI, or of `mlflow.db` here, which is made if it is not there yet.

    Raises UserError if it can't be opened.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DATABASE.resolve()}"
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # not each step of making a database
    mlflow.set_tracking_uri(uri)
    try:
        if uri.startswith("sqlite:///"):
            database = Path(uri.removeprefix("sqlite:///"))
            with FileLock(f"{database}.lock"):  # MLflow's own making of a database fails if two do it at once
                if not database.exists():
                    with staged(database) as path:
                        MlflowClient(f"sqlite:///{path}").search_experiments()
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except UserError:
        raise
    except Exception as error:  # of MLflow, of its database driver or of its HTTP client
        raise UserError(f"cannot open the runs at {uri}: {str(error).partition(os.linesep)[0]}") from None
    return client


def planning() -> FileLock:
    """To be held while experiments and parent runs are looked up and, where missing, made."""
    return FileLock(f"{DATABASE}.lock")


def open_experiment(client: MlflowClient, name: str) -> str:
    """Id of the MLflow experiment that holds all runs on one data set. Raises UserError if it was deleted."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        local = client.tracking_uri.startswith("sqlite:///")
        return client.create_experiment(name, artifact_location=str((ARTIFACTS / name).resolve()) if local else None)
    if experiment.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise UserError(f"the MLflow experiment {name} was deleted; restore it: {restore}")
    return experiment.experiment_id
