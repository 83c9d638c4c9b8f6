"""Deleted runs: which of their rows and files can go, what stays and why, and deleting it for good.

MLflow keeps everything of a deleted run, so that it can be restored. `mlflow gc` would delete it, but it stops at the
first error, and regards neither running processes nor registered models nor the runs under a deleted one.
"""

import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout
from mlflow.entities import LoggedModel, Run
from mlflow.entities.lifecycle_stage import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import get_local_path_or_none

from cifar_lab.errors import UserError, printable
from cifar_lab.files import size_of
from cifar_lab.tracking import locks, places, queries
from cifar_lab.tracking.queries import pages

ORDER = ("run", "reproduction", "trial", "trial-repeats", "repeats", "sweep")  # kinds: a parent after its children
RUN_ID = "[0-9a-f]" * 32  # pattern of file names
PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class Piece:
    """What is deleted as one: a deleted run with its files and models, or a checkpoint or lock of no run.

    paths: files and folders; models: ids of logged models; run: None if no row of the store goes with it.
    """

    name: str
    paths: tuple[Path, ...]
    models: tuple[str, ...] = ()
    run: Run | None = None
    size: int = 0  # bytes


@dataclass(frozen=True)
class Garbage:
    """What can be deleted, and lines about what stays although it looks as if it could go."""

    pieces: list[Piece]
    kept: list[str]


def find_garbage(client: MlflowClient) -> Garbage:
    """Deleted runs, checkpoints of runs that are gone, and locks that no process holds. Changes nothing.

    On a tracking server, whose clients can't delete runs for good, only checkpoints and locks of this folder.
    """
    local, runs = places.is_local(), {run.info.run_id: run for run in queries.runs_of_any_stage(client)}
    deleted = [run for run in runs.values() if run.info.lifecycle_stage == LifecycleStage.DELETED]
    models = _models_of(client, deleted) if local else {}
    reasons = _reasons(client, runs, deleted, models)
    kept = [f"{_name(runs[run_id])}: {reason}" for run_id, reason in reasons.items()]
    if deleted and not local:
        kept.append(
            f"the deleted runs on {places.address()} ({len(deleted)}): a client can't delete them for good; "
            "on the server's machine, mlflow gc can"
        )
    going = [run for run in deleted if run.info.run_id not in reasons]
    going.sort(key=lambda run: ORDER.index(run.data.tags["kind"]))
    pieces = [_piece(run, models.get(run.info.run_id, [])) for run in going]
    for folder in _checkpoints():
        if folder.name not in runs:
            if doubt := _doubt(client, folder):
                kept.append(f"{_shown(folder)}: {doubt}")
            else:
                pieces.append(Piece(f"{_shown(folder)}, of a run that is gone", (folder,), size=size_of(folder)))
    gone = {run.info.run_id for run in going}
    staying = [run.data.tags for run in runs.values() if run.info.run_id not in gone]
    needed = [tags for tags in staying if not queries.tag_fault(tags) and tags["kind"] != "repeats"]
    pieces += [Piece(_shown(file), (file,), size=size_of(file)) for file in locks.leftover_locks(needed)]
    return Garbage([piece for piece in pieces if local or piece.paths], kept)


def _piece(run: Run, models: Sequence[LoggedModel]) -> Piece:
    paths = [folder for folder in _checkpoints() if folder.name == run.info.run_id]
    if places.is_local():
        places_of = [(run.info.artifact_uri, run.info.run_id), *((m.artifact_location, m.model_id) for m in models)]
        paths += [folder for place in places_of if (folder := _own_folder(*place)) and folder.exists()]
    name, size = _name(run), sum(map(size_of, paths))
    return Piece(name, tuple(paths), tuple(model.model_id for model in models), run, size)


def _models_of(client: MlflowClient, deleted: Sequence[Run]) -> dict[str, list[LoggedModel]]:
    """The models that deleted runs logged, also if they were deleted themselves, by run id."""
    store = _store(client)
    found: dict[str, list[LoggedModel]] = defaultdict(list)
    ids = sorted({run.info.experiment_id for run in deleted})
    logged = list(pages(lambda token: client.search_logged_models(ids, page_token=token))) if ids else []
    logged += [store.get_logged_model(model_id, allow_deleted=True) for model_id in store._get_deleted_logged_models()]
    for model in logged:
        found[model.source_run_id or ""].append(model)
    return found


def _reasons(
    client: MlflowClient, runs: Mapping[str, Run], deleted: Sequence[Run], models: Mapping[str, Sequence[LoggedModel]]
) -> dict[str, str]:
    """Why deleted runs stay, by their ids; none for a run that can go."""
    registered = _registered(client)
    reasons = {run.info.run_id: _reason(run, models.get(run.info.run_id, []), registered) for run in deleted}
    reasons = {run_id: reason for run_id, reason in reasons.items() if reason}
    ids = {run.info.run_id for run in deleted}
    for run in [run for run in runs.values() if run.info.run_id not in ids or run.info.run_id in reasons]:
        above, seen = run.data.tags.get(PARENT, ""), set[str]()
        while above in runs and above not in seen:
            seen.add(above)
            if above in ids:
                reasons.setdefault(above, f"{_name(run)}, a run under it, stays")
            above = runs[above].data.tags.get(PARENT, "")
    return reasons


