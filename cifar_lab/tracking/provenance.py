"""Tags that record where a run's result comes from: code, versions, device, images, config."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import mlflow
import pytorch_lightning
import torch

from cifar_lab.config import Config
from cifar_lab.data.cache import Dataset
from cifar_lab.data.selection import split_digest
from cifar_lab.files import file_digest
from cifar_lab.tracking import locks
from cifar_lab.training.hardware import device_tags

PACKAGE = Path(__file__).resolve().parent.parent
REPOSITORY = PACKAGE.parent


def machine_tags(accelerator: str) -> dict[str, str]:
    """Code, device and versions of this process; no host names."""
    return {
        "code_digest": _code_digest(),
        "accelerator": accelerator,
        **device_tags(accelerator),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch_lightning": pytorch_lightning.__version__,
        "mlflow": mlflow.__version__,
    }


def run_tags(name: str, config: Config, dataset: Dataset, machine: Mapping[str, str]) -> dict[str, str]:
    """The tags that every run and parent has: config, images, code, folder, and `machine` (see machine_tags)."""
    lock = REPOSITORY / "requirements.lock"
    return {
        "experiment": name,
        "config_hash": config.hash(dataset.digest),
        "data_digest": dataset.digest[:32],
        "split_digest": split_digest(dataset.labels["train"], config.data),
        "lock_digest": file_digest(lock)[:16] if lock.exists() else "none",
        **_git_tags(),
        "mlflow.source.name": f"cifar_lab experiment {name}",
        "folder": locks.folder_id(),
        **machine,
    }


def _code_digest() -> str:
    files = sorted(PACKAGE.rglob("*.py"))
    listed = "".join(f"{file.relative_to(PACKAGE)} {file_digest(file)}" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def _git_tags() -> dict[str, str]:
    """Commit of this package's repository, and whether files differ from it; "unknown" without git."""
    root, commit, changes = (
        _git(*command)
        for command in (("rev-parse", "--show-toplevel"), ("rev-parse", "HEAD"), ("status", "--porcelain"))
    )
    if root is None or Path(root).resolve() != REPOSITORY or commit is None or changes is None:
        return {"git_dirty": "unknown", "mlflow.source.git.commit": "unknown"}
    return {"git_dirty": str(bool(changes)).lower(), "mlflow.source.git.commit": commit}


def _git(*command: str) -> str | None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # set in git hooks
    try:
        done = subprocess.run(["git", "-C", REPOSITORY, *command], capture_output=True, text=True, env=own)
    except OSError:
        return None  # git is not installed
    return None if done.returncode else done.stdout.strip()
