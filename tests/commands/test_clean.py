"""Deleted runs are freed, and nothing else: with hand-written runs, their files and rows."""

import hashlib
import io
import shutil
import sqlite3
import sys
from contextlib import closing

import pytest
from mlflow.entities import Dataset, DatasetInput, LoggedModelOutput, Metric, Param

from cifar_lab.arguments import make_parser
from cifar_lab.commands import clean as command
from cifar_lab.errors import UsageError
from cifar_lab.tracking import locks, places, queries, store

HASH = "0123456789ab"
LINKS = {"inputs", "input_tags"}  # MLflow leaves the rows that link a deleted run with its images and models


@pytest.fixture
def client(workplace, empty_database):
    shutil.copy(empty_database, workplace)
    return store.connect()


def add_run(client, name, parent=None, data="digits", kind="run", seed=0, files=("config.toml",), **tags):
    """A finished run with a parameter, a metric, an input and files of 1,000 bytes each."""
    tags = {
        **dict.fromkeys(("data_digest", "split_digest"), "d" * 12),
        **{"experiment": "linear", "config_hash": HASH, "kind": kind, "seed": str(seed)},
        **({"mlflow.parentRunId": parent} if parent else {}),
        **tags,
    }
    run_id = client.create_run(store.open_experiment(client, data), run_name=name, tags=tags).info.run_id
    client.log_batch(run_id, [Metric("test/acc", 0.5, 0, epoch) for epoch in (1, 2)], [Param("trainer.epochs", "2")])
    client.log_inputs(run_id, [DatasetInput(Dataset("digits-train", "d", "images", "{}"))])
    for file in files:
        client.log_text(run_id, "x" * 1000, file)
    client.set_terminated(run_id)
    return run_id


def add_checkpoint(run_id, store_name=None):
    places.checkpoint_of(run_id).parent.mkdir(parents=True, exist_ok=True)
    places.checkpoint_of(run_id).write_bytes(b"x" * 500)
    if store_name:
        (places.checkpoint_of(run_id).parent / places.STORE).write_text(store_name)
    return places.checkpoint_of(run_id).parent


def add_model(client, workplace, run_id):
    """A logged model of a run with a file of 2,000 bytes; its id."""
    model = client.create_logged_model(client.get_run(run_id).info.experiment_id, "model", run_id)
    (workplace / "model.pt2").write_bytes(b"x" * 2000)
    client.log_model_artifact(model.model_id, str(workplace / "model.pt2"))
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    return model.model_id


def register(client, run_id, model_id):
    client.create_registered_model("digits")
    version = client.create_model_version("digits", f"models:/{model_id}", run_id, model_id=model_id).version
    client.set_registered_model_alias("digits", "champion", version)
    return version


class Terminal(io.StringIO):
    """Standard input at a terminal, where `answer` is typed after `meanwhile` has happened."""

    def __init__(self, answer, meanwhile=lambda: None):
        super().__init__(answer)
        self.meanwhile = meanwhile

    def isatty(self):
        return True

    def readline(self, *arguments):
        self.meanwhile()
        return super().readline(*arguments)


def clean(capsys, *options):
    """Exit code and output of the command."""
    code = command.run(make_parser().parse_args(["clean", *options]))
    return code, capsys.readouterr().out


def files(folder):
    """Digest by path of all files but the database."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("mlflow.db")
    }


def rows(folder, *gone):
    """All rows of the database by table, without those in which a cell is one of `gone`."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in tables}
    return {name: [row for row in found[name] if not any(str(one) in gone for one in row)] for name in found}


