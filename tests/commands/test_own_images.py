"""The commands on images of your own: a folder with three classes, of which nothing is known beforehand."""

import json
import shutil

import pytest
from conftest import EXPERIMENTS, Driver, write_images
from mlflow.tracking import MlflowClient

from cifar_lab.__main__ import main

PETS = ("cat", "dog", "guinea pig")


@pytest.mark.slow
def test_a_folder_of_three_classes_is_trained_on_reported_and_reproduced(workplace, capsys):
    photos = write_images(workplace.parent / "photos", (30, 4), classes=PETS)
    shutil.rmtree(photos / "test")
    linear = str(EXPERIMENTS / "linear.toml")
    given = ("--seeds", "1", "--epochs", "2", "--data-dir", str(photos), "--data-name", "pets")
    driver = Driver(workplace, "experiment", linear, *given)
    assert driver.wait() == 0, driver.output()
    told = " ".join(driver.output().replace("│", " ").split())
    assert "pets (images of your own): 72 training and 18 test images, MLflow experiment 'pets'" in told
    assert "there is no test split: 18 images, a fifth of each class, are held out for it" in told
    assert "make predict MODEL=models:/pets@champion" in told

    assert main(["predict", str(photos / "train" / "dog" / "0000.png"), "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert {found["class"] for found in answer["predictions"]} == set(PETS)

    assert main(["report", "linear"]) == 0
    assert "SEEDS=1 DATA_DIR=&lt;the images of pets&gt;" in (workplace / "report.html").read_text()

    client = MlflowClient(f"sqlite:///{workplace / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("pets").experiment_id], "tags.kind = 'run'")
    shutil.rmtree(workplace / "data" / "cache")
    capsys.readouterr()
    assert main(["reproduce", run.info.run_id]) == 1
    told = "the images of pets are not in data/cache/; make data DATA_DIR=<their folder> decodes them"
    assert told in capsys.readouterr().err
    assert main(["reproduce", run.info.run_id, "--data-dir", str(photos)]) == 0
    assert "identical: every metric of every epoch, and the weights" in capsys.readouterr().out
