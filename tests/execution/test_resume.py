"""Experiments that are killed, interrupted, started twice or disconnected: nothing is lost or duplicated.

One of the networks, `mine`, is in a file outside the package.
"""

import contextlib
import os
import re
import signal
import socket
import sys
import time
from threading import Thread
from urllib.parse import urlsplit

import pytest
from conftest import EXPERIMENTS, WARM, Driver, free_port, place, processes_in, recorded
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from cifar_lab.tracking import locks, store

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")]

KILLS, EPOCHS = 3, 6  # after every single write: test_crash
CNN = str(EXPERIMENTS / "cnn.toml")
REPEATS = ("experiment", "mine", CNN, "--data", "digits", "--seeds", "2", "--jobs", "2", "--epochs", str(EPOCHS))


def client_of(folder):
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def runs_in(client, condition=""):
    experiment = client.get_experiment_by_name("digits")
    condition = f"tags.kind = 'run' {condition}"
    return client.search_runs([experiment.experiment_id], condition) if experiment else []


def statuses(folder):
    return [run.info.status for run in runs_in(client_of(folder))]


def epochs_logged(client, name):
    runs = runs_in(client, f"and attributes.run_name LIKE '{name}'")
    return sum(len(client.get_metric_history(run.info.run_id, "val/acc")) for run in runs)


def wait_for_more(driver, client, name="%"):
    """Wait until one more epoch of these runs is logged."""
    before, deadline = epochs_logged(client, name), time.monotonic() + 60
    while epochs_logged(client, name) == before:
        assert driver.process.is_alive(), driver.output()
        assert time.monotonic() < deadline, driver.output()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def undisturbed(tracked, tmp_path_factory):
    """The record of an uninterrupted experiment."""
    folder = place(tmp_path_factory.mktemp("undisturbed"))
    (folder / "data").symlink_to(tracked.folder / "data")
    driver = Driver(folder, *REPEATS)
    assert driver.wait() == 0, driver.output()
    runs = recorded(client_of(folder))
    assert set(runs) == {"mine-seed0", "mine-seed1", "cnn-seed0", "cnn-seed1"}
    for status, _, points, images in runs.values():
        assert status == "FINISHED"
        assert [step for step, _ in points["val/acc"]] == points["epoch_seconds"] == list(range(1, EPOCHS + 1))
        assert [step for step, _ in points["test/acc"]] == [EPOCHS]
        assert images == EPOCHS
    return runs


@pytest.fixture
def unused(unused):
    return place(unused)


def test_an_experiment_killed_again_and_again_ends_like_one_that_was_not(undisturbed, unused):
    for kill in range(KILLS):
        driver = Driver(unused, *REPEATS)
        driver.wait("runs to train")
        if kill:  # the first before a worker is up
            wait_for_more(driver, client_of(unused), "cnn-seed%")
        driver.process.kill()
        driver.process.join()
        assert "RUNNING" in statuses(unused) or not kill
        deadline = time.monotonic() + 20
        while processes_in(unused):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    driver = Driver(unused, *REPEATS)
    assert driver.wait() == 0, driver.output()
    assert recorded(client_of(unused)) == undisturbed


def test_a_killed_worker_costs_no_run(undisturbed, unused):
    driver = Driver(unused, *REPEATS)
    driver.wait("runs to train")
    wait_for_more(driver, client_of(unused), "cnn-seed0")
    worker = next(process for process in processes_in(unused) if process != driver.process.pid)
    os.kill(worker, signal.SIGKILL)
    assert driver.wait() == 0, driver.output()
    assert "a worker process died; its runs continue in new ones" in driver.output()
    assert recorded(client_of(unused)) == undisturbed


def test_images_that_change_meanwhile_change_no_run(undisturbed, unused):
    driver = Driver(unused, *REPEATS)
    driver.wait("runs to train")
    for name in "cnn-seed0", "cnn-seed1":  # so that both workers have read them
        wait_for_more(driver, client_of(unused), name)
    for file in unused.glob("data/cache/*/images_*.npy"):
        with file.open("r+b") as images:
            images.truncate(2000)
    assert driver.wait() == 0, driver.output()
    assert recorded(client_of(unused)) == undisturbed


def test_a_damaged_checkpoint_costs_its_run_a_new_start(undisturbed, unused):
    driver = Driver(unused, *REPEATS)
    driver.wait("runs to train")
    wait_for_more(driver, client_of(unused), "cnn-seed0")
    driver.process.terminate()
    assert driver.wait() == 130
    (run,) = runs_in(client_of(unused), "and attributes.run_name = 'cnn-seed0'")
    checkpoint = unused / "checkpoints" / run.info.run_id / "last.ckpt"
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    assert (checkpoint.parent / "store").read_text() == "mlflow.db"
    driver = Driver(unused, *REPEATS)
    assert driver.wait() == 0, driver.output()
    assert "the checkpoint of cnn-seed0 is damaged, so it starts over" in driver.output()
    client_of(unused).delete_run(run.info.run_id)
    assert recorded(client_of(unused)) == undisturbed


