"""Experiments on digits through the command line, read back through MLflow."""

import csv
import io
import re
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import (
    EPOCH_METRICS,
    EXPERIMENTS,
    TEST_METRICS,
    Driver,
    experiment_arguments,
    processes_in,
    start_experiment,
    write_images,
)

from cifar_lab.config import load_config
from cifar_lab.data.cache import open_dataset
from cifar_lab.data.catalogue import CIFAR100
from cifar_lab.training.train import train

pytestmark = pytest.mark.slow


def test_two_parents_hold_two_finished_runs_each(tracked):
    parents = tracked.runs("tags.kind = 'repeats'")
    assert [parent.info.run_name for parent in parents] == ["linear", "cnn"]
    for parent in parents:
        children = tracked.runs(f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
        names = {f"{parent.info.run_name}-seed{seed}" for seed in (0, 1)}
        assert {child.info.run_name for child in children} == names
        assert {child.data.tags["config_hash"] for child in children} == {parent.data.tags["config_hash"]}
    assert {run.info.status for run in tracked.runs()} == {"FINISHED"}
    assert len(tracked.runs()) == 6


def test_every_epoch_is_logged_once_with_completed_epochs_as_the_step(tracked):
    for run in tracked.runs("tags.kind = 'run'"):
        for name in EPOCH_METRICS:
            assert [point.step for point in tracked.client.get_metric_history(run.info.run_id, name)] == [1, 2], name
        for name in TEST_METRICS:
            assert [point.step for point in tracked.client.get_metric_history(run.info.run_id, name)] == [2], name
        assert set(run.data.metrics) == {*EPOCH_METRICS, *TEST_METRICS}


def test_parameters_and_tags_say_what_ran(tracked):
    for run in tracked.runs("tags.kind = 'run'"):
        config = load_config(tracked.client.download_artifacts(run.info.run_id, "config.toml"))
        assert run.data.params == {k: str(v) for k, v in {**config.flat(), "seed": run.data.tags["seed"]}.items()}
        tags = run.data.tags
        assert config.hash(open_dataset(next(tracked.folder.glob("data/cache/*"))).digest) == tags["config_hash"]
        assert re.fullmatch("[0-9a-f]{40}|none", tags["mlflow.source.git.commit"])
        assert tags["git_dirty"] in ("true", "false")
        digests = [f"{what}_digest" for what in ("code", "lock", "data", "split", "weights")]
        for name in (*digests, "device", "torch", "mlflow"):
            assert tags[name]
        (train, test) = run.inputs.dataset_inputs
        assert [train.dataset.name, test.dataset.name] == ["digits-train", "digits-test"]
        assert train.dataset.digest == tags["data_digest"]


def test_weights_do_not_depend_on_process_or_runs_beside(tracked, tmp_path):
    for name in ("linear", "cnn"):
        (run,) = tracked.runs(f"tags.kind = 'run' and tags.experiment = '{name}' and tags.seed = '1'")
        config = load_config(tracked.client.download_artifacts(run.info.run_id, "config.toml"))
        dataset = open_dataset(next(tracked.folder.glob("data/cache/*")))
        assert train(config, 1, dataset, tmp_path / name, "cpu").weights_digest == run.data.tags["weights_digest"]


def test_no_tag_or_parameter_names_the_host_or_a_folder(tracked):
    host = subprocess.run(["uname", "-n"], capture_output=True, text=True).stdout.strip()
    for run in tracked.runs():
        text = " ".join([*run.data.params.values(), *run.data.tags.values()])
        for secret in (str(tracked.folder), str(sys.prefix), *([host] if len(host) > 3 else [])):
            assert secret not in text
    (model,) = tracked.client.search_logged_models([tracked.experiment_id])
    assert model.tags["mlflow.user"] == "-"
    assert model.tags["mlflow.source.name"].startswith("cifar_lab experiment ")


def test_artifacts_of_a_run(tracked):
    for run in tracked.runs("tags.kind = 'run'"):
        found = [path for path in tracked.artifacts(run) if not path.startswith("images/")]
        stages = [f"{kind}/{stage}{end}" for kind, end in KINDS for stage in ("test", "val")]
        assert sorted(found) == sorted([*stages, "confusion/val_epochs.png", *OTHERS])
        images = [path for path in tracked.artifacts(run, "images") if path.endswith(".png")]
        assert sorted(re.findall(r"val_confusion\+step\+(\d)", " ".join(images))) == ["1", "2"]


OTHERS = ("checkpoints/last.ckpt", "config.toml", "learning_curves.png")
KINDS = (
    ("confusion", ".csv"),
    ("confusion", ".png"),
    ("confusion", "_pairs.csv"),
    ("per_class", ".csv"),
    ("predictions", ".npz"),
)


def read_csv(tracked, run, path):
    text = Path(tracked.client.download_artifacts(run.info.run_id, path)).read_text()
    return list(csv.reader(io.StringIO(text)))


def test_the_most_frequent_errors_are_listed(tracked):
    for run in tracked.runs("tags.kind = 'run'"):
        header, *rows = read_csv(tracked, run, "confusion/test.csv")
        counts = {(row[0], name): int(n) for row in rows for name, n in zip(header[1:], row[1:], strict=True)}
        _, *errors = read_csv(tracked, run, "confusion/test_pairs.csv")
        listed = [int(error[2]) for error in errors]
        most = sorted((n for (true, predicted), n in counts.items() if true != predicted and n), reverse=True)
        assert listed == most[:20]
        for true, predicted, n, share in errors:
            assert int(n) == counts[true, predicted]
            assert float(share) == pytest.approx(int(n) / sum(counts[true, name] for name in header[1:]), abs=1e-4)


def test_confusion_counts_agree_with_the_accuracy_and_the_scores(tracked):
    run = tracked.runs("tags.kind = 'run'")[0]
    header, *rows = read_csv(tracked, run, "confusion/test.csv")
    counts = np.array([row[1:] for row in rows], dtype=int)
    assert header[1:] == [row[0] for row in rows] == [str(digit) for digit in range(10)]
    assert counts.sum() == 360
    assert counts.trace() / 360 == pytest.approx(run.data.metrics["test/acc"])
    _, *scores = read_csv(tracked, run, "per_class/test.csv")
    precision, recall = counts[3, 3] / counts[:, 3].sum(), counts[3, 3] / counts[3].sum()
    f1 = 2 * precision * recall / (precision + recall)
    assert [float(value) for value in scores[3][1:4]] == pytest.approx([precision, recall, f1], abs=1e-4)


def test_parent_holds_the_statistics_of_its_children(tracked):
    for parent in tracked.runs("tags.kind = 'repeats'"):
        children = tracked.runs(f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
        for name in ("val/acc", "test/acc", "test/loss"):
            values = [child.data.metrics[name] for child in children]
            assert parent.data.metrics[f"{name}_mean"] == pytest.approx(statistics.mean(values))
            assert parent.data.metrics[f"{name}_std"] == pytest.approx(statistics.stdev(values))
            half = 12.7062 * statistics.stdev(values) / 2**0.5  # Student's t for one degree of freedom
            assert parent.data.metrics[f"{name}_ci_high"] == pytest.approx(statistics.mean(values) + half, rel=1e-4)
        assert parent.data.metrics["n"] == 2
        curve = {p.step: p.value for p in tracked.client.get_metric_history(parent.info.run_id, "train/acc_mean")}
        histories = [tracked.client.get_metric_history(child.info.run_id, "train/acc") for child in children]
        assert curve == {step: pytest.approx(statistics.mean(h[step - 1].value for h in histories)) for step in (1, 2)}
        assert f"| {children[0].data.tags['seed']} | " in parent.data.tags["mlflow.note.content"]
        assert "learning_curves.png" in tracked.artifacts(parent)


def test_best_run_has_the_highest_validation_accuracy_and_is_the_champion(tracked, monkeypatch):
    children = tracked.runs("tags.kind = 'run'")
    best = max(children, key=lambda run: (run.data.metrics["val/acc"], -run.data.metrics["val/loss"]))
    assert [run.info.run_id for run in tracked.runs("tags.best = 'true'")] == [best.info.run_id]
    version = tracked.client.get_model_version_by_alias("digits", "champion")
    assert version.run_id == best.info.run_id
    assert f"best run: {best.info.run_name}" in tracked.output
    assert "use it: make predict MODEL=models:/digits@champion IMAGES=" in tracked.output
    assert f"val acc {best.data.metrics['val/acc']:.2%}, test acc {best.data.metrics['test/acc']:.2%}" in tracked.output

    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    mlflow.set_tracking_uri(tracked.client.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/digits@champion")
    dataset = open_dataset(next(tracked.folder.glob("data/cache/*")))
    for n in (1, 360):  # any batch size
        probabilities = model.predict(np.array(dataset.images["test"][:n]))
        assert probabilities.shape == (n, 10)
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    accuracy = (probabilities.argmax(1) == dataset.labels["test"]).mean()
    assert accuracy == pytest.approx(best.data.metrics["test/acc"], abs=0.01)  # served in fp32, scored in bf16 maybe
    assert not list(tracked.folder.glob("mlruns/**/*.pkl"))


def test_only_what_is_missing_is_trained(tracked):
    assert tracked.output.count(": 1 of 2 runs to train on cpu") == 2  # the first command had finished seed 0
    before = {run.info.run_id: run.to_dictionary() for run in tracked.runs()}
    driver = Driver(tracked.folder, *experiment_arguments("--seeds", "2", "--epochs", "2"))
    assert driver.wait() == 0, driver.output()
    output = driver.output()
    assert output.count(": 0 of 2 runs to train") == 2
    assert {run.info.run_id: run.to_dictionary() for run in tracked.runs()} == before


def test_a_failing_run_is_named_and_the_others_go_on(unused):
    arguments = ("--seeds", "1", "--set", "optim.learning_rate=1e38", "--epochs", "1")
    driver = Driver(unused, *experiment_arguments(*arguments))
    assert driver.wait() == 1, driver.output()
    output = driver.output()
    where = r"train loss is (nan|inf) at epoch 1, step \d+ of 10; try a smaller learning rate"
    assert re.search(f"linear-seed0 failed: {where}", output)
    assert re.search(f"cnn-seed0 failed: {where}", output)
    assert "no run has finished, so there is no best run" in output
    assert "Traceback" not in output
    client = mlflow.MlflowClient(f"sqlite:///{unused / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert [run.info.status for run in runs] == ["FAILED"] * 4
    assert sum(bool(re.search(where, run.data.tags.get("error", ""))) for run in runs) == 2


def test_ctrl_c_ends_the_runs_as_killed_and_leaves_no_process(unused):
    process = start_experiment(unused, "--seeds", "2", "--epochs", "500", "--jobs", "2", wait=False)
    lines = iter(process.stdout.readline, "")
    seen = ""
    for line in lines:
        seen += line
        if "epoch" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=300)[0]
    assert process.returncode == 130, seen + rest
    assert "interrupted; the same command continues where it stopped" in rest
    assert "Traceback" not in seen + rest
    client = mlflow.MlflowClient(f"sqlite:///{unused / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id], "tags.kind = 'run'")
    assert {run.info.status for run in runs} == {"KILLED"}
    assert not processes_in(unused)


def test_hundred_classes(tmp_path):
    write_images(tmp_path / "data" / "images", (10, 1), classes=CIFAR100.classes)
    linear = str(EXPERIMENTS / "linear.toml")
    arguments = ("experiment", linear, "--data", "cifar100", "--seeds", "1", "--epochs", "1")
    for settings in ((), ("--set", "model.one_vs_one=true"), ("--set", "data.labels=coarse")):
        driver = Driver(tmp_path, *arguments, *settings)
        assert driver.wait() == 0, driver.output()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for name, classes, count in (("cifar100-png", 100, 2), ("cifar100-png-coarse", 20, 1)):
        experiment_id = client.get_experiment_by_name(name).experiment_id
        runs = client.search_runs([experiment_id], "tags.kind = 'run' and attributes.status = 'FINISHED'")
        assert len(runs) == count
        for run in runs:
            path = Path(client.download_artifacts(run.info.run_id, "confusion/test.csv"))
            rows = list(csv.reader(path.read_text().splitlines()))
            assert len(rows) == len(rows[0]) == classes + 1
        champion = client.get_model_version_by_alias(name, "champion")
        assert champion.run_id in [run.info.run_id for run in runs]


def test_without_held_out_images_there_is_a_result_and_no_choice(unused):
    cnn = experiment_arguments("--seeds", "2", "--epochs", "1")[2:]  # the linear one is left out
    settings = ("--set", "data.val_size=0", "--set", "trainer.tta=true")
    driver = Driver(unused, "experiment", *cnn, *settings)
    assert driver.wait() == 0, driver.output()
    assert "no images are held out (data.val_size = 0), so there is nothing to choose a best run by" in driver.output()
    client = mlflow.MlflowClient(f"sqlite:///{unused / 'mlflow.db'}")
    experiment_id = client.get_experiment_by_name("digits").experiment_id
    children = client.search_runs([experiment_id], "tags.kind = 'run'")
    for run in children:
        assert set(run.data.metrics) == {*EPOCH_METRICS, *TEST_METRICS, "test/acc_tta"} - {"val/loss", "val/acc"}
        assert "images" not in [artifact.path for artifact in client.list_artifacts(run.info.run_id)]
    (parent,) = client.search_runs([experiment_id], "tags.kind = 'repeats'")
    mean = statistics.mean(run.data.metrics["test/acc_tta"] for run in children)
    assert parent.data.metrics["test/acc_tta_mean"] == pytest.approx(mean)
    assert re.search(rf"cnn +│ 2 +│ - +│.*│ {100 * mean:.2f} ± ", driver.output())
    assert not client.search_registered_models()
    for command, code, message in (
        (("best",), 0, "no images held out, so there is nothing to choose by"),
        (("compare", "cnn", "--metric", "val/acc"), 2, "--metric val/acc: not logged for cnn"),
        (("compare", "cnn", "--metric", "test/acc_tta"), 0, "drawn in comparison.png"),
        (("reproduce", children[0].info.run_id), 0, "identical: every metric of every epoch, and the weights"),
    ):
        driver = Driver(unused, *command)
        assert driver.wait() == code, driver.output()
        assert message in driver.output()