def test_only_deleted_runs_go_with_their_rows_and_files(client, workplace, capsys):
    parent = add_run(client, "linear", kind="repeats")
    kept = add_run(client, "linear-seed0", parent)
    gone = add_run(client, "linear-seed1", parent, seed=1, files=("config.toml", "images/a.png"))
    never_started = add_run(client, "linear-seed2", parent, seed=2, files=())
    for run_id in (kept, gone):
        add_checkpoint(run_id)
    (workplace / "checkpoints" / "notes").mkdir()
    (workplace / "checkpoints" / "notes" / "mine.txt").write_text("kept")
    (workplace / "mlruns" / "digits" / ("0" * 32)).mkdir()
    (workplace / "mlruns" / "digits" / ("0" * 32) / "stranger").write_text("kept")
    for run_id in gone, never_started:
        client.delete_run(run_id)
    before, database = files(workplace), rows(workplace, gone, never_started)
    code, output = clean(capsys, "--yes")
    assert code == 0
    assert f"2.5 kB  linear-seed1 ({gone})" in output
    assert f"0 B  linear-seed2 ({never_started})" in output
    assert output.splitlines()[-1] == "2.5 kB freed"
    freed = {name for name in before if gone in name}
    assert len(freed) == 3
    assert files(workplace) == {name: digest for name, digest in before.items() if name not in freed}
    after = rows(workplace)
    assert {name for name in after if after[name] != database[name]} <= LINKS
    assert not [*workplace.glob(f"mlruns/*/{gone}"), *workplace.glob(f"checkpoints/{gone}")]
    assert clean(capsys, "--yes") == (0, "nothing to clean\n")
    assert [run.info.run_id for run in queries.finished_runs(client, client.get_run(parent))] == [kept]


def test_it_asks_first_and_says_how_to_agree_without_a_terminal(client, workplace, capsys, monkeypatch):
    run_id = add_run(client, "linear-seed0")
    client.delete_run(run_id)
    before = files(workplace), rows(workplace)
    with pytest.raises(UsageError, match=r"nothing was deleted: .* confirm with --yes \(make clean YES=1\)$"):
        clean(capsys)
    assert f"1.0 kB  linear-seed0 ({run_id})\n   1.0 kB  in all" in capsys.readouterr().out
    for answer in ("", "\n", "n\n", "later\n"):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        assert clean(capsys)[1].endswith("nothing was deleted\n")
    assert (files(workplace), rows(workplace)) == before
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert clean(capsys)[1].endswith("1.0 kB freed\n")
    assert not list(workplace.glob("mlruns/digits/*"))


def test_a_run_that_is_restored_while_it_asks_stays(client, workplace, capsys, monkeypatch):
    parent = add_run(client, "linear", kind="repeats", files=())
    first, second = (add_run(client, f"linear-seed{seed}", parent, seed=seed) for seed in (0, 1))
    for run_id in parent, first, second:
        client.delete_run(run_id)
    monkeypatch.setattr(sys, "stdin", Terminal("y\n", lambda: client.restore_run(first)))
    assert clean(capsys)[1].endswith("1.0 kB freed\n")
    assert len(list(workplace.glob(f"mlruns/digits/{first}/artifacts/*"))) == 1
    assert {run.info.run_id for run in queries.runs_of_any_stage(client)} == {parent, first}


def test_parents_stay_as_long_as_a_run_under_them(client, workplace, capsys):
    study = {"study": "linear-sweep", "trial": "0"}
    sweep = add_run(client, "sweep", kind="sweep", **study)
    trial = add_run(client, "trial", sweep, kind="trial-repeats", **study)
    runs = [add_run(client, f"trial-seed{seed}", trial, kind="trial", seed=seed, **study) for seed in (0, 1)]
    for run_id in sweep, trial, runs[0]:
        client.delete_run(run_id)
    output = clean(capsys, "--yes")[1]
    for name, run_id in (("sweep", sweep), ("trial", trial)):
        assert f"kept: {name} ({run_id}): trial-seed1 ({runs[1]}), a run under it, stays\n" in output
    assert {run.info.run_id for run in queries.runs_of_any_stage(client)} == {sweep, trial, runs[1]}
    client.delete_run(runs[1])
    assert clean(capsys, "--yes")[1].endswith("3.0 kB freed\n")
    assert queries.runs_of_any_stage(client) == []