def test_a_closed_terminal_and_an_impatient_ctrl_c_lose_nothing(undisturbed, unused):
    for number, times, code in ((signal.SIGHUP, 1, -signal.SIGHUP), (signal.SIGINT, 5, 130)):
        driver = Driver(unused, *REPEATS)
        driver.wait("runs to train")
        wait_for_more(driver, client_of(unused), "cnn-seed%")
        for _ in range(times):
            os.kill(driver.process.pid, number)
            time.sleep(0.05)
        assert driver.wait() == code, driver.output()
        assert "Traceback" not in driver.output()
        deadline = time.monotonic() + 20
        while processes_in(unused):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    driver = Driver(unused, *REPEATS)
    assert driver.wait() == 0, driver.output()
    assert recorded(client_of(unused)) == undisturbed


def test_an_interrupted_experiment_says_what_is_done_and_continues(undisturbed, unused):
    driver = Driver(unused, *REPEATS)
    driver.wait("runs to train")
    wait_for_more(driver, client_of(unused), "cnn-seed0")
    driver.process.terminate()
    assert driver.wait() == 130, driver.output()
    runs = {run.info.run_name: run.info.status for run in runs_in(client_of(unused))}
    assert runs["cnn-seed0"] == "KILLED"
    assert set(runs.values()) <= {"FINISHED", "KILLED"}  # how far the others were is up to the machine
    done = [name.split("-")[0] for name, status in runs.items() if status == "FINISHED"]
    assert re.search(rf"mine +│ {done.count('mine')} ", driver.output())
    assert "the same command continues where it stopped" in driver.output()
    assert "Traceback" not in driver.output()
    assert not processes_in(unused)
    driver = Driver(unused, *REPEATS)
    assert driver.wait() == 0, driver.output()
    for name in ("mine", "cnn"):
        stopped = sum(run.startswith(name) and status == "KILLED" for run, status in runs.items())
        continued = f", {stopped} of them continued" if stopped else ""
        assert f"{name}: {2 - done.count(name)} of 2 runs to train on cpu{continued}\n" in driver.output()
    assert recorded(client_of(unused)) == undisturbed


def test_two_experiments_at_once_train_every_run_once(undisturbed, unused):
    drivers = [Driver(unused, *REPEATS) for _ in range(2)]
    for driver in drivers:
        assert driver.wait() == 0, driver.output()
    assert recorded(client_of(unused)) == undisturbed


WRITERS, CALLS, METRICS = 16, 50, 5


def write(folder):
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    client = store.connect(make=True)
    with locks.store_lock():
        experiment_id = store.open_experiment(client, "crowd")
    run_id = client.create_run(experiment_id).info.run_id
    for step in range(CALLS):
        client.log_batch(run_id, metrics=[Metric(str(name), step, 0, step) for name in range(METRICS)])
    client.set_terminated(run_id)


def test_16_processes_make_one_database_and_lose_nothing(tmp_path):
    writers = [WARM.Process(target=write, args=(tmp_path,)) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    client = client_of(tmp_path)
    runs = client.search_runs([client.get_experiment_by_name("crowd").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * WRITERS
    for run in runs:
        for name in range(METRICS):
            history = client.get_metric_history(run.info.run_id, str(name))
            assert [(point.step, point.value) for point in history] == [(step, step) for step in range(CALLS)]


class Line:
    """A proxy whose connections can be cut; it drops the first answer to a request that contains `lose`."""

    def __init__(self, port, lose):
        self.to, self.port, self.open, self.lose, self.deaf = port, free_port(), [], lose, None
        self.restore()

    def restore(self):
        self.listener = socket.create_server(("127.0.0.1", self.port))
        Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def accept(self, listener):
        while True:
            try:
                here, _ = listener.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self.to))
            self.open += [here, there]
            for a, b in ((here, there), (there, here)):
                Thread(target=self.carry, args=(a, b), daemon=True).start()

    def carry(self, one, other):
        with contextlib.suppress(OSError), other:
            while (data := one.recv(1 << 16)) and one is not self.deaf:
                if self.lose and self.lose in data:
                    self.lose, self.deaf = b"", other
                other.sendall(data)
            other.shutdown(socket.SHUT_RDWR)

    def cut(self):
        for end in (self.listener, *self.open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.open = []


def test_an_absent_server_costs_nothing_if_it_returns_and_one_line_if_not(undisturbed, unused, empty_server):
    runs = (*REPEATS, "--seeds", "1", "--jobs", "1")
    line, direct = Line(urlsplit(empty_server).port, lose=b'"cnn-seed0"'), MlflowClient(empty_server)
    address = f"http://127.0.0.1:{line.port}"
    settings = {"MLFLOW_TRACKING_URI": address, "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1"}

    driver = Driver(unused, *runs, **settings)
    wait_for_more(driver, direct, "mine-seed0")
    line.cut()
    time.sleep(5)
    line.restore()  # the runs continue
    wait_for_more(driver, direct, "cnn-seed0")
    driver.process.kill()
    driver.process.join()
    assert line.deaf

    driver = Driver(unused, *runs, **settings, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
    wait_for_more(driver, direct, "cnn-seed0")
    line.cut()  # it stays away
    assert driver.wait() == 1
    assert f"no answer from the tracking server {address}" in driver.output()
    assert "Traceback" not in driver.output()
    assert not processes_in(unused)

    line.restore()
    driver = Driver(unused, *runs, **settings)
    assert driver.wait() == 0, driver.output()
    assert recorded(direct) == {name: undisturbed[name] for name in ("mine-seed0", "cnn-seed0")}
