"""Locks between processes, and the identity of this folder."""

import hashlib
import json
import platform
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from cifar_lab.files import atomic_write
from cifar_lab.tracking.places import CHECKPOINTS, DATABASE, home


@contextmanager
def claimed(tags: Mapping[str, str], timeout: float = 0) -> Iterator[None]:
    """Lock the run with these tags, for the process that trains it; the lock ends with the process.

    Raises filelock.Timeout if another process holds it.
    """
    trial = f"-trial{tags['trial']}" if "trial" in tags else ""  # two trials may have the same config
    lock = _lock(f"{tags['config_hash']}-seed{tags['seed']}{trial}")
    with lock.acquire(timeout):
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)  # a waiting process creates it again


def claim_study(name: str) -> FileLock:
    """The lock of the process that runs a sweep."""
    return _lock(hashlib.sha256(name.encode()).hexdigest()[:16])


def claim_cluster() -> FileLock:
    """The lock of the process that trains this folder's runs on a cluster."""
    return _lock("cluster")


def folder_id() -> str:
    """32 hex digits that identify the runs of this folder on a shared tracking server.

    A folder that was moved keeps its id. A copy gets a new one, and each machine that uses a folder has its own.
    """
    file, machine = home() / CHECKPOINTS / "folder_id", platform.node()
    with _lock("folder"):
        known = _read_folder_id(file)
        own = known.get(machine, {})
        place, name = own.get("place", ""), own.get("id", "")
        copied = place != str(file) and _read_folder_id(Path(place)).get(machine, {}).get("id") == name
        if copied or not re.fullmatch("[0-9a-f]{32}", name):
            name = uuid.uuid4().hex
        if own != (now := {"id": name, "place": str(file)}):
            with atomic_write(file) as path:
                path.write_text(json.dumps({**known, machine: now}))
    return name


def _read_folder_id(file: Path) -> dict[str, dict[str, str]]:
    """What folder_id wrote, by machine; empty if it is missing or damaged."""
    try:
        found = json.loads(file.read_text())
        return {machine: {key: str(value) for key, value in own.items()} for machine, own in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _lock(name: str) -> FileLock:
    folder = home() / CHECKPOINTS
    folder.mkdir(exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def store_lock() -> FileLock:
    """The lock for looking up and then creating or changing the database, experiments, parents or the champion."""
    return FileLock(home() / f"{DATABASE}.lock")