def test_the_run_of_a_registered_model_stays_until_its_version_is_deleted(client, workplace, capsys):
    parent = add_run(client, "linear", kind="repeats")
    run_id, other = add_run(client, "linear-seed0", parent), add_run(client, "linear-seed1", parent, seed=1)
    model_id, kept = add_model(client, workplace, run_id), add_model(client, workplace, other)
    half_logged = client.create_logged_model(client.get_run(run_id).info.experiment_id, "model", run_id).model_id
    client.delete_logged_model(half_logged)
    version = register(client, run_id, model_id)
    for deleted in parent, run_id:
        client.delete_run(deleted)
    before = files(workplace), rows(workplace)
    reason = "version 1 of the registered model digits is its model; delete that version first"
    code, output = clean(capsys, "--yes")
    assert (code, output.splitlines()[0]) == (0, f"kept: linear-seed0 ({run_id}): {reason}")
    assert output.endswith("nothing to clean\n")
    assert (files(workplace), rows(workplace)) == before
    client.delete_model_version("digits", version)
    client.delete_run(other)
    client.restore_run(other)
    database = rows(workplace, run_id, model_id, half_logged)
    assert clean(capsys, "--yes")[1].endswith("3.0 kB freed\n")
    after = rows(workplace)
    assert {name for name in after if after[name] != database[name]} <= LINKS | {"model_versions"}
    assert [model.model_id for model in client.search_logged_models(["1"])] == [kept]
    left = {name: digest for name, digest in before[0].items() if run_id not in name and model_id not in name}
    assert files(workplace) == left
    assert f"mlruns/digits/models/{kept}/artifacts/model.pt2" in left


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"kind": "theirs"}, "it was not made by cifar_lab"),
        ({"seed": ""}, "it has no tag seed"),
        ({"data_digest": ""}, "it has no tag data_digest"),
    ],
)
def test_deleted_runs_that_are_not_known_stay(client, workplace, capsys, tags, reason):
    run_id = add_run(client, "mine", **{"kind": "run", **tags})
    add_checkpoint(run_id)
    client.delete_run(run_id)
    before = files(workplace), rows(workplace)
    assert clean(capsys, "--yes") == (0, f"kept: mine ({run_id}): {reason}\nnothing to clean\n")
    assert (files(workplace), rows(workplace)) == before


def test_a_run_whose_process_is_alive_stays_and_so_does_its_parent(client, workplace, capsys):
    parent = add_run(client, "linear", kind="repeats")
    run_id = add_run(client, "linear-seed0", parent)
    add_checkpoint(run_id)
    for deleted in parent, run_id:
        client.delete_run(deleted)
    with locks.claimed({"config_hash": HASH, "seed": "0"}):
        before = files(workplace), rows(workplace)
        code, output = clean(capsys, "--yes")
        assert f"kept: linear-seed0 ({run_id}): a process is training it, or its seed again\n" in output
        assert (code, output.splitlines()[-1]) == (0, "nothing to clean")
        assert (files(workplace), rows(workplace)) == before
    assert clean(capsys, "--yes")[1].endswith("2.5 kB freed\n")


def test_artifacts_elsewhere_stay(client, workplace, tmp_path, capsys):
    linked, outside = (add_run(client, f"linear-seed{seed}", seed=seed) for seed in (0, 1))
    artifacts = workplace / "mlruns" / "digits" / linked / "artifacts"
    artifacts.rename(tmp_path / "elsewhere")
    artifacts.symlink_to(tmp_path / "elsewhere")
    with closing(sqlite3.connect(workplace / "mlflow.db")) as connection, connection:
        address = "mlflow-artifacts:/1/artifacts"
        connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (address, outside))
    for run_id in linked, outside:
        client.delete_run(run_id)
    _, output = clean(capsys, "--yes")
    assert output.count("its artifacts are not where cifar_lab stores them, below mlruns\n") == 2
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1
    assert len(queries.runs_of_any_stage(client)) == 2


def test_the_runs_of_a_deleted_mlflow_experiment_go_and_it_can_be_restored(client, workplace, capsys):
    add_run(client, "linear-seed0", data="cifar10")
    gone = add_run(client, "linear-seed0")
    before = files(workplace)
    client.delete_experiment(client.get_run(gone).info.experiment_id)
    assert clean(capsys, "--yes")[1].endswith("1.0 kB freed\n")
    assert files(workplace) == {name: digest for name, digest in before.items() if gone not in name}
    experiment = client.get_experiment_by_name("digits")
    client.restore_experiment(experiment.experiment_id)
    assert store.open_experiment(client, "digits") == experiment.experiment_id
    assert client.search_runs([experiment.experiment_id]) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError(13, "Permission denied", "artifacts")])
