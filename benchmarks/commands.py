"""Measurements of whole commands, each in its own process."""

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsOneClassifier

from benchmarks.inside import resolved
from benchmarks.table import Row, alternate, timed
from cifar_lab.data.cache import Dataset
from cifar_lab.data.selection import split_train
from cifar_lab.tracking import queries

FOLDER = Path.cwd()
SEEDS = 8


def run_experiment(dataset: Dataset, *arguments: str, accelerator: str = "cpu") -> tuple[float, float, list[Run]]:
    """Seconds of `cifar_lab experiment` without earlier runs, seconds until its first training step, and its runs."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "folder"
        folder.mkdir()
        for name in ("data", "experiments", "../shared"):  # so that it finds the same images
            (folder / name).symlink_to((FOLDER / name).resolve())
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        command = [sys.executable, "-m", "cifar_lab", "experiment", "--accelerator", accelerator, "--data", "cifar10"]
        began, passed = time.time(), timed()
        subprocess.run([*command, *arguments], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        seconds = passed()
        client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        found = list(client.search_runs(experiments, "tags.kind = 'run' and attributes.status = 'FINISHED'"))
        assert {run.data.tags["data_digest"] for run in found} == {dataset.digest[:32]}
        first_step = min(
            point.timestamp / 1000 - queries.history(client, run.info.run_id, "epoch_seconds")[0]  # after validation
            for run in found
            for point in client.get_metric_history(run.info.run_id, "train/acc")
            if point.step == 1
        )
        return seconds, first_step - began, found


def linear(dataset: Dataset) -> list[Row]:
    """All seeds of `linear`, multinomial and one-vs-one, against one fit of scikit-learn on the same split."""
    pixels = {split: dataset.images[split].reshape(len(dataset.labels[split]), -1) for split in ("train", "test")}
    mean, std = (np.tile(values, 1024).astype(np.float32) for values in (dataset.mean, dataset.std))
    scaled = {split: values.astype(np.float32) / 255 for split, values in pixels.items()}
    standardised = {split: (values - mean) / std for split, values in scaled.items()}
    train, _ = split_train(dataset.labels["train"], resolved("linear", dataset).data)
    ten, one_vs_one = _all_seeds(dataset), _all_seeds(dataset, "--set", "model.one_vs_one=true")
    rows = []
    for ours, label, model, inputs in (
        (ten, "LogisticRegression as it comes", LogisticRegression(), scaled),
        (ten, "the same, standardised, C = 1e-3", LogisticRegression(C=1e-3), standardised),
        (
            one_vs_one,
            "OneVsOneClassifier of that, ours one-vs-one",
            OneVsOneClassifier(LogisticRegression(C=1e-3)),
            standardised,
        ),
    ):
        passed = timed()
        model.fit(inputs["train"][train], dataset.labels["train"][train])
        other = passed()
        score = model.score(inputs["test"], dataset.labels["test"])
        seconds, text = ours
        what = f"4. `linear`, {SEEDS} seeds, against one fit of scikit-learn: {label}"
        rows.append(Row(what, text, f"{other:.1f} s, {score:.2%}", seconds / other, "lower"))
    return rows


def _all_seeds(dataset: Dataset, *settings: str) -> tuple[float, str]:
    """Seconds from the first run's start to the last one's end, and that with the accuracy in words."""
    seconds, _, found = run_experiment(dataset, "linear", "--seeds", str(SEEDS), *settings)
    training = (max(run.info.end_time for run in found) - min(run.info.start_time for run in found)) / 1000
    accuracy = np.mean([run.data.metrics["test/acc"] for run in found])
    return training, f"{training:.1f} s, whole command {seconds:.1f} s, {accuracy:.2%}"


def jobs(dataset: Dataset) -> list[Row]:
    """Two short runs of the CNN beside each other, against one after the other."""

    def rate(*arguments: str) -> float:
        short = ("cnn", "--seeds", "2", "--epochs", "1", "--set", "data.sides=[20]")
        return 2 * 60 / run_experiment(dataset, *short, *arguments)[0]

    threads = ("--set", f"trainer.threads={os.cpu_count()}")
    sides = [("--jobs", "auto"), ("--jobs", "1"), ("--jobs", "1", *threads)]
    auto, one, wide = alternate([partial(rate, *side) for side in sides])
    return [
        Row(what, f"{auto:.2f} runs/min", f"{other:.2f} runs/min", auto / other, "higher")
        for what, other in (
            ("5. short `cnn` runs, `--jobs auto` against `--jobs 1`", one),
            ("5. the same, against `--jobs 1` with all threads for a run", wide),
        )
    ]


def startup(dataset: Dataset) -> list[Row]:
    """From the command to the first training step, against importing torch, pytorch_lightning and mlflow."""

    def first_step() -> float:
        return run_experiment(dataset, "linear", "--seeds", "1", "--epochs", "1")[1]

    def imports() -> float:
        passed = timed()
        subprocess.run([sys.executable, "-c", "import torch, pytorch_lightning, mlflow"], check=True)
        return passed()

    ours, other = alternate([first_step, imports])
    what = "6. from the command to the first step, against importing torch, pytorch_lightning and mlflow"
    return [Row(what, f"{ours:.1f} s", f"{other:.1f} s", ours / other, "lower")]
