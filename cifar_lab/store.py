"""Where the runs are kept: `mlflow.db` and `mlruns/` in the current directory, or the server of MLFLOW_TRACKING_URI.

Beside the database, or here, `checkpoints/`: the last checkpoint of each unfinished run, and locks of those who train.
"""

import hashlib
import json
import logging
import os
import platform
import re
import sqlite3
import sys
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

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
DATASET = "dataset"  # tag of MLflow experiments and of registered models
SQLITE = "sqlite:///"
ARTIFACT_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
OUTSIDE = ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED", "TEMPORARILY_UNAVAILABLE")  # of MLflow
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
    if is_local():
        if not make and not database.exists():
            raise UserError(f"no {DATABASE} here; run make experiment first")
        if found := sorted(set("%?") & set(str(database))):
            raise UserError(f"MLflow can't keep runs in a folder with {found[0]} in its path: {home()}")
        for folder in home() / ARTIFACTS, home() / CHECKPOINTS:
            if os.path.lexists(folder) and not folder.is_dir():
                raise UserError(f"{folder} is no folder, but runs are to be kept there; move it away")
    os.environ.pop("MLFLOW_REGISTRY_URI", None)  # models are registered where the runs are
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # not its chatter in the middle of our lines
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # no tracebacks beside what it raises
    uri = _uri()
    mlflow.set_tracking_uri(uri)
    try:
        if is_local() and not database.exists():
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
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{DATABASE.resolve()}"
    return uri.partition("?")[0] if uri.startswith(SQLITE) and os.environ.get("MLFLOW_TRACKING_URI") else uri


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
    outside = isinstance(error, MlflowException) and (
        error.error_code in OUTSIDE or re.search("API request to|[(](sqlite3|psycopg)", str(error))
    )
    if outside or isinstance(error, RequestException):
        if re.search("failed with (exception|timeout)|Max retries", str(error)):
            return f"no answer from the tracking server {address()}{_proxy()}"
        if "error code 401" in str(error):
            return f"{address()} does not know you; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        return f"{address()}: {_first_line(error)}"
    return disk_trouble(error)


def _proxy() -> str:
    """That a proxy is asked for the server, which may not know a local one."""
    server = urlsplit(_uri())
    proxy = getproxies().get(server.scheme)
    if not proxy or proxy_bypass(server.hostname or ""):
        return ""
    return f", asked through the proxy {_without_user(proxy)}; NO_PROXY={server.hostname} goes around it"


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


@contextmanager
def claimed(tags: Mapping[str, str], timeout: float = 0) -> Iterator[None]:
    """Held by the process that trains the run with these tags; free as soon as that process ends, however.

    Raises filelock.Timeout if another process has it.
    """
    trial = f"-trial{tags['trial']}" if "trial" in tags else ""  # of a sweep, whose trials may be the same
    lock = _lock(f"{tags['config_hash']}-seed{tags['seed']}{trial}")
    with lock.acquire(timeout):
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)  # who waits for it finds it gone, and makes another


def claim_study(name: str) -> FileLock:
    """To be held by the process that runs the sweep of this name."""
    return _lock(hashlib.sha256(name.encode()).hexdigest()[:16])


def claim_cluster() -> FileLock:
    """To be held by the process that has this folder's runs trained on a cluster."""
    return _lock("cluster")


def folder_id() -> str:
    """What marks this folder's runs, so that it knows them again on a server that others use too.

    A folder that was moved stays the same; a copy is another one, as is one that comes from another machine.
    """
    file = home() / CHECKPOINTS / "folder_id"
    here = {"place": str(file), "machine": platform.node()}
    with _lock("folder"):
        known = _read_folder_id(file)
        copied = known.get("machine", here["machine"]) != here["machine"] or (
            known.get("place", str(file)) != str(file)
            and _read_folder_id(Path(known["place"])).get("id") == known.get("id")
        )
        if copied or not re.fullmatch("[0-9a-f]{32}", known.get("id", "")):
            known = {"id": uuid.uuid4().hex}
        if known != (now := {"id": known["id"], **here}):
            with staged(file) as path:
                path.write_text(json.dumps(now))
    return known["id"]


def _read_folder_id(file: Path) -> dict[str, str]:
    """What folder_id wrote; nothing where that is gone or damaged."""
    try:
        text = file.read_text()
    except (OSError, ValueError):
        return {}
    try:
        return {key: str(value) for key, value in json.loads(text).items()}
    except (ValueError, AttributeError):
        return {"id": text.strip()}  # all that earlier versions wrote


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
    """Id of the MLflow experiment that holds all runs on the data set `name`, also if it was renamed since.

    Raises UserError if it was deleted.
    """
    for experiment in client.search_experiments():
        if experiment.tags.get(DATASET) == name:
            return experiment.experiment_id
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
    """Of the data set whose runs an MLflow experiment holds: cifar10, cifar10-jpeg and so on."""
    experiment = client.get_experiment(experiment_id)
    return experiment.tags.get(DATASET, experiment.name)