def test_what_was_interrupted_or_failed_is_finished_by_the_next_call(client, workplace, capsys, monkeypatch, error):
    runs = [add_run(client, f"linear-seed{seed}", seed=seed, files=("a", "b")) for seed in (0, 1, 2)]
    for run_id in runs[:2]:
        client.delete_run(run_id)
    kept, rmtree, calls = files(workplace / "mlruns" / "digits" / runs[2]), shutil.rmtree, []

    def break_off(folder):
        calls.append(folder)
        if len(calls) == 1:
            (folder / "a").unlink()
            raise error
        rmtree(folder)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", break_off)
        if error is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                clean(capsys, "--yes")
            assert capsys.readouterr().out.endswith("interrupted; the same command deletes the rest\n")
        else:
            code, output = clean(capsys, "--yes")
            assert (code, output.splitlines()[-1]) == (1, "2.0 kB freed; 1 of 2 could not be deleted")
    assert clean(capsys, "--yes")[0] == 0
    assert [run.info.run_id for run in queries.runs_of_any_stage(client)] == runs[2:]
    assert files(workplace / "mlruns" / "digits" / runs[2]) == kept
    assert [path.name for path in (workplace / "mlruns" / "digits").iterdir()] == runs[2:]


def test_checkpoints_and_locks_of_runs_that_are_gone(client, workplace, capsys):
    active = add_run(client, "linear-seed0")
    add_checkpoint(active)
    ours, unmarked, on_server, linked = (
        add_checkpoint(digit * 32, mark)
        for digit, mark in (("a", "mlflow.db"), ("b", None), ("c", "http://server:5000"), ("d", None))
    )
    linked.rename(workplace / "elsewhere")
    linked.symlink_to(workplace / "elsewhere")
    folder = workplace / "checkpoints"
    kept = [f"{HASH}-seed0.lock", "folder.lock", "cluster.lock", "mine.lock", f"{HASH}-seed2.lock"]
    gone = [f"{HASH}-seed1.lock", f"{HASH}-seed0-trial4.lock", f"{'a' * 16}.lock"]
    for name in kept + gone:
        (folder / name).touch()
    with locks.claimed({"config_hash": HASH, "seed": "2"}):
        _, output = clean(capsys, "--yes")
        assert output.count("a process is training runs here, perhaps this one") == 2
        assert sorted(path.name for path in folder.glob("*.lock")) == sorted(kept)
    before = files(workplace)
    code, output = clean(capsys, "--yes")
    assert f"kept: checkpoints/{'c' * 32}: its run is in http://server:5000\n" in output
    assert (code, output.splitlines()[-1]) == (0, "1.0 kB freed")
    assert not ours.exists()
    assert not unmarked.exists()
    freed = [str(path.relative_to(workplace) / "last.ckpt") for path in (ours, unmarked)]
    freed.append(f"checkpoints/{'a' * 32}/store")
    assert files(workplace) == {name: digest for name, digest in before.items() if name not in freed}
    assert on_server.exists()


def test_without_a_database_there_is_nothing_to_clean(workplace, capsys):
    add_checkpoint("a" * 32)
    before = files(workplace)
    assert clean(capsys, "--yes") == (0, "nothing to clean: no mlflow.db here\n")
    assert files(workplace) == before


def test_a_server_keeps_its_runs_but_their_checkpoints_go(workplace, empty_server, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_server)
    client = store.connect()
    deleted, active = add_run(client, "linear-seed0"), add_run(client, "linear-seed1", seed=1)
    folders = [add_checkpoint(run_id) for run_id in (deleted, active, "e" * 32)]
    client.delete_run(deleted)
    code, output = clean(capsys, "--yes")
    assert code == 0
    line = f"kept: the deleted runs on {empty_server} (1): a client can't delete them for good; on the server's machine"
    assert output.startswith(line)
    assert f"kept: checkpoints/{'e' * 32}: no such run on {empty_server}, but it may be in another store" in output
    assert output.endswith("500 B freed\n")
    assert [folder.exists() for folder in folders] == [False, True, True]
    assert {run.info.run_id for run in queries.runs_of_any_stage(client)} == {deleted, active}
    assert [file.path for file in client.list_artifacts(deleted)] == ["config.toml"]
