"""Experiments that are killed, interrupted, doubled or cut off: nothing is lost, nothing is there twice."""

import random
import time

import pytest
from conftest import Driver, experiment_arguments, processes_in
from mlflow.tracking import MlflowClient

pytestmark = pytest.mark.slow

KILLS = 20
REPEATS = experiment_arguments("--seeds", "2", "--epochs", "24")
EPOCH_METRICS = ("train/loss", "train/acc", "val/loss", "val/acc", "lr", "epoch_seconds")
TEST_METRICS = ("test/loss", "test/acc")


def recorded(folder):
    """Of every run its status, weights and all metric points but the times, by name."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    found = {}
    for run in client.search_runs([experiment.experiment_id], "tags.kind = 'run'"):
        assert run.info.run_name not in found
        points = {
            name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
            for name in EPOCH_METRICS + TEST_METRICS
        }
        points["epoch_seconds"] = [step for step, _ in points["epoch_seconds"]]
        images = [file.path for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith(".png")]
        found[run.info.run_name] = (run.info.status, run.data.tags["weights_digest"], points, len(images))
    return found


def statuses(folder):
    if not (folder / "mlflow.db").exists():
        return []
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'run'") if experiment else []
    return [run.info.status for run in runs]


@pytest.fixture(scope="module")
def uninterrupted(tracked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "data").symlink_to(tracked.folder / "data")
    driver = Driver(folder, *REPEATS)
    assert driver.wait() == 0, driver.output()
    runs = recorded(folder)
    assert set(runs) == {"linear-seed0", "linear-seed1", "cnn-seed0", "cnn-seed1"}
    for status, _, points, images in runs.values():
        assert status == "FINISHED"
        assert [step for step, _ in points["val/acc"]] == points["epoch_seconds"] == list(range(1, 25))
        assert [step for step, _ in points["test/acc"]] == [24]
        assert images == 24
    return runs


def test_an_experiment_killed_at_20_moments_ends_like_one_that_was_not(uninterrupted, unused):
    moments = random.Random(0)
    while_training = 0
    for _ in range(KILLS):
        driver = Driver(unused, *REPEATS)
        time.sleep(moments.uniform(0.5, 4))
        assert driver.process.is_alive(), "it ended before it was killed: make it longer"
        driver.process.kill()
        driver.process.join()
        while_training += "RUNNING" in statuses(unused)
    assert while_training >= KILLS / 2
    driver = Driver(unused, *REPEATS)
    assert driver.wait() == 0, driver.output()
    assert recorded(unused) == uninterrupted
    assert not processes_in(unused)