def _reason(run: Run, models: Sequence[LoggedModel], registered: Mapping[str, str]) -> str:
    """Why a deleted run stays, apart from the runs under it; "" if it can go."""
    if fault := queries.tag_fault(run.data.tags):
        return fault
    if locks.is_training(run.data.tags):
        return "a process is training it, or its seed again"
    for name in (run.info.run_id, *(model.model_id.removeprefix("m-") for model in models)):
        if name in registered:
            return f"{registered[name]} is its model; delete that version first"
    if any(metric.run_id != run.info.run_id for model in models for metric in model.metrics or []):
        return "another run has measured its model"
    files = [(run.info.artifact_uri, run.info.run_id), *((m.artifact_location, m.model_id) for m in models)]
    if places.is_local() and not all(_own_folder(*place) for place in files):
        return f"its artifacts are not where cifar_lab stores them, below {places.ARTIFACTS}"
    return ""


def _registered(client: MlflowClient) -> dict[str, str]:
    """The registered version by the 32 hex digits of its run, and by those of its logged model."""
    found = {}
    for version in pages(lambda token: client.search_model_versions(page_token=token)):
        for name in re.findall("[0-9a-f]{32}", f"{version.run_id} {version.source}"):
            found[name] = f"version {version.version} of the registered model {printable(version.name)}"
    return found


def _own_folder(address: str, name: str) -> Path | None:
    """The folder of the artifacts at `address`; None unless it is `<name>/artifacts` somewhere below mlruns."""
    path = get_local_path_or_none(address)
    if path is None:
        return None
    folder = Path(path).resolve()
    below = folder.is_relative_to((places.home() / places.ARTIFACTS).resolve())
    return folder if below and folder.parts[-2:] == (name, "artifacts") else None


def _checkpoints() -> list[Path]:
    found = sorted((places.home() / places.CHECKPOINTS).glob(RUN_ID))
    return [folder for folder in found if folder.is_dir() and not folder.is_symlink()]


def _doubt(client: MlflowClient, folder: Path) -> str:
    """Why a checkpoint whose run was not found stays: it may be of a run elsewhere; "" if it can go."""
    marked, here = printable(places.store_of(folder)), places.store_name()
    if marked and marked != here:
        return f"its run is in {marked}"
    if not marked and not places.is_local():
        return f"no such run on {here}, but it may be in another store; if it is not, delete the folder"
    if locks.any_held():
        return "a process is training runs here, perhaps this one"
    with _unless_missing():
        client.get_run(folder.name)
        return "its run is hidden from this user"
    return ""


def delete(client: MlflowClient, piece: Piece) -> None:
    """Delete the files of a piece, then its rows, so that what was interrupted is found again and finished.

    Raises UserError if its run was restored meanwhile or is being trained, OSError if a file can't be deleted.
    """
    with ExitStack() as held:
        held.enter_context(locks.store_lock())
        if piece.run and "seed" in queries.TAGS[piece.run.data.tags["kind"]]:
            try:
                held.enter_context(locks.claimed(piece.run.data.tags))
            except Timeout:
                raise UserError(f"{piece.name}: a process has started to train it") from None
        if piece.run and _is_restored(client, piece.run):
            raise UserError(f"{piece.name}: it was restored meanwhile")
        for path in piece.paths:
            _remove(path)
        if piece.run and places.is_local():
            _delete_rows(_store(client), piece.run.info.run_id, piece.models)


def _is_restored(client: MlflowClient, run: Run) -> bool:
    with _unless_missing():
        return client.get_run(run.info.run_id).info.lifecycle_stage != LifecycleStage.DELETED
    return False


def _remove(path: Path) -> None:
    if path.suffix == locks.SUFFIX:
        locks.drop(path)
    elif path.exists():
        shutil.rmtree(path)
    if path.name == "artifacts":
        with suppress(OSError):  # it has other files, or is gone
            path.parent.rmdir()


def _delete_rows(store: Any, run_id: str, models: Sequence[str]) -> None:
    """Delete the rows of a run and of its models. MLflow leaves those that link runs with data sets."""
    for model_id in models:
        with _unless_missing():
            store._hard_delete_logged_model(model_id)
    with _unless_missing():
        store._hard_delete_run(run_id)


def _store(client: MlflowClient) -> Any:
    """What `mlflow gc` uses: MlflowClient itself deletes nothing for good."""
    return client._tracking_client.store


@contextmanager
def _unless_missing() -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _name(run: Run) -> str:
    return f"{printable(run.info.run_name)} ({run.info.run_id})"


def _shown(path: Path) -> str:
    return str(path.relative_to(places.home()))
