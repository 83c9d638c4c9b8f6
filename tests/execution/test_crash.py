"""Wherever a process dies between its writes, the next start ends with the record of an uninterrupted run, once."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from threading import Lock

import pytest
from conftest import EXPERIMENTS, recorded
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient

from cifar_lab.config import load_config
from cifar_lab.data.cache import load_dataset
from cifar_lab.execution.repeats import plan
from cifar_lab.execution.worker import train_one
from cifar_lab.tracking import store
from cifar_lab.tracking.provenance import machine_tags
from cifar_lab.training.train import resolve_config

pytestmark = pytest.mark.slow
WRITES = ("create_", "log_", "set_", "delete_", "update_")
FOLDERS = ("mlruns", "checkpoints")


class Snapshots:
    """Copies of a folder, one after each write to the tracking store and after each file that replaces another."""

    def __init__(self, folder, kept):
        self.folder, self.kept, self.count, self.lock = folder, kept, 0, Lock()

    def after(self, write):
        def call(*arguments, **named):
            answer = write(*arguments, **named)
            with self.lock:
                self._copy(self.folder, self.kept / str(self.count))
                self.count += 1
            return answer

        return call

    def restore(self, number):
        for name in FOLDERS:
            shutil.rmtree(self.folder / name)
        self._copy(self.kept / str(number), self.folder)

    def _copy(self, here, there):
        there.mkdir(parents=True, exist_ok=True)
        with (
            closing(sqlite3.connect(here / "mlflow.db")) as one,
            closing(sqlite3.connect(there / "mlflow.db")) as other,
        ):
            one.backup(other)
        for name in FOLDERS:
            if (here / name).is_dir():
                shutil.copytree(here / name, there / name)


def test_a_run_that_dies_after_any_write_is_continued_and_ends_the_same(
    workplace, empty_database, tmp_path, monkeypatch
):
    shutil.copy(empty_database, workplace)
    dataset, _ = load_dataset("digits")
    config = resolve_config(load_config(str(EXPERIMENTS / "linear.toml"), ["trainer.epochs=2"]), dataset, "fp32")
    client = store.connect()
    (item,) = plan(client, {"linear": config}, [0], {"linear": dataset}, machine_tags("cpu"))
    call = (item.parent, config, {**item.tags, "kind": "run", "seed": "0"}, dataset)
    snapshots = Snapshots(workplace, tmp_path / "snapshots")
    with monkeypatch.context() as patch:
        for name in dir(MlflowClient):
            if name.startswith(WRITES):
                patch.setattr(MlflowClient, name, snapshots.after(getattr(MlflowClient, name)))
        patch.setattr(os, "replace", snapshots.after(os.replace))
        run = train_one(*call)
    expected = recorded(client)
    monkeypatch.setattr(Figure, "savefig", lambda figure, file: Path(file).write_bytes(b""))  # most of the time
    for number in range(snapshots.count):
        snapshots.restore(number)
        assert train_one(*call).info.run_id == run.info.run_id  # continued
        assert recorded(client) == expected, f"after a death at write {number}"
    assert snapshots.count > 40
