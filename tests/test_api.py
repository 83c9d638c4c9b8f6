"""`import cifar_lab`: light, lazy, and in agreement with the commands."""

import ast
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import nbformat
import numpy as np
import pytest
import torch
from conftest import EXPERIMENTS, REPOSITORY
from nbclient import NotebookClient
from PIL import Image

import cifar_lab
from cifar_lab.__main__ import main

LINEAR, CNN = (str(EXPERIMENTS / f"{name}.toml") for name in ("linear", "cnn"))
EPOCHS = ["trainer.epochs=2"]
HEAVY = ("torch", "pytorch_lightning", "mlflow", "matplotlib", "pandas", "numpy", "scipy", "pydantic")


@pytest.fixture
def here(tracked, monkeypatch):
    """The folder of the tracked runs as the current one."""
    monkeypatch.chdir(tracked.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("CIFAR_LAB_DATA", raising=False)
    return tracked


def run_of(tracked, name):
    (run,) = tracked.runs(f"tags.kind = 'run' and attributes.run_name = '{name}'")
    return run


def python(folder, code):
    """What a script without a guard prints, started in `folder`."""
    (folder / "script.py").write_text(code)
    environment = {k: v for k, v in os.environ.items() if k not in ("CIFAR_LAB_DATA", "MLFLOW_TRACKING_URI")}
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_is_light_and_so_are_settings_and_errors(tmp_path):
    code = f"import sys, cifar_lab; dir(cifar_lab); print([n for n in {HEAVY} if n in sys.modules])"
    assert python(tmp_path, code) == "[]\n"
    names, most = "UserError, experiment", HEAVY[:-1]  # settings are pydantic's
    code = f"import sys; from cifar_lab import {names}; print([n for n in {most} if n in sys.modules])"
    assert python(tmp_path, code) == "[]\n"


def test_names_are_the_same_for_editors_and_at_run_time():
    tree = ast.parse((REPOSITORY / "cifar_lab/__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))  # TYPE_CHECKING
    imported = sorted(alias.name for node in block.body for alias in node.names)
    assert imported == sorted(cifar_lab.__all__) == dir(cifar_lab)
    for name in cifar_lab.__all__:
        assert getattr(cifar_lab, name).__doc__, name
    with pytest.raises(AttributeError, match="module 'cifar_lab' has no attribute 'trian'"):
        cifar_lab.trian  # noqa: B018


@pytest.mark.parametrize("file", [LINEAR, CNN])
def test_an_untracked_training_is_the_tracked_one_and_leaves_torch_as_it_was(here, file):
    def settings():
        return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist()

    before, files = settings(), sorted(here.folder.rglob("*"))
    images = cifar_lab.dataset("digits")
    result = cifar_lab.train(cifar_lab.load_config(file, EPOCHS), 1, images)
    tracked = run_of(here, f"{pathlib.Path(file).stem}-seed1")
    assert result.weights_digest == tracked.data.tags["weights_digest"]
    assert result.test["test/acc"] == tracked.data.metrics["test/acc"]
    assert result.epochs[-1].metrics["val/acc"] == tracked.data.metrics["val/acc"]
    assert result.model.confusion["test"].sum() == len(images.images["test"]) == 360
    assert settings() == before
    assert sorted(here.folder.rglob("*")) == files


def test_an_interrupt_ends_a_training_as_an_interrupt(here):
    def interrupt():
        while not torch.are_deterministic_algorithms_enabled():
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    images, config = cifar_lab.dataset("digits"), cifar_lab.load_config(LINEAR, ["trainer.epochs=100000"])
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    torch.use_deterministic_algorithms(False)  # another test may have left them on
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            cifar_lab.train(config, 0, images)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        signal.signal(signal.SIGINT, handler)


SCRIPT = f"""
import cifar_lab
print("once")
images = cifar_lab.dataset("digits")
for _ in range(2):
    runs = cifar_lab.experiment({LINEAR!r}, [1], images, overrides={EPOCHS}, accelerator="cpu")
    print(runs[["run_id", "experiment", "seed", "status", "config_hash", "test/acc"]].to_json(orient="records"))
config = cifar_lab.load_config({LINEAR!r}, ["trainer.epochs=1", "trainer.devices=2"])
print("two devices", len(cifar_lab.train(config, 0, images, "cpu").epochs))
"""


def test_a_script_without_a_guard_makes_the_tracked_runs_and_finds_them_again(unused, tracked):
    output = python(unused, SCRIPT)
    lines = output.splitlines()
    assert lines.count("once") == lines.count("two devices 1") == 1
    assert [line for line in lines if "to train" in line] == [f"linear: {n} of 1 runs to train on cpu" for n in (1, 0)]
    (first,), (second,) = (json.loads(line) for line in lines if line.startswith("["))
    assert first == second
    expected = run_of(tracked, "linear-seed1")
    assert (first["experiment"], first["seed"], first["status"]) == ("linear", 1, "FINISHED")
    assert first["config_hash"] == expected.data.tags["config_hash"]
    assert first["test/acc"] == pytest.approx(expected.data.metrics["test/acc"])


def test_runs_have_their_metrics_and_settings(here):
    table = cifar_lab.runs()
    assert list(table.columns[:6]) == ["run_id", "dataset", "experiment", "config_hash", "seed", "status"]
    assert table[["experiment", "seed"]].values.tolist() == [["cnn", 0], ["cnn", 1], ["linear", 0], ["linear", 1]]
    assert set(table["dataset"]) == {"digits"}
    assert set(table["status"]) == {"FINISHED"}
    row, expected = table.iloc[3], run_of(here, "linear-seed1")
    assert row["run_id"] == expected.info.run_id
    for metric in ("val/acc", "test/acc", "test/loss", "train/loss", "lr"):
        assert row[metric] == expected.data.metrics[metric]
    assert row["optim.learning_rate"] == 0.01
    assert row["data.val_size"] == 143
    assert row["trainer.precision"] == "fp32"
    assert row["model.one_vs_one"] is np.False_
    assert table["data.sides"].tolist() == [(16, 32)] * 2 + [(32,)] * 2
    assert cifar_lab.runs("linear")["run_id"].tolist() == table["run_id"].tolist()[2:]
    assert cifar_lab.runs(table["config_hash"].unique())["run_id"].tolist() == table["run_id"].tolist()


def test_curves_have_a_row_per_epoch(here):
    table = cifar_lab.curves(["linear"])
    metrics = ["epoch_seconds", "lr", "train/acc", "train/cross_entropy", "train/loss", "val/acc", "val/loss"]
    assert list(table.columns) == ["run_id", "experiment", "config_hash", "seed", "epoch", *metrics]
    assert table[["seed", "epoch"]].values.tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    run = run_of(here, "linear-seed1")
    points = here.client.get_metric_history(run.info.run_id, "val/acc")
    assert table["val/acc"][2:].tolist() == [point.value for point in sorted(points, key=lambda point: point.step)]
    assert len(cifar_lab.curves()) == 8


def test_a_loaded_model_answers_like_predict(here, tmp_path, capsys):
    images = cifar_lab.dataset("digits").images["test"][:3]
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    champion = here.client.get_model_version_by_alias("digits", "champion").run_id
    best = max(here.runs("tags.kind = 'run'"), key=lambda run: run.data.metrics["val/acc"])
    assert champion == best.info.run_id
    worse = "cnn" if best.info.run_name.startswith("linear") else "linear"
    for name in (None, "models:/digits@champion", champion[:12], best.data.tags["experiment"], worse):
        assert main(["predict", str(tmp_path), "--json", "--top", "10", *(["--model", name] if name else [])]) == 0
        answers = json.loads(capsys.readouterr().out)
        model = cifar_lab.load(name)
        probabilities = model(images)
        assert (probabilities.shape, probabilities.dtype) == ((3, 10), np.float32)
        for answer, row in zip(answers, probabilities, strict=True):
            found = {p["class"]: p["probability"] for p in answer["predictions"]}
            assert [found[name] for name in model.classes] == pytest.approx(row.tolist(), abs=1e-6)


def test_a_model_takes_any_number_of_images_and_nothing_else(here):
    images = cifar_lab.dataset("digits").images["test"]
    model = cifar_lab.load("linear")
    labels = cifar_lab.dataset("digits").labels["test"]
    counts = cifar_lab.confusion("linear")
    predicted = model(images).argmax(axis=1)
    assert (predicted == labels).sum() == np.diag(counts).sum()
    assert counts.loc["3", "8"] == ((labels == 3) & (predicted == 8)).sum()
    assert (counts.index.name, counts.columns.name) == ("true", "predicted")
    assert model(images[:0]).shape == (0, 10)
    for wrong in (images[0], images.astype(np.float32), images[:, :16]):
        with pytest.raises(cifar_lab.UsageError, match=r"a model takes \(n, 32, 32, 3\), uint8"):
            model(wrong)


def test_compare_has_the_numbers_of_the_command(here, tmp_path, capsys):
    assert main(["compare", "linear", "cnn", "--figure", str(tmp_path / "a.png")]) == 0
    output = capsys.readouterr().out
    (row,) = cifar_lab.compare(["linear", "cnn"]).to_dict("records")
    names = ("mean", "ci_low", "ci_high", "images_ci_low", "images_ci_high")
    mean, low, high, images_low, images_high = (f"{100 * row[name]:+.2f}" for name in names)
    (shown,) = [line.strip("|").split("|") for line in output.splitlines() if line.startswith("| `linear` - `cnn`")]
    cells = [cell.strip() for cell in shown]
    assert cells[2:5] == [mean, f"{low} to {high}", f"{images_low} to {images_high}"]
    assert (cells[6], cells[8]) == (f"{row['p']:.3g}", row["verdict"])
    assert (row["first"], row["second"], row["paired"]) == ("linear", "cnn", True)
    accuracies = cifar_lab.runs().groupby("experiment")["test/acc"].mean()
    assert row["mean"] == pytest.approx(accuracies["linear"] - accuracies["cnn"])


MISTAKES = [
    (lambda: cifar_lab.load_config("lineer"), "no experiment 'lineer'; experiments/ has: none"),
    (lambda: cifar_lab.train("lineer"), "no experiment 'lineer'"),
    (lambda: cifar_lab.train(LINEAR, -1), r"seeds = \[-1\] is neither a count from 1 to 10,000 nor different seeds"),
    (lambda: cifar_lab.train(LINEAR, accelerator="tpu"), "accelerator = 'tpu': use auto, cpu or gpu"),
    (lambda: cifar_lab.dataset("cifar"), "no data set 'cifar'; use auto, cifar10, cifar100, digits"),
    (lambda: cifar_lab.dataset(data_dir="nowhere"), "data directory nowhere does not exist"),
    (lambda: cifar_lab.experiment([LINEAR, LINEAR]), "an experiment is named twice: linear, linear"),
    (lambda: cifar_lab.experiment(LINEAR, 0), "seeds = 0 is neither"),
    (lambda: cifar_lab.experiment(LINEAR, [1, 1]), r"seeds = \[1, 1\] is neither"),
    (lambda: cifar_lab.experiment(LINEAR, 1.5), "seeds = 1.5 is neither"),
    (lambda: cifar_lab.experiment(LINEAR, overrides=["optim.lr=1"]), "unknown key optim.lr"),
    (lambda: cifar_lab.compare("linear"), "two or more experiments"),
    (lambda: cifar_lab.compare(["linear", "cnn"], "acc"), "metric = 'acc': use test/acc, test/acc_tta"),
    (lambda: cifar_lab.runs(), "no mlflow.db here; run make experiment first"),
    (lambda: cifar_lab.load(), "no mlflow.db here; run make experiment first"),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_user_errors_of_one_line(workplace, call, message):
    with pytest.raises(cifar_lab.UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_names_without_runs_are_user_errors(here):
    for call in (cifar_lab.runs, cifar_lab.curves, cifar_lab.load, cifar_lab.confusion):
        with pytest.raises(cifar_lab.UserError, match=r"^(lineer: no runs with that name|no run has an id)"):
            call("lineer")


def test_experiments_are_refused_in_other_threads(workplace):
    caught = []

    def call():
        try:
            cifar_lab.experiment(LINEAR)
        except cifar_lab.UsageError as error:
            caught.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert caught == ["experiment() has to be called in the main thread: it handles Ctrl-C"]


TOUR = REPOSITORY / "docs/tour.ipynb"


@pytest.mark.slow
def test_the_tour_runs_on_digits(unused, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(unused / "ipython"))
    (unused / "docs").mkdir()
    (unused / "experiments").symlink_to(REPOSITORY / "experiments")
    tour = nbformat.read(TOUR, 4)
    settings = 'DATA, SEEDS, EPOCHS = "auto", 3, 3'
    assert sum(settings in cell.source for cell in tour.cells) == 1
    for cell in tour.cells:
        cell.source = cell.source.replace(settings, 'DATA, SEEDS, EPOCHS = "digits", 2, 1')
    shown = [shape(cell) for cell in tour.cells]
    NotebookClient(tour, timeout=300, resources={"metadata": {"path": unused / "docs"}}).execute()
    assert [shape(cell) for cell in tour.cells] == shown  # as many tables and pictures as in the file
    texts = [output.text for cell in tour.cells for output in cell.get("outputs", []) if "text" in output]
    assert any("linear: 2 of 2 runs to train on" in text for text in texts)
    assert not any("\x1b" in text for text in texts)
    assert (unused / "mlflow.db").exists()


def shape(cell):
    """The kinds of results that a cell shows."""
    return [sorted(output.data) for output in cell.get("outputs", []) if "data" in output]


def test_the_tour_is_small_and_shows_results_of_the_original_images():
    text = TOUR.read_text()
    assert len(text) < 400_000
    assert "CIFAR-10 (original pixels)" in text
    outputs = [output for cell in nbformat.reads(text, 4).cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert "site-packages" not in text
