"""Where runs, artifacts and checkpoints are."""

import os
import re
from pathlib import Path

DATABASE = Path("mlflow.db")
ARTIFACTS = Path("mlruns")
CHECKPOINTS = Path("checkpoints")
SQLITE = "sqlite:///"


def is_local() -> bool:
    """Whether the runs are in a database of this machine, so that nobody on another one trains any of them."""
    return store_uri().startswith(SQLITE)


def address() -> str:
    """Where the runs are, without user and password."""
    return without_user(store_uri())


def store_uri() -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{DATABASE.resolve()}"
    return uri.partition("?")[0] if uri.startswith(SQLITE) and os.environ.get("MLFLOW_TRACKING_URI") else uri


def without_user(text: str) -> str:
    return re.sub("//[^/@ ]*@", "//", text)


def database() -> Path:
    return Path(store_uri().removeprefix(SQLITE)).resolve()


def home() -> Path:
    """The folder of the database, for all who use it the same; where runs are on a server, the current one."""
    return database().parent if is_local() else Path.cwd()


def checkpoint_of(run_id: str) -> Path:
    """Where an unfinished run has its last checkpoint."""
    return home() / CHECKPOINTS / run_id / "last.ckpt"
