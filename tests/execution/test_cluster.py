"""Runs on a Ray cluster of two nodes, which are groups of processes on one machine, tracked on a server.

One of the networks is in a file outside the package.
"""

import os
import signal
import sys
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from conftest import EXPERIMENTS, Driver, experiment_arguments, place, recorded, statuses_of
from mlflow.tracking import MlflowClient

from cifar_lab.__main__ import main
from cifar_lab.tracking import locks

RUNS = ("experiment", str(EXPERIMENTS / "cnn.toml"), "mine", "--data", "digits", "--seeds", "1", "--epochs", "12")
SOON = {"health_check_period_ms": 500, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 4}


class Nodes:
    """A head without CPUs and two nodes with one each."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": SOON}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]
        self.address = self.cluster.address

    def kill(self):
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)
        self.nodes.append(self.cluster.add_node(num_cpus=1))


@pytest.fixture
def nodes(monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed (make test CLUSTER=1 installs it)")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default, the other tests would leave its workers no time
    nodes = Nodes()
    yield nodes
    nodes.cluster.shutdown()


@pytest.fixture
def alone(tracked, tmp_path_factory):
    """The record of the same runs without a cluster."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "data").symlink_to(tracked.folder / "data")
    driver = Driver(place(folder), *RUNS, "--jobs", "1")
    assert driver.wait() == 0, driver.output()
    return recorded(MlflowClient(f"sqlite:///{folder / 'mlflow.db'}"))


def wait_until(driver, condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.process.is_alive(), driver.output()
        assert time.monotonic() < deadline, driver.output()
        time.sleep(0.3)


def left_with_the_server(client):
    experiment = client.get_experiment_by_name("digits")
    found = client.search_runs([experiment.experiment_id], "tags.kind = 'run'") if experiment else []
    return {run.info.run_name: [f.path for f in client.list_artifacts(run.info.run_id, "unfinished")] for run in found}


@pytest.mark.slow
def test_ctrl_c_and_a_node_that_dies_cost_no_run_and_no_bit(nodes, alone, unused, empty_server):
    client = MlflowClient(empty_server)
    place(unused)

    def start():
        return Driver(unused, *RUNS, "--cluster", nodes.address, MLFLOW_TRACKING_URI=empty_server)

    driver = start()
    wait_until(driver, lambda: any(left_with_the_server(client).values()))
    os.kill(driver.process.pid, signal.SIGINT)
    assert driver.wait(seconds=60) == 130, driver.output()
    assert "the same command continues where it stopped" in driver.output()
    assert "RUNNING" not in statuses_of(client)
    assert "KILLED" in statuses_of(client)

    driver = start()
    wait_until(driver, lambda: "RUNNING" in statuses_of(client))
    nodes.kill()
    assert driver.wait(seconds=240) == 0, driver.output()
    assert "of them continued" in driver.output()
    assert recorded(client) == alone
    assert not any(left_with_the_server(client).values())
    assert "champion" in client.search_registered_models()[0].aliases


class Ray:
    """A fake of the library: nodes with two CPUs; tasks run at once in this process."""

    init = put = cancel = wait = staticmethod(lambda *arguments, **named: arguments[0] if arguments else None)

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}]

    def remote(self, **options):
        return lambda _: SimpleNamespace(remote=self.run)

    def run(self, call, *arguments):
        future = Future()
        try:
            future.set_result(call(*arguments))
        except Exception as error:
            wrapped = RuntimeError(f"a task failed\n{error}")
            wrapped.cause = error
            future.set_exception(wrapped)
        return SimpleNamespace(future=lambda: future)


@pytest.fixture
def on_ray(workplace, monkeypatch, capsys):
    """A function that runs a command with the fake; returns its exit code and the last line of its output."""
    monkeypatch.setitem(sys.modules, "ray", Ray())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # nothing listens there

    def run(*arguments):
        try:
            code = main([*arguments])
        except SystemExit as end:  # of argparse
            code = end.code
        said = capsys.readouterr()
        return code, (said.out + said.err).splitlines()[-1]

    return run


@pytest.mark.slow
def test_a_failure_on_a_node_costs_one_line(on_ray, empty_server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_server)
    linear = ("experiment", str(EXPERIMENTS / "linear.toml"), "--data", "digits", "--seeds", "1", "--epochs", "1")
    with locks.claim_cluster():
        taken = "cifar_lab: an experiment of this folder is running on a cluster; wait for it or stop it"
        assert on_ray(*linear, "--cluster", "auto") == (1, taken)
    code, line = on_ray(*linear, "--cluster", "auto", "--set", "optim.learning_rate=1e38")
    assert code == 1
    assert line.startswith("linear-seed0 failed: train loss is")


def test_mistakes_cost_one_line(on_ray, monkeypatch):
    for arguments, message in [
        (["--gpus", "1"], "--gpus is only for --cluster"),
        (["--gpus", "1.5"], "neither a whole number of GPUs nor a fraction of one"),
        (["--cluster", "auto", "--jobs", "2"], "leave out --jobs and --accelerator"),
        (["--cluster", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1: "),
        (
            ["--cluster", "auto", "--gpus", "0.5"],
            "no node of the cluster has the resources for a run: CPUs 1, GPUs 0.5",
        ),
    ]:
        code, line = on_ray(*experiment_arguments("--seeds", "1"), *arguments)
        assert code in (1, 2)
        assert message in line
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    line = "--cluster: set MLFLOW_TRACKING_URI to a server that all nodes reach"
    assert line in on_ray(*experiment_arguments("--seeds", "1"), "--cluster", "auto")[1]
