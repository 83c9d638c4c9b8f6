"""Where the runs are kept: `mlflow.db` and `mlruns/` in the current directory, or the server of MLFLOW_TRACKING_URI.

Beside the database, or here, `checkpoints/`: the last checkpoint of each unfinished run, and locks of those who train.
"""

import logging
import os
import re
import sqlite3
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests import RequestException

from cifar_lab.config import UserError, disk_trouble
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
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}  # default: 7 and 120 s


def connect(make: bool = False) -> MlflowClient:
    """Client of MLFLOW_TRACKING_URI, or of `mlflow.db` here, which is made if it is not there and `make` is set.

    Raises UserError if it is not there or can't be opened, or if its artifacts are not where it says (see relocate).
    """
    client = _open(make)
    if old := _moved_from(client):
        raise UserError(f"this folder was {old[0].parent} when its runs were made; make relocate lets them follow")
    return client


def _open(make: bool = False) -> MlflowClient:
    database = _database()
    if is_local() and not make and not database.exists():
        raise UserError(f"no {DATABASE} here; run make experiment first")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # no tracebacks beside what it raises
    uri = _uri()
    mlflow.set_tracking_uri(uri)
    try:
        if is_local():
            with planning():  # MLflow's own making of a database fails if two do it at once
                if not database.exists():
                    with staged(database) as path:
                        MlflowClient(f"{SQLITE}{path}").search_experiments()
        client = MlflowClient(uri)
        with impatient():
            client.search_experiments(max_results=1)
    except UserError:
        raise
    except Exception as error:  # of MLflow, of its database driver or of its HTTP client
        raise UserError(f"cannot open the runs: {explain(error) or _first_line(error)}") from None
    return client


def is_local() -> bool:
    """Whether the runs are in a database of this machine, so that nobody on another one trains any of them."""
    return _uri().startswith(SQLITE)


def address() -> str:
    """Where the runs are, without user and password."""
    return _without_user(_uri())


def _uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{DATABASE.resolve()}"


def _without_user(text: str) -> str:
    return re.sub("//[^/@ ]*@", "//", text)


def _database() -> Path:
    return Path(_uri().removeprefix(SQLITE)).resolve()


def home() -> Path:
    """The folder of the database, for all who use it the same; where runs are on a server, the current one."""
    return _database().parent if is_local() else Path.cwd()


def _moved_from(client: MlflowClient) -> list[Path]:
    """The `mlruns` folders that the database names and that are not beside it: its folder was moved or copied."""
    if not is_local():
        return []
    locations = [Path(found.artifact_location) for found in client.search_experiments() if found.experiment_id != "0"]
    roots = {path.parent for path in locations if path.is_absolute() and path.parent.name == ARTIFACTS.name}
    return sorted(roots - {home() / ARTIFACTS})


def relocate() -> str:
    """After the folder was moved or copied, make the artifact paths in its database follow; says what was done."""
    client = _open()
    if not is_local():
        return f"nothing to do: the runs are on the server {address()}"
    new, moved = str(home() / ARTIFACTS), [str(old) for old in _moved_from(client)]
    try:
        with closing(sqlite3.connect(_database(), timeout=20)) as connection, connection:
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
        f"artifacts of {', '.join(moved)} are now found in {new}" if moved else f"nothing to do: artifacts are in {new}"
    )


def explain(error: BaseException) -> str:
    """One line for what the user's disk or tracking server, not this program, did wrong; "" for another error."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MlflowException | RequestException):
        if re.search("failed with (exception|timeout)|Max retries", str(error)):
            return f"no answer from the tracking server {address()}"
        if "error code 401" in str(error):
            return f"{address()} does not know you; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        return f"{address()}: {_first_line(error)}"
    return disk_trouble(error)


def _first_line(error: BaseException) -> str:
    text = re.search("[(]sqlite3.*", str(error)) or re.search(".+", str(error))
    return _without_user(text.group()) if text else type(error).__name__


@contextmanager
def impatient() -> Iterator[None]:
    """Within it, a server that does not answer is given up after seconds."""
    before = {name: os.environ.get(name) for name in IMPATIENT}
    os.environ.update(IMPATIENT)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def claim(tags: Mapping[str, str]) -> FileLock:
    """To be held by the process that trains the run with these tags; free as soon as that process ends, however."""
    trial = f"-trial{tags['trial']}" if "trial" in tags else ""  # of a sweep, whose trials may be the same
    return _lock(f"{tags['config_hash']}-seed{tags['seed']}{trial}")


def claim_study(name: str) -> FileLock:
    """To be held by the process that runs the sweep of this name."""
    return _lock(name)


def claim_cluster() -> FileLock:
    """To be held by the process that has this folder's runs trained on a cluster."""
    return _lock("cluster")


def folder_id() -> str:
    """What marks this folder's runs, so that it knows them again on a server that others use too."""
    file = home() / CHECKPOINTS / "folder_id"
    with _lock("folder"):
        if not file.exists():
            file.write_text(uuid.uuid4().hex)
    return file.read_text()


def _lock(name: str) -> FileLock:
    folder = home() / CHECKPOINTS
    folder.mkdir(exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def checkpoint_of(run_id: str) -> Path:
    """Where an unfinished run has its last checkpoint."""
    return home() / CHECKPOINTS / run_id / "last.ckpt"


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is what was written: torch's files are zip archives, which hold a CRC-32 of every record."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError):
        return False


def planning() -> FileLock:
    """To be held while the database, experiments, parent runs or the champion are looked up and made or changed."""
    return FileLock(home() / f"{DATABASE}.lock")


def open_experiment(client: MlflowClient, name: str) -> str:
    """Id of the MLflow experiment that holds all runs on one data set. Raises UserError if it was deleted."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = str(home() / ARTIFACTS / name) if is_local() else None
        return client.create_experiment(name, artifact_location=location)
    if experiment.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise UserError(f"the MLflow experiment {name} was deleted; restore it: {restore}")
    return experiment.experiment_id
