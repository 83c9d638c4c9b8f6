"""Reproductions of tracked runs through the command line: identical, or what differs, and in which context."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import EXPERIMENTS, Driver, write_images
from mlflow.tracking import MlflowClient

from cifar_lab.commands.reproduce import compare_runs

pytestmark = pytest.mark.slow


def cifar_lab(folder, *arguments, **environment):
    driver = Driver(folder, *arguments, **environment)
    code = driver.wait()
    assert "Traceback" not in driver.output()
    return code, driver.output()


def run_of(tracked, name):
    (run,) = tracked.runs(f"attributes.run_name = '{name}'")
    return run


@pytest.mark.parametrize("name", ["linear-seed0", "cnn-seed1"])
def test_a_run_is_identical_when_trained_again(tracked, name):
    run = run_of(tracked, name)
    before = [run.to_dictionary() for run in tracked.runs("tags.kind != 'reproduction'")]
    code, output = cifar_lab(tracked.folder, "reproduce", run.info.run_id[:12])
    assert code == 0, output
    assert output.endswith("identical: every metric of every epoch, and the weights\n")
    (again,) = tracked.runs(f"tags.reproduces = '{run.info.run_id}'")
    assert (again.info.status, again.data.tags["kind"]) == ("FINISHED", "reproduction")
    assert "mlflow.parentRunId" not in again.data.tags
    assert again.data.tags["weights_digest"] == run.data.tags["weights_digest"]
    assert [run.to_dictionary() for run in tracked.runs("tags.kind != 'reproduction'")] == before
    shutil.rmtree(Path(again.info.artifact_uri))
    tracked.client.delete_run(again.info.run_id)  # the other tests count runs


@pytest.fixture
def copied(tracked, tmp_path):
    """A relocated copy of the tracked folder, its client and its run linear-seed0."""
    folder = shutil.copytree(tracked.folder, tmp_path / "copied")
    assert cifar_lab(folder, "relocate")[0] == 0
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([tracked.experiment_id], "attributes.run_name = 'linear-seed0'")
    return folder, client, run


def edit_config(client, run, old, new):
    """Change the tracked config of a run, and its digest."""
    file = Path(run.info.artifact_uri) / "config.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    client.set_tag(run.info.run_id, "digests", json.dumps({"config.toml": digest}))


EDITS = [
    (
        ("learning_rate = 0.01", "learning_rate = 0.02"),
        "0",
        r"different: first at epoch 1, train/loss: [\d.]+ tracked, [\d.]+ now; the weights differ\n"
        r"what else differs: optim.learning_rate: 0.01 tracked, 0.02 now\n",
    ),
    (
        ("epochs = 2", "epochs = 1"),
        "5",  # does not hide that an epoch is missing
        r"different: first at epoch 2, train/loss: [\d.]+ tracked, missing now; the weights differ\n"
        r"what else differs: trainer.epochs: 2 tracked, 1 now\n",
    ),
    (
        ("learning_rate = 0.01", "learning_rate = 0.010001"),
        "0.001",
        r"within 0.001: the largest difference is \S+; the weights differ\n",
    ),
]


@pytest.mark.parametrize(("edit", "tolerance", "verdict"), EDITS)
def test_a_changed_setting_is_found_and_named_unless_it_is_within_the_tolerance(copied, edit, tolerance, verdict):
    folder, client, run = copied
    edit_config(client, run, *edit)
    code, output = cifar_lab(folder, "reproduce", run.info.run_id, "--tolerance", tolerance)
    assert re.search(verdict, output), output
    assert code == ("different" in verdict)


def test_another_seed_is_found_and_named(copied):
    folder, client, run = copied
    client.set_tag(run.info.run_id, "seed", "7")
    code, output = cifar_lab(folder, "reproduce", run.info.run_id)
    assert code == 1
    assert "different: first at epoch 1, train/loss" in output
    assert "what else differs: seed: 0 tracked, 7 now" in output


def test_what_was_changed_behind_a_run_is_refused(copied):
    folder, client, run = copied
    artifacts = Path(run.info.artifact_uri)
    config = artifacts / "config.toml"
    config.write_text(config.read_text().replace("learning_rate = 0.01", "learning_rate = 0.02"))
    name = f"linear-seed0 ({run.info.run_id})"
    damaged = f"cifar_lab: the artifact config.toml of {name} is damaged\n"
    assert cifar_lab(folder, "reproduce", run.info.run_id) == (1, damaged)
    config.unlink()
    gone = f"cifar_lab: the artifact config.toml of {name} is missing\n"
    assert cifar_lab(folder, "reproduce", run.info.run_id) == (1, gone)

    (other,) = client.search_runs([run.info.experiment_id], "attributes.run_name = 'linear-seed1'")
    (picture,) = write_images(folder / "images", (1, 1)).glob("test/cat/*")
    predict = ("predict", str(picture), "--model", other.info.run_id)
    assert cifar_lab(folder, *predict)[0] == 0
    checkpoint = Path(other.info.artifact_uri) / "checkpoints" / "last.ckpt"
    kept, others = checkpoint.read_bytes(), (artifacts / "checkpoints" / "last.ckpt").read_bytes()
    foreign = f"the weights in the checkpoint of linear-seed1 ({other.info.run_id}) are not those that the run logged"
    broken = f"the checkpoint of linear-seed1 ({other.info.run_id}) is damaged ("
    for content, reason in ((others, foreign), (kept[: len(kept) // 2], broken)):
        checkpoint.write_bytes(content)
        code, output = cifar_lab(folder, *predict)
        assert (code, output.count("\n")) == (1, 1)
        assert reason in output


def test_other_images_than_those_of_the_run_are_refused(unused):
    images = write_images(unused / "images")
    linear = str(EXPERIMENTS / "linear.toml")
    arguments = ("experiment", linear, "--seeds", "1", "--epochs", "1", "--data-dir", str(images))
    code, output = cifar_lab(unused, *arguments)
    assert code == 0, output
    client = MlflowClient(f"sqlite:///{unused / 'mlflow.db'}")
    experiment_id = client.get_experiment_by_name("cifar10-png").experiment_id
    (run,) = client.search_runs([experiment_id], "tags.kind = 'run'")
    digest = run.data.tags["data_digest"]
    (images / "train" / "cat" / "0000.png").write_bytes((images / "train" / "dog" / "0000.png").read_bytes())
    code, output = cifar_lab(unused, "reproduce", run.info.run_id, "--data-dir", str(images))
    assert (code, output.splitlines()[-1].startswith("cifar_lab: linear-seed0 was trained on other images")) == (
        1,
        True,
    )
    assert re.search(
        rf"\(digest {digest[:12]}\) than those in \S+images: CIFAR-10 \(PNG copy\) \(digest [0-9a-f]{{12}}\)$", output
    )
    shutil.move(unused / "data", unused / "moved")
    code, output = cifar_lab(unused, "report", "linear", CIFAR_LAB_DATA=str(images))  # the cache is gone
    assert code == 1
    assert "data/" in output
    shutil.rmtree(unused / "data", ignore_errors=True)
    shutil.move(unused / "moved", unused / "data")
    code, output = cifar_lab(unused, "reproduce", run.info.run_id)  # the cache still has the images of then
    assert code == 0, output


def test_the_differing_context_of_two_runs_is_listed(tracked):
    first, second = run_of(tracked, "linear-seed0"), run_of(tracked, "cnn-seed0")
    verdict = compare_runs(tracked.client, first, second, 0.0)
    assert not verdict.holds
    context = "; ".join(verdict.context)
    for setting in ("model.kind: linear tracked, cnn now", "model.depth: None tracked, 2 now"):
        assert setting in context
    assert "images" not in context
    assert compare_runs(tracked.client, first, first, 0.0).holds


def test_an_id_that_several_runs_begin_with_is_refused(copied):
    folder, client, run = copied
    others = [client.create_run(run.info.experiment_id, tags=run.data.tags) for _ in range(16)]
    ids = [found.info.run_id for found in (run, *others)]
    shared = next(first for first in "0123456789abcdef" if sum(found.startswith(first) for found in ids) > 1)
    code, output = cifar_lab(folder, "reproduce", shared)
    assert (code, output.count("\n")) == (1, 1)
    assert f"runs have ids that begin with {shared}; give more digits" in output


def test_mistakes_cost_one_line(tracked, tmp_path):
    parent = tracked.runs("tags.kind = 'repeats'")[0]
    for prefix, message in (
        ("x", "no run has an id that begins with x"),
        ("0000000000000000", "no run has an id that begins with 0000000000000000"),
        (parent.info.run_id, "is not a finished run (linear, FINISHED)"),
    ):
        code, output = cifar_lab(tracked.folder, "reproduce", prefix)
        assert (code, output.count("\n")) == (1, 1)
        assert message in output
    for command in (("reproduce", "1"), ("compare", "linear"), ("best",), ("relocate",)):
        assert cifar_lab(tmp_path, *command) == (1, "cifar_lab: no mlflow.db here; run make experiment first\n")
    assert not (tmp_path / "mlflow.db").exists()
