"""The store of all runs: `mlflow.db` and `mlruns/` in the current folder, or the server of MLFLOW_TRACKING_URI.

`checkpoints/` beside the database has the last checkpoints of unfinished runs, and locks. With a server, it is in the
current folder.
"""

import logging
import os
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests import RequestException

from cifar_lab.errors import UserError, disk_trouble, first_line
from cifar_lab.files import atomic_write
from cifar_lab.tracking.locks import store_lock
from cifar_lab.tracking.places import (
    ARTIFACTS,
    CHECKPOINTS,
    DATABASE,
    SQLITE,
    address,
    database,
    home,
    is_local,
    store_uri,
    without_user,
)

DATASET = "dataset"  # tag of MLflow experiments and of registered models
ARTIFACT_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
OUTSIDE = ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED", "TEMPORARILY_UNAVAILABLE")  # of MLflow
SHORT_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}  # default: 7 and 120 s


def connect(make: bool = False) -> MlflowClient:
    """Client of MLFLOW_TRACKING_URI, or of `mlflow.db` in the current folder, created if `make` is set.

    Raises UserError if it is missing, can't be opened, or names artifacts in another folder (see relocate).
    """
    client = _open(make)
    if old := _moved_from(client):
        raise UserError(f"the runs were made in {old[0].parent}, before this folder was moved; run make relocate")
    return client


def _open(make: bool = False) -> MlflowClient:
    file = database()
    if is_local():
        if not make and not file.exists():
            raise UserError(f"no {DATABASE} here; run make experiment first")
        if found := sorted(set("%?") & set(str(file))):
            raise UserError(f"MLflow can't keep runs in a folder with {found[0]} in its path: {home()}")
        for folder in home() / ARTIFACTS, home() / CHECKPOINTS:
            if os.path.lexists(folder) and not folder.is_dir():
                raise UserError(f"{folder} is not a folder, but runs are stored there; move it away")
    os.environ.pop("MLFLOW_REGISTRY_URI", None)  # models are registered where the runs are
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs the tracebacks of what it raises
    uri = store_uri()
    mlflow.set_tracking_uri(uri)
    try:
        if is_local() and not file.exists():
            with store_lock():  # MLflow fails if two processes create the database at the same time
                if not file.exists():
                    with atomic_write(file) as path:
                        MlflowClient(f"{SQLITE}{path}").search_experiments()
        client = MlflowClient(uri)
        with short_timeouts():
            client.search_experiments(max_results=1)
    except UserError:
        raise
    except Exception as error:  # from MLflow, its database driver or its HTTP client
        raise UserError(f"cannot open the runs: {explain(error) or _first_line(error)}") from None
    return client


def _moved_from(client: MlflowClient) -> list[Path]:
    """The `mlruns` folders that the database names but that are not beside it: its folder was moved or copied."""
    if not is_local():
        return []
    locations = [Path(found.artifact_location) for found in client.search_experiments() if found.experiment_id != "0"]
    roots = {path.parent for path in locations if path.is_absolute() and path.parent.name == ARTIFACTS.name}
    return sorted(roots - {home() / ARTIFACTS})


def relocate() -> str:
    """Correct the artifact paths in the database after its folder was moved or copied; returns what was done."""
    client = _open()
    if not is_local():
        return f"nothing to do: the runs are on the server {address()}"
    new, moved = str(home() / ARTIFACTS), [str(old) for old in _moved_from(client)]
    try:
        with closing(sqlite3.connect(database(), timeout=20)) as connection, connection:
            for old in moved:
                for table, column in ARTIFACT_COLUMNS:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )
    except sqlite3.Error as error:
        raise UserError(f"{DATABASE}: {error}; nothing was changed") from None
    return (
        f"artifacts from {', '.join(moved)} are now found in {new}"
        if moved
        else f"nothing to do: artifacts are in {new}"
    )


def explain(error: BaseException) -> str:
    """One line for an error of the user's disk or tracking server; "" for any other error."""
    if isinstance(error, UserError):
        return str(error)
    outside = isinstance(error, MlflowException) and (
        error.error_code in OUTSIDE or re.search("API request to|[(](sqlite3|psycopg)", str(error))
    )
    if outside or isinstance(error, RequestException):
        if re.search("failed with (exception|timeout)|Max retries", str(error)):
            return f"no answer from the tracking server {address()}{_proxy()}"
        if "error code 401" in str(error):
            return f"{address()} refused the login; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        return f"{address()}: {_first_line(error)}"
    return disk_trouble(error)


def _proxy() -> str:
    """A hint that the server is accessed through a proxy, which may not reach a local one; "" without a proxy."""
    server = urlsplit(store_uri())
    proxy = getproxies().get(server.scheme)
    if not proxy or proxy_bypass(server.hostname or ""):
        return ""
    return f" through the proxy {without_user(proxy)}; NO_PROXY={server.hostname} bypasses it"


def _first_line(error: BaseException) -> str:
    text = re.search("[(]sqlite3.*", str(error))
    return without_user(text.group() if text else first_line(error))


@contextmanager
def short_timeouts() -> Iterator[None]:
    """Wait seconds, not minutes, for a tracking server that does not answer."""
    before = {name: os.environ.get(name) for name in SHORT_TIMEOUTS}
    os.environ.update(SHORT_TIMEOUTS)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def open_experiment(client: MlflowClient, name: str) -> str:
    """Id of the MLflow experiment with all runs on the data set `name`, even if it was renamed; created if missing.

    Raises UserError if it was deleted.
    """
    for found in client.search_experiments():
        if found.tags.get(DATASET) == name:
            return found.experiment_id
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = str(home() / ARTIFACTS / name) if is_local() else None
        return client.create_experiment(name, artifact_location=location, tags={DATASET: name})
    if experiment.lifecycle_stage == "deleted":
        restore = f"{sys.executable} -m mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise UserError(f"the MLflow experiment {name} was deleted; restore it: {restore}")
    client.set_experiment_tag(experiment.experiment_id, DATASET, name)
    return experiment.experiment_id


def dataset_name(client: MlflowClient, experiment_id: str) -> str:
    """The name of an MLflow experiment's data set: cifar10, cifar10-jpeg and so on."""
    experiment = client.get_experiment(experiment_id)
    return experiment.tags.get(DATASET, experiment.name)
