"""Which process may do what, and which folder is whose."""

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
from cifar_lab.tracking.places import (
    CHECKPOINTS,
    DATABASE,
    home,
)


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

    A folder that was moved stays the same; a copy is another one, and so is the folder on each machine that uses it.
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
    """What folder_id wrote, by machine; nothing where that is gone or damaged."""
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
    """To be held while the database, experiments, parent runs or the champion are looked up and made or changed."""
    return FileLock(home() / f"{DATABASE}.lock")
