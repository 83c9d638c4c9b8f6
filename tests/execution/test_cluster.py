"""Runs on a Ray cluster of three nodes, which are groups of processes on one machine, tracked on a server."""

import os
import signal
import time

import pytest
from conftest import Driver, experiment_arguments, recorded, statuses_of
from mlflow.tracking import MlflowClient

pytest.importorskip("ray", reason="Ray is not installed (make test CLUSTER=1 installs it)")
pytestmark = pytest.mark.slow

SEEDS = experiment_arguments("--seeds", "2", "--epochs", "12")


SOON = {"health_check_period_ms": 500, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 4}


class Nodes:
    """A head without CPUs and three nodes with one each."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": SOON}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(3)]
        self.address = self.cluster.address

    def kill(self):
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)
        self.nodes.append(self.cluster.add_node(num_cpus=1))


@pytest.fixture(scope="module")
def nodes():
    nodes = Nodes()
    yield nodes
    nodes.cluster.shutdown()


@pytest.fixture(scope="module")
def alone(tracked, tmp_path_factory):
    """The record of the same runs trained on this machine, one at a time."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "data").symlink_to(tracked.folder / "data")
    driver = Driver(folder, *SEEDS, "--jobs", "1")
    assert driver.wait() == 0, driver.output()
    return recorded(MlflowClient(f"sqlite:///{folder / 'mlflow.db'}"))


def start(nodes, folder, server, *arguments):
    return Driver(folder, *SEEDS, "--cluster", nodes.address, *arguments, MLFLOW_TRACKING_URI=server)


def wait_until(driver, condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.process.is_alive(), driver.output()
        assert time.monotonic() < deadline, driver.output()
        time.sleep(0.1)


def left_with_the_server(client):
    experiment = client.get_experiment_by_name("digits")
    found = client.search_runs([experiment.experiment_id], "tags.kind = 'run'") if experiment else []
    return {run.info.run_name: [f.path for f in client.list_artifacts(run.info.run_id, "unfinished")] for run in found}


def test_a_node_that_dies_costs_no_run_and_no_bit(nodes, alone, unused, empty_server):
    client = MlflowClient(empty_server)
    driver = start(nodes, unused, empty_server)
    wait_until(driver, lambda: any(left_with_the_server(client).values()))
    nodes.kill()
    assert driver.wait(seconds=240) == 0, driver.output()
    assert recorded(client) == alone
    assert not any(left_with_the_server(client).values())
    assert "champion" in client.search_registered_models()[0].aliases


def test_an_interrupted_experiment_is_cancelled_then_continues_and_failures_cost_one_line(
    nodes, alone, unused, empty_server
):
    client = MlflowClient(empty_server)
    driver = start(nodes, unused, empty_server)
    wait_until(driver, lambda: any(left_with_the_server(client).values()))
    second = start(nodes, unused, empty_server)
    assert second.wait() == 1
    assert "an experiment of this folder is running on a cluster" in second.output()
    os.kill(driver.process.pid, signal.SIGINT)
    assert driver.wait(seconds=60) == 130, driver.output()
    assert "the same command continues where it stopped" in driver.output()
    assert "RUNNING" not in statuses_of(client)
    assert "KILLED" in statuses_of(client)
    driver = start(nodes, unused, empty_server)
    assert driver.wait(seconds=240) == 0, driver.output()
    assert "of them continued" in driver.output()
    assert recorded(client) == alone
    driver = start(nodes, unused, empty_server, "--seeds", "1", "--set", "optim.learning_rate=1e38")
    assert driver.wait() == 1
    assert "linear-seed0 failed: train loss is" in driver.output()
    assert "Traceback" not in driver.output()


def test_mistakes_cost_one_line(nodes, unused):
    server = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}  # not asked before the cluster
    for arguments, settings, message in [
        (["--cluster", "auto"], {}, "--cluster: set MLFLOW_TRACKING_URI to a server that all nodes reach"),
        (["--gpus", "1"], {}, "--gpus is only for --cluster"),
        (["--gpus", "1.5"], {}, "neither a whole number of GPUs nor a fraction of one"),
        (["--cluster", "auto", "--jobs", "2"], {}, "leave out --jobs and --accelerator"),
        (["--cluster", "127.0.0.1:1"], server, "no Ray cluster at 127.0.0.1:1: "),
        (
            ["--cluster", nodes.address, "--gpus", "0.5"],
            server,
            "no node of the cluster has the resources for a run: CPUs 1",
        ),
    ]:
        driver = Driver(unused, *SEEDS, *arguments, **settings)
        assert driver.wait() in (1, 2)
        assert message in driver.output().splitlines()[-1]
