"""Where the runs are kept: `mlflow.db` and `mlruns/` in the current directory, or the server of MLFLOW_TRACKING_URI.

Beside them `checkpoints/`: of runs that are not finished the last checkpoint, and the locks of those who train.
"""

import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.tracking import MlflowClient

from cifar_lab.config import UserError
from cifar_lab.sources import staged

DATABASE = Path("mlflow.db")
ARTIFACTS = Path("mlruns")
CHECKPOINTS = Path("checkpoints")
SQLITE = "sqlite:///"
ARTIFACT_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"  # MLflow's own setting; its default bridges four minutes


def connect(make: bool = False) -> MlflowClient:
    """Client of MLFLOW_TRACKING_URI, or of `mlflow.db` here, which is made if it is not there and `make` is set.

    Raises UserError if it is not there or can't be opened, or if its artifacts are not where it says (see relocate).
    """
    client = _open(make)
    if old := _moved_from(client):
        raise UserError(f"this folder was {old.parent} when its runs were made; make relocate lets them follow")
    return client


def _open(make: bool = False) -> MlflowClient:
    if is_local() and not make and not _database().exists():
        raise UserError(f"no {DATABASE} here; run make experiment first")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = _uri()
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # no tracebacks beside what it raises
    mlflow.set_tracking_uri(uri)
    try:
        if is_local():
            database = _database()
            with FileLock(f"{database}.lock"):  # MLflow's own making of a database fails if two do it at once
                if not database.exists():
                    with staged(database) as path:
                        MlflowClient(f"{SQLITE}{path}").search_experiments()
        client = MlflowClient(uri)
        with impatient():
            client.search_experiments(max_results=1)
    except UserError:
        raise
    except Exception as error:  # of MLflow, of its database driver or of its HTTP client
        raise UserError(f"cannot open the runs: {trouble(error)}") from None
    return client


def is_local() -> bool:
    """Whether the runs are in a database of this machine, so that nobody on another one trains any of them."""
    return _uri().startswith(SQLITE)


def _uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{DATABASE.resolve()}"


def _database() -> Path:
    return Path(_uri().removeprefix(SQLITE)).resolve()


def _artifacts() -> Path:
    return _database().parent / ARTIFACTS


def _moved_from(client: MlflowClient) -> Path | None:
    """The `mlruns` that the database names, if that is not the one beside it: its folder was moved or copied."""
    if is_local():
        for experiment in client.search_experiments():
            location = Path(experiment.artifact_location)
            if location.parts[-2:] == (ARTIFACTS.name, experiment.name) and location.parent != _artifacts():
                return location.parent
    return None


def relocate() -> str:
    """After the folder was moved or copied, make the artifact paths in its database follow; says what was done."""
    client = _open()
    if not is_local():
        return f"nothing to do: the runs are on the server {client.tracking_uri}"
    new = str(_artifacts())
    done = f"nothing to do: the artifacts are in {new}"
    while old := _moved_from(client):
        with closing(sqlite3.connect(_database(), timeout=20)) as connection, connection:
            for table, column in ARTIFACT_COLUMNS:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (new, len(str(old)) + 1, str(old), len(str(old)) + 1, f"{old}/"),
                )
        done = f"artifacts of {old} are now found in {new}"
    return done


def trouble(error: Exception) -> str:
    """One line for what MLflow, or what it stands on, could not do."""
    if "API request to" in str(error):
        return f"no answer from the tracking server {_uri()}"
    return f"{_uri()}: {(re.search(r'[(]sqlite3.*', str(error)) or re.match('.*', str(error))).group()}"


@contextmanager
def impatient() -> Iterator[None]:
    """Within it, a server that does not answer is given up after seconds."""
    before = os.environ.get(RETRIES)
    os.environ[RETRIES] = "2"
    try:
        yield
    finally:
        os.environ.pop(RETRIES)
        if before is not None:
            os.environ[RETRIES] = before


def claim(tags: Mapping[str, str]) -> FileLock:
    """To be held by the process that trains the run with these tags; free as soon as that process ends, however."""
    CHECKPOINTS.mkdir(exist_ok=True)
    return FileLock(CHECKPOINTS / f"{tags['config_hash']}-seed{tags['seed']}.lock")


def checkpoint_of(run_id: str) -> Path:
    """Where an unfinished run has its last checkpoint."""
    return CHECKPOINTS / run_id / "last.ckpt"


def planning() -> FileLock:
    """To be held while experiments and parent runs are looked up and, where missing, made."""
    return FileLock(f"{DATABASE}.lock")


def open_experiment(client: MlflowClient, name: str) -> str:
    """Id of the MLflow experiment that holds all runs on one data set. Raises UserError if it was deleted."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = str(_artifacts() / name) if is_local() else None
        return client.create_experiment(name, artifact_location=location)
    if experiment.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise UserError(f"the MLflow experiment {name} was deleted; restore it: {restore}")
    return experiment.experiment_id
