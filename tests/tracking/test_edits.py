"""Edits in MLflow's UI lead neither to tracebacks nor to wrong results."""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import Driver, experiment_arguments
from mlflow.tracking import MlflowClient
from PIL import Image

pytestmark = pytest.mark.slow
EXPERIMENT = experiment_arguments("--epochs", "2", "--seeds")


@pytest.fixture
def copied(tracked, tmp_path):
    """A copy of the tracked folder, and its client."""
    folder = shutil.copytree(tracked.folder, tmp_path / "copied")
    cifar_lab(folder, "relocate")
    Image.new("RGB", (32, 32)).save(folder / "picture.png")
    return folder, MlflowClient(f"sqlite:///{folder / 'mlflow.db'}"), tracked.experiment_id


def cifar_lab(folder, *arguments, code=0):
    driver = Driver(folder, *arguments)
    assert driver.wait() == code, driver.output()
    assert "Traceback" not in driver.output()
    return driver.output()


def named(client, experiment_id, name):
    return client.search_runs([experiment_id], f"attributes.run_name = '{name}'")[0].info.run_id


def test_whatever_is_renamed_is_found_again(copied):
    folder, client, experiment_id = copied
    client.update_run(named(client, experiment_id, "linear"), name="$\\frac$ \\x")
    client.rename_experiment(experiment_id, "my $digits$")
    client.rename_registered_model("digits", "mine")
    output = cifar_lab(folder, *EXPERIMENT, "3")
    assert output.count("1 of 3 runs to train") == 2
    assert "make predict MODEL=models:/mine@champion" in output
    assert {e.name for e in client.search_experiments()} == {"Default", "my $digits$"}
    assert [model.name for model in client.search_registered_models()] == ["mine"]
    parents = client.search_runs([experiment_id], "tags.kind = 'repeats'")
    assert [parent.data.metrics["n"] for parent in parents] == [3, 3]
    assert "`$\\frac$ \\x` - `cnn`" in cifar_lab(folder, "compare", "linear", "cnn")
    cifar_lab(folder, "report", "linear", "cnn")
    cifar_lab(folder, "predict", "picture.png")


def test_runs_whose_tags_were_edited_are_left_out_and_named(copied):
    folder, client, experiment_id = copied
    parent = named(client, experiment_id, "linear")
    edited = {name: named(client, experiment_id, name) for name in ("linear-seed0", "cnn-seed0", "cnn-seed1")}
    client.delete_tag(edited["linear-seed0"], "data_digest")
    client.set_tag(edited["cnn-seed0"], "seed", "-3")
    client.delete_tag(edited["cnn-seed1"], "seed")
    foreign = client.create_run(experiment_id, tags={"mlflow.parentRunId": parent}, run_name="theirs")
    client.set_terminated(foreign.info.run_id)
    for command in (["best"], ["compare", "linear"], ["report", "linear"], [*EXPERIMENT[:2], *EXPERIMENT[3:], "2"]):
        output = cifar_lab(folder, *command)
        assert f"run linear-seed0 ({edited['linear-seed0']}) is left out: it has no tag data_digest\n" in output
        if command != ["best"]:
            assert f"run theirs ({foreign.info.run_id}) is left out: it was not made by cifar_lab\n" in output
    output = cifar_lab(folder, "best")
    assert f"run cnn-seed0 ({edited['cnn-seed0']}) is left out: its tag seed is '-3'\n" in output
    assert f"run cnn-seed1 ({edited['cnn-seed1']}) is left out: it has no tag seed\n" in output


def test_experiments_of_any_name_are_found_again(unused):
    names = ["my linear", "lr=0.1", "cnn+aug (v2)", "it's", "sub/8-1"]
    for index, name in enumerate(names):
        file = unused / "experiments" / f"{name}.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        classes = '[data]\nclasses = ["8", "1"]\n' if "8" in name else ""
        file.write_text(
            f'[model]\nkind = "linear"\n[optim]\nlearning_rate = 0.01{index}\n[trainer]\nepochs = 1\n{classes}'
        )
    output = cifar_lab(unused, "experiment", *names, "--data", "digits", "--seeds", "1")
    assert output.count("1 of 1 runs to train") == 5
    assert "it's" in cifar_lab(unused, "compare", *names[:4])
    cifar_lab(unused, "report", *names[:4])
    cifar_lab(unused, "experiment", "sub/8-1", "--data", "digits", "--seeds", "1", "--set", "optim.momentum=0.5")
    assert "`sub/8-1`" in cifar_lab(unused, "compare", "sub/8-1")  # of the two, as its file says


def test_of_two_sets_with_one_hash_one_can_be_chosen(copied):
    folder, client, experiment_id = copied
    first = named(client, experiment_id, "linear")
    client.delete_run(first)
    assert "linear: 2 of 2 runs to train" in cifar_lab(folder, *EXPERIMENT, "2")
    second = named(client, experiment_id, "linear")
    client.restore_run(first)
    output = cifar_lab(folder, "compare", "linear", code=1)
    assert re.search(r"linear names 2 experiments; give the run id of one: [0-9a-f]{32} .*, [0-9a-f]{32} ", output)
    assert {first, second} <= set(re.findall("[0-9a-f]{32}", output))
    cifar_lab(folder, "compare", second)
    assert "linear: 0 of 2 runs to train" in cifar_lab(folder, *EXPERIMENT, "2")


def test_a_model_of_somebody_else_is_not_unpickled(copied):
    folder, _, experiment_id = copied
    code = f"""
import mlflow, torch
mlflow.set_tracking_uri("sqlite:///mlflow.db")
mlflow.set_experiment(experiment_id="{experiment_id}")
options = dict(serialization_format="pickle", registered_model_name="theirs", pip_requirements=["torch"])
mlflow.pytorch.log_model(torch.nn.Linear(2, 2), name="model", metadata={{"classes": ["a", "b"]}}, **options)
"""
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    output = cifar_lab(folder, "predict", "picture.png", "--model", "models:/theirs/1", code=1)
    assert (
        output
        == "cifar_lab: models:/theirs/1 was not registered by cifar_lab: it is not an exported model with classes\n"
    )
    shutil.rmtree(next((folder / "mlruns").glob("digits/models/*/artifacts/data/model.pth")).parents[1])
    output = cifar_lab(folder, "predict", "picture.png", "--model", "models:/theirs/1", code=1)
    assert output == "cifar_lab: models:/theirs/1 is damaged (No such artifact: 'MLmodel')\n"
    assert output.count("\n") == 1


def test_a_champion_that_was_deleted_is_made_anew(copied):
    folder, client, _ = copied
    client.delete_model_version("digits", "1")
    assert "no champion yet" in cifar_lab(folder, "predict", "picture.png", code=1)
    cifar_lab(folder, *EXPERIMENT, "2")
    assert int(client.get_model_version_by_alias("digits", "champion").version) == 2
    cifar_lab(folder, "predict", "picture.png")
    newest = max(
        (folder / "mlruns").glob("digits/models/*/artifacts/data/model.pt2"), key=lambda path: path.stat().st_mtime
    )
    content = bytearray(newest.read_bytes())
    for changed in len(content) // 2, len(content) - 1:
        content[changed] ^= 1
        newest.write_bytes(content)
        output = cifar_lab(folder, "predict", "picture.png", code=1)
        assert output.startswith("cifar_lab: models:/digits@champion is damaged")
        assert output.count("\n") == 1
        content[changed] ^= 1
