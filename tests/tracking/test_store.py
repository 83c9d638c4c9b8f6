"""The store: its place, moved folders, and errors in one line."""

import errno
import json
import shutil
import sqlite3
from contextlib import closing

import mlflow
import pytest
import requests
from filelock import Timeout
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.tracking import MlflowClient

from cifar_lab.errors import UserError
from cifar_lab.tracking import locks, places, store


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

    message = f"the runs were made in {old}, before this folder was moved; run make relocate"
    with pytest.raises(UserError) as caught:
        store.connect()
    assert str(caught.value) == message
    assert store.relocate() == f"artifacts from {old}/mlruns are now found in {moved}/mlruns"
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
    """Behave like a new process in `folder`."""
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
    with locks.claimed(tags):
        monkeypatch.chdir(tmp_path)
        assert locks.store_lock().lock_file == str(workplace / "mlflow.db.lock")
        with pytest.raises(Timeout), locks.claimed(tags):
            pass
    with locks.claimed(tags):
        assert [path.name for path in workplace.glob("checkpoints/*.lock")] == ["c-seed0.lock"]
    assert not list(workplace.glob("checkpoints/*.lock"))


def test_a_moved_folder_is_the_same_and_a_copy_is_not(workplace, tmp_path, monkeypatch):
    first = locks.folder_id()
    assert locks.folder_id() == first
    copy, moved = tmp_path / "copy", tmp_path / "moved"
    shutil.copytree(workplace, copy)
    monkeypatch.chdir(copy)
    second = locks.folder_id()
    assert second != first
    shutil.move(workplace, moved)
    monkeypatch.chdir(moved)
    assert locks.folder_id() == first
    with monkeypatch.context() as patch:
        patch.setattr(locks.platform, "node", lambda: "another machine")  # that uses the folder too
        third = locks.folder_id()
    assert third not in (first, second)
    assert locks.folder_id() == first
    assert json.loads((moved / "checkpoints" / "folder_id").read_text())["another machine"]["id"] == third


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}'])
def test_a_damaged_identity_is_made_anew(workplace, content):
    locks.folder_id()
    (workplace / "checkpoints" / "folder_id").write_text(content)
    found = locks.folder_id()
    assert locks.folder_id() == found
    assert len(found) == 32


def test_what_stands_where_runs_are_kept_is_named(workplace):
    for name in "mlruns", "checkpoints":
        (workplace / name).symlink_to("nowhere")
        with pytest.raises(UserError, match=f"{workplace}/{name} is not a folder, but runs are stored there"):
            store.connect(make=True)
        (workplace / name).unlink()


@pytest.mark.parametrize("name", ["a%20b", "what?"])
def test_a_folder_that_mlflow_confuses_with_another_is_refused(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    enter_new = monkeypatch.chdir(tmp_path / name)
    assert enter_new is None
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"MLflow can't keep runs in a folder with [%?] in its path"):
        store.connect(make=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_options_of_a_database_are_no_part_of_its_path(workplace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///kept/runs.db?timeout=30")
    (workplace / "kept").mkdir()
    store.connect(make=True)
    assert (workplace / "kept" / "runs.db").is_file()
    assert places.home() == workplace / "kept"


def test_models_are_registered_where_the_runs_are(workplace, monkeypatch):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "databricks-uc")
    client = store.connect(make=True)
    client.create_registered_model("x")
    with closing(sqlite3.connect(workplace / "mlflow.db")) as connection:
        assert connection.execute("SELECT name FROM registered_models").fetchall() == [("x",)]


def test_a_proxy_that_takes_what_is_local_is_named(workplace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("http_proxy", "http://me:secret@proxy:3128")
    error = MlflowException("API request to http://127.0.0.1 failed with exception Max retries exceeded")
    proxy = " through the proxy http://proxy:3128; NO_PROXY=127.0.0.1 bypasses it"
    assert store.explain(error) == f"no answer from the tracking server http://127.0.0.1:5000{proxy}"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert store.explain(error) == "no answer from the tracking server http://127.0.0.1:5000"


EXPLAINED = [
    (OSError(errno.ENOSPC, "No space left on device"), "{here}: No space left on device"),
    (OSError(errno.ENOSPC, "No space left on device", "from", None, "to"), "to: No space left on device"),
    (FileNotFoundError(errno.ENOENT, "a bug", "x"), ""),
    (ValueError("a bug"), ""),
    (MlflowException("a bug"), ""),
    (MlflowException("Run 'x' not found", 5), ""),
    (MlflowException("Run 'x' not found", RESOURCE_DOES_NOT_EXIST), "http://host: Run 'x' not found"),
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
        "http://host refused the login; set MLFLOW_TRACKING_USERNAME",
    ),
    (MlflowException("autoflush\n(sqlite3.OperationalError) database is locked\n[SQL: ..."), "http://host: (sqlite3."),
]


@pytest.mark.parametrize(("error", "line"), EXPLAINED)
def test_errors_of_disk_and_server_are_explained_in_one_line_without_passwords(workplace, monkeypatch, error, line):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@host")
    explained = store.explain(error)
    assert explained.startswith(line.format(here=workplace)) if line else explained == ""
    assert "\n" not in explained
    assert "secret" not in explained
