"""Where runs, artifacts and checkpoints are stored."""

import os
import re
from pathlib import Path

DATABASE = Path("mlflow.db")
ARTIFACTS = Path("mlruns")
CHECKPOINTS = Path("checkpoints")
STORE = "store"  # file beside a checkpoint
SQLITE = "sqlite:///"


def is_local() -> bool:
    """Whether the runs are in a database file, so that only this machine trains them."""
    return store_uri().startswith(SQLITE)


def address() -> str:
    """The tracking URI without user and password."""
    return without_user(store_uri())


def store_uri() -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{DATABASE.resolve()}"
    return uri.partition("?")[0] if uri.startswith(SQLITE) and os.environ.get("MLFLOW_TRACKING_URI") else uri


def without_user(text: str) -> str:
    return re.sub("//[^/@ ]*@", "//", text)


def database() -> Path:
    return Path(store_uri().removeprefix(SQLITE)).resolve()


def home() -> Path:
    """The folder of the database; with a tracking server, the current folder."""
    return database().parent if is_local() else Path.cwd()


def store_name() -> str:
    """What a checkpoint says about the store of its run: the file name of the database, or the server's address."""
    return database().name if is_local() else address()


def mark_store(run_id: str) -> None:
    """Note the store beside the checkpoint of a run: runs of several stores may have their checkpoints here."""
    folder = checkpoint_of(run_id).parent
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STORE).write_text(store_name())


def store_of(folder: Path) -> str:
    """The store_name beside a checkpoint; "" if there is none, as with those of earlier versions."""
    try:
        return (folder / STORE).read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def checkpoint_of(run_id: str) -> Path:
    """The last checkpoint of an unfinished run."""
    return home() / CHECKPOINTS / run_id / "last.ckpt"
