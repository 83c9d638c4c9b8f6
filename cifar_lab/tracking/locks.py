"""Locks between processes, and the identity of this folder."""

import hashlib
import json
import platform
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cifar_lab.files import atomic_write
from cifar_lab.tracking.places import CHECKPOINTS, DATABASE, home

SUFFIX = ".lock"


@contextmanager
def claimed(tags: Mapping[str, str], timeout: float = 0) -> Iterator[None]:
    """Lock the run with these tags, for the process that trains it; the lock ends with the process.

    Raises filelock.Timeout if another process holds it.
    """
    lock = _lock(_run_name(tags))
    with lock.acquire(timeout):
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)  # a waiting process creates it again


def claim_study(name: str) -> FileLock:
    """The lock of the process that runs a sweep."""
    return _lock(_study_name(name))


def _run_name(tags: Mapping[str, str]) -> str:
    trial = f"-trial{tags['trial']}" if "trial" in tags else ""  # two trials may have the same config
    return f"{tags['config_hash']}-seed{tags['seed']}{trial}"


def _study_name(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def is_training(tags: Mapping[str, str]) -> bool:
    """Whether a process trains the run with these tags; for a parent, a run under it."""
    return any(is_held(file) for file in _files() if _belongs(file, tags))


def leftover_locks(runs: Iterable[Mapping[str, str]]) -> list[Path]:
    """The lock files that no process holds and that belong to none of the runs, or parents, with these tags."""
    names = "[0-9a-f]{12}-seed[0-9]+(-trial[0-9]+)?|[0-9a-f]{16}"
    alone = [file for file in _files() if re.fullmatch(names, file.stem) and not is_held(file)]
    return [file for file in alone if not any(_belongs(file, tags) for tags in runs)]


def is_held(file: Path) -> bool:
    """Whether a process holds the lock of this lock file, which stays as it is."""
    try:
        with FileLock(file).acquire(timeout=0):
            return False
    except Timeout:
        return True


def drop(file: Path) -> None:
    """Delete a lock file unless a process holds its lock."""
    with suppress(Timeout, FileNotFoundError), FileLock(file).acquire(timeout=0):
        file.unlink()


def any_held() -> bool:
    """Whether any process trains runs here."""
    return any(map(is_held, _files()))


def _files() -> list[Path]:
    return sorted((home() / CHECKPOINTS).glob(f"*{SUFFIX}"))


def _belongs(file: Path, tags: Mapping[str, str]) -> bool:
    if tags["kind"] in ("run", "reproduction", "trial"):
        return file.stem == _run_name(tags)
    if "study" in tags:
        return file.stem == _study_name(tags["study"])
    return file.stem.startswith(f"{tags['config_hash']}-seed")


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
    return FileLock(folder / f"{name}{SUFFIX}")


def store_lock() -> FileLock:
    """The lock for looking up and then creating or changing the database, experiments, parents or the champion."""
    return FileLock(home() / f"{DATABASE}{SUFFIX}")
