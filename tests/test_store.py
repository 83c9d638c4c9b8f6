"""Where the runs are, after their folder was moved."""

import errno
import shutil
import sqlite3
from contextlib import closing

import mlflow
import pytest
import requests
from filelock import Timeout
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from cifar_lab import store
from cifar_lab.config import UserError


def paths(client, run_id):
    (model,) = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    return [
        client.get_experiment(client.get_run(run_id).info.experiment_id).artifact_location,
        client.get_run(run_id).info.artifact_uri,
        model.artifact_location,
    ]


def test_artifacts_follow_a_moved_folder(workplace, tmp_path, monkeypatch):
    client = store.connect(make=True)
    run_id = client.create_run(store.open_experiment(client, "it's 100 %")).info.run_id
    client.log_text(run_id, "kept", "note.txt")
    client.create_logged_model(client.get_run(run_id).info.experiment_id, "model", run_id)
    old = str(workplace)
    moved = tmp_path / "another place"
    shutil.move(workplace, moved)
    enter(moved, monkeypatch)

    message = f"this folder was {old} when its runs were made; make relocate lets them follow"
    with pytest.raises(UserError) as caught:
        store.connect()
    assert str(caught.value) == message
    assert store.relocate() == f"artifacts of {old}/mlruns are now found in {moved}/mlruns"
    assert store.relocate() == f"nothing to do: artifacts are in {moved}/mlruns"

    client = store.connect()
    for path in paths(client, run_id):
        assert path.startswith(f"{moved}/mlruns/it's 100 %")
    assert mlflow.artifacts.load_text(f"{client.get_run(run_id).info.artifact_uri}/note.txt") == "kept"
    new = client.create_run(store.open_experiment(client, "it's 100 %")).info.run_id
    client.log_text(new, "new", "note.txt")
    assert not workplace.exists()
    assert old not in "\n".join(dump(moved / "mlflow.db"))


def enter(folder, monkeypatch):
    """As a new process there."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # which MLflow itself has set


def dump(database):
    with closing(sqlite3.connect(database)) as connection:
        return list(connection.iterdump())


def test_only_paths_below_the_old_folder_are_rewritten(workplace, tmp_path, monkeypatch):
    client = store.connect(make=True)
    store.open_experiment(client, "digits")
    elsewhere = client.create_experiment("own", artifact_location=f"{workplace}/mlruns-of-mine/own")
    copy = tmp_path / "copy"
    shutil.copytree(workplace, copy)
    enter(copy, monkeypatch)
    store.relocate()
    assert store.connect().get_experiment(elsewhere).artifact_location == f"{workplace}/mlruns-of-mine/own"
    enter(workplace, monkeypatch)
    assert isinstance(store.connect(), MlflowClient)  # the original is as it was


def test_an_absent_server_is_named_within_seconds(workplace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="no answer from the tracking server http://127"):
        store.connect()


def test_one_database_has_one_set_of_claims_from_wherever_it_is_used(workplace, tmp_path, monkeypatch):
    store.connect(make=True)  # MLflow keeps its address in the environment from here on
    tags = {"config_hash": "c", "seed": "0"}
    with store.claimed(tags):
        monkeypatch.chdir(tmp_path)
        assert store.planning().lock_file == str(workplace / "mlflow.db.lock")
        with pytest.raises(Timeout), store.claimed(tags):
            pass
    with store.claimed(tags):
        assert [path.name for path in workplace.glob("checkpoints/*.lock")] == ["c-seed0.lock"]
    assert not list(workplace.glob("checkpoints/*.lock"))


EXPLAINED = [
    (OSError(errno.ENOSPC, "No space left on device"), "{here}: No space left on device"),
    (OSError(errno.ENOSPC, "No space left on device", "from", None, "to"), "to: No space left on device"),
    (FileNotFoundError(errno.ENOENT, "a mistake of ours", "x"), ""),
    (ValueError("a mistake of ours"), ""),
    (requests.HTTPError("500 Server Error"), "http://host: 500 Server Error"),
    (
        MlflowException("API request to http://user:secret@host/api failed with exception Max retries exceeded"),
        "no answer from the tracking server http://host",
    ),
    (
        MlflowException("API request to endpoint http://user:secret@host/api failed with error code 403 != 200"),
        "http://host: API request to endpoint http://host/api failed with error code 403 != 200",
    ),
    (
        MlflowException("API request to endpoint /api failed with error code 401 != 200"),
        "http://host does not know you; set MLFLOW_TRACKING_USERNAME",
    ),
    (MlflowException("autoflush\n(sqlite3.OperationalError) database is locked\n[SQL: ..."), "http://host: (sqlite3."),
]


@pytest.mark.parametrize(("error", "line"), EXPLAINED)
def test_what_disk_or_server_did_is_told_in_one_line_without_passwords(workplace, monkeypatch, error, line):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@host")
    explained = store.explain(error)
    assert explained.startswith(line.format(here=workplace)) if line else explained == ""
    assert "\n" not in explained
    assert "secret" not in explained
