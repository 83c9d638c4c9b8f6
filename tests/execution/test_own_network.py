"""A network with dropout in a file outside the package: every command works on it as on the package's own.

That a killed run continues with the same bits: test_resume.
"""

import numpy as np
import pytest
from conftest import NETWORK, Driver, place
from mlflow.tracking import MlflowClient
from PIL import Image

pytestmark = pytest.mark.slow

RUNS = ("experiment", "mine", "--data", "digits", "--seeds", "2", "--accelerator", "cpu")


def said(folder, *arguments, code=0, **environment):
    driver = Driver(folder, *arguments, **environment)
    assert driver.wait() == code, driver.output()
    assert "Traceback" not in driver.output()
    return driver.output()


def digests(client):
    experiment = client.get_experiment_by_name("digits")
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'run'")
    return {run.info.run_name: (run.info.status, run.data.tags["weights_digest"]) for run in runs}


@pytest.fixture(scope="module")
def trained(tracked, empty_database, tmp_path_factory):
    """A folder in which two seeds were trained, undisturbed."""
    folder = place(tmp_path_factory.mktemp("trained"))
    (folder / "data").symlink_to(tracked.folder / "data")
    output = said(folder, *RUNS)
    assert "mine: 2 of 2 runs to train on cpu" in output
    assert "use it: make predict MODEL=models:/digits@champion" in output
    return folder, MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def test_a_run_keeps_its_network(trained, tmp_path):
    folder, client = trained
    experiment = client.get_experiment_by_name("digits").experiment_id
    run = client.search_runs([experiment], "attributes.run_name = 'mine-seed1'")[0]
    pixels = np.full((40, 40, 3), 90, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    (folder / "networks").rename(tmp_path / "networks")
    try:
        assert "identical: every metric of every epoch" in said(folder, "reproduce", run.info.run_id)
        by_run = said(folder, "predict", str(tmp_path / "grey.png"), "--model", run.info.run_id)
        assert by_run.count("%") == 3
        assert "mine" in said(folder, "report", run.data.tags["config_hash"], "--output", "page.html")
    finally:
        (tmp_path / "networks").rename(folder / "networks")
    assert said(folder, "predict", str(tmp_path / "grey.png")).count("%") == 3  # by the champion


def test_sweep_pairs_and_devices(trained, unused):
    place(unused)
    sweep = ("sweep", "mine", "--trials", "2", "--set", "model.share=0.0..0.5", "--data", "digits", "--epochs", "2")
    output = said(unused, *sweep, "--accelerator", "cpu")
    assert "model.share" in output
    assert len([*(unused / "experiments").glob("mine-*.toml")]) == 1
    output = said(unused, "pairs", "mine", "--data", "digits", "--seeds", "1", "--epochs", "2", "--accelerator", "cpu")
    assert "mine-pairs: accuracy on the test images of the two classes" in output
    said(unused, *RUNS, "--devices", "2", "--seeds", "1", "--epochs", "2")


def test_a_network_from_a_server_needs_trust(unused, empty_server):
    place(unused)
    said(unused, *RUNS, "--seeds", "1", "--epochs", "2", MLFLOW_TRACKING_URI=empty_server)
    client = MlflowClient(empty_server)
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id], "tags.kind = 'run'")
    reproduce = ("reproduce", run.info.run_id)
    assert "identical" in said(unused, *reproduce, MLFLOW_TRACKING_URI=empty_server)  # by the same file here
    (unused / "networks" / "mine.py").unlink()
    output = said(unused, *reproduce, code=1, MLFLOW_TRACKING_URI=empty_server)
    assert "read its artifact network.py, and give --trust to execute it" in output
    assert "identical" in said(unused, *reproduce, "--trust", MLFLOW_TRACKING_URI=empty_server)


def test_a_network_that_cannot_be_exported_costs_the_champion_in_one_line(unused):
    place(unused)
    file = unused / "networks" / "mine.py"
    file.write_text(NETWORK.replace("return self.layers(images)", "return self.layers(images * float(images.max()))"))
    output = said(unused, *RUNS, "--seeds", "1", "--epochs", "1")
    assert "it is not the champion of digits: torch.export can't take its network" in output
    assert digests(MlflowClient(f"sqlite:///{unused / 'mlflow.db'}"))["mine-seed0"][0] == "FINISHED"


def test_a_mistake_in_the_file_is_told_before_any_worker_starts(unused):
    place(unused)
    (unused / "networks" / "mine.py").write_text(NETWORK.replace("nn.Linear(192, 32)", "nn.Linear(190, 32)"))
    output = said(unused, *RUNS, code=2)
    assert output.splitlines()[-1].startswith("cifar_lab: networks/mine.py, line 20: RuntimeError: ")
    assert not MlflowClient(f"sqlite:///{unused / 'mlflow.db'}").get_experiment_by_name("digits")
