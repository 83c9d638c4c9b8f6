"""Bugs: the run is FAILED and keeps the traceback, one line is printed, and --debug shows the traceback."""

import os
import sys
import time
from functools import partial

import pytest
from conftest import EXPERIMENTS, recorded
from mlflow.tracking import MlflowClient
from pytorch_lightning import Callback

from cifar_lab.__main__ import main
from cifar_lab.commands import best
from cifar_lab.config import load_config
from cifar_lab.data.cache import load_dataset
from cifar_lab.errors import UserError
from cifar_lab.execution import worker
from cifar_lab.execution.repeats import plan
from cifar_lab.tracking import store, summaries, uploads
from cifar_lab.tracking.provenance import machine_tags
from cifar_lab.training.checkpoints import WholeCheckpoint
from cifar_lab.training.train import resolve_config, train


@pytest.fixture
def planned(workplace):
    """Client, plan and worker's arguments for a run of the linear model."""
    dataset, _ = load_dataset("digits")
    config = resolve_config(load_config(str(EXPERIMENTS / "linear.toml"), ["trainer.epochs=1"]), dataset, "fp32")
    client = store.connect(make=True)
    (item,) = plan(client, {"linear": config}, [0], {"linear": dataset}, machine_tags("cpu"))
    return client, item, (item.parent, config, {**item.tags, "kind": "run", "seed": "0"}, dataset)


class Dies(Callback):
    """Stands in for worker.Stop: ends the process's training after `epochs` epochs."""

    def __init__(self, epochs=2):
        self.epochs = epochs

    def on_train_batch_start(self, trainer, *_):
        if trainer.current_epoch == self.epochs:
            raise SystemExit


def test_epochs_after_the_last_checkpoint_on_a_gpu_are_trained_again_and_logged_once(gpu, workplace, monkeypatch):
    dataset, _ = load_dataset("digits")
    config = resolve_config(load_config(str(EXPERIMENTS / "linear.toml"), ["trainer.epochs=4"]), dataset, "fp32")
    client = store.connect(make=True)
    (item,) = plan(client, {"linear": config}, [0, 1], {"linear": dataset}, machine_tags("cuda"))
    written, save = [], WholeCheckpoint.save_checkpoint

    def watched(self, content, path, storage_options=None):
        written.append(content["epoch"] + 1)
        save(self, content, path)

    monkeypatch.setattr(WholeCheckpoint, "save_checkpoint", watched)
    calls = [(item.parent, config, {**item.tags, "kind": "run", "seed": seed}, dataset) for seed in "01"]
    worker.train_one(*calls[0])
    assert written == [1, 4]  # all are within ten seconds
    with monkeypatch.context() as patch:
        patch.setattr(worker, "Stop", Dies)
        with pytest.raises(SystemExit):
            worker.train_one(*calls[1])
    assert written == [1, 4, 1]
    (stopped,) = client.search_runs([item.parent.info.experiment_id], "tags.seed = '1' and tags.kind = 'run'")
    assert len(client.get_metric_history(stopped.info.run_id, "train/acc")) == 2
    worker.train_one(*calls[1])
    assert written == [1, 4, 1, 4]
    runs = recorded(client)
    for status, _, points, images in runs.values():
        assert status == "FINISHED"
        assert [step for step, _ in points["val/acc"]] == points["epoch_seconds"] == [1, 2, 3, 4]
        assert images == 4
    whole = train(config, 1, dataset, workplace / "whole.ckpt", "cpu")
    assert runs["linear-seed1"][1] == whole.weights_digest


def test_a_stopped_run_does_not_wait_for_a_slow_server_and_the_next_start_logs_the_rest(planned, monkeypatch):
    client, item, (parent, config, *others) = planned
    longer = config.model_copy(update={"trainer": config.trainer.model_copy(update={"epochs": 8})})
    call = (parent, longer, *others)

    def slow(self, run_id, metrics=(), **others):
        time.sleep(0.5 if metrics else 0)
        log_batch(self, run_id, metrics=metrics, **others)

    log_batch = MlflowClient.log_batch
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", slow)
        patch.setattr(uploads, "FLUSH_SECONDS", 0)
        patch.setattr(worker, "Stop", partial(Dies, epochs=7))
        with pytest.raises(SystemExit):
            worker.train_one(*call)
    (run,) = client.search_runs([item.parent.info.experiment_id], "tags.kind = 'run'")
    assert run.info.status == "KILLED"
    assert len(client.get_metric_history(run.info.run_id, "train/acc")) < 7
    assert worker.train_one(*call).info.run_id == run.info.run_id
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/acc")] == list(range(1, 9))


def run_of(client, item):
    (run,) = client.search_runs([item.parent.info.experiment_id], "tags.kind = 'run'")
    return run


def test_the_traceback_of_a_bug_is_kept_with_the_run(planned, monkeypatch):
    client, item, call = planned
    line = r"^KeyError: 'no such key' \(the run's artifact error\.txt has the traceback\); start again to continue$"
    with monkeypatch.context() as patch:
        patch.setattr(summaries, "log_result", lambda *_: {}["no such key"])
        with pytest.raises(UserError, match=line) as caught:
            worker.train_one(*call)
    assert isinstance(caught.value.__cause__, KeyError)  # which --debug shows
    run = run_of(client, item)
    assert run.info.status == "FAILED"
    with open(client.download_artifacts(run.info.run_id, "error.txt")) as file:
        assert "in <lambda>" in file.read()
    assert worker.train_one(*call)
    assert run_of(client, item).info.status == "FINISHED"


def test_an_error_before_there_is_a_run_names_no_artifact(planned, monkeypatch):
    client, item, call = planned
    monkeypatch.setattr(worker, "opened", lambda *_: {}["no such key"])
    with pytest.raises(UserError, match=r"^KeyError: 'no such key' \(--debug has the traceback\)"):
        worker.train_one(*call)
    assert not client.search_runs([item.parent.info.experiment_id], "tags.kind = 'run'")


@pytest.mark.parametrize("debug", [False, True])
def test_a_bug_costs_one_line_and_a_traceback_with_debug(monkeypatch, capsys, caplog, debug):
    monkeypatch.setattr(best, "run", lambda options: {}["\x1b[31m"])
    assert main(["best", *["--debug"] * debug]) == 1
    line = "cifar_lab: KeyError: '\\x1b[31m' (a bug in cifar_lab, please report it; --debug shows the traceback)\n"
    assert capsys.readouterr().err == line
    assert ("in <lambda>" in caplog.text) == debug


def test_what_the_terminal_cannot_show_ends_nothing(monkeypatch, tmp_path):
    def show(options):
        print("50 ± 1 %, \udcff, ä")
        return 0

    monkeypatch.setattr(best, "run", show)
    with (tmp_path / "output").open("w", encoding="ascii") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert main(["best"]) == 0
    assert (tmp_path / "output").read_text() == "50 +- 1 %, ?, ?\n"


@pytest.mark.parametrize("lines", [1, 10_000])  # less than a buffer holds, and more
def test_nobody_reading_is_no_mistake(monkeypatch, capsys, lines):
    def show(options):
        for line in range(lines):
            print(f"line {line}")
        return 0

    monkeypatch.setattr(best, "run", show)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["best"]) == 141
    assert capsys.readouterr().err == ""


def test_other_broken_pipes_are_reported(monkeypatch, capsys):
    def show(options):
        raise BrokenPipeError("of a worker")

    monkeypatch.setattr(best, "run", show)
    assert main(["best"]) == 1
    assert "BrokenPipeError: of a worker" in capsys.readouterr().err


def test_without_an_output_nothing_breaks(monkeypatch):
    monkeypatch.setattr(best, "run", lambda options: 0)
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["best"]) == 0
