"""evaluate: on corruptions, foreign images and published files; what it tracks, and that runs stay as they were."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import EXPERIMENTS, Driver, write_images
from mlflow.tracking import MlflowClient
from sklearn.metrics import log_loss

import cifar_lab
from cifar_lab.analysis.calibration import fit_temperature
from cifar_lab.analysis.comparison import summarise
from cifar_lab.data.cache import open_dataset
from cifar_lab.data.catalogue import CIFAR10
from cifar_lab.data.corruptions import COMPUTED, NAMES, corrupt
from cifar_lab.tracking.summaries import load_predictions

pytestmark = pytest.mark.slow


class Lab:
    """A folder with runs on one data set."""

    def __init__(self, folder, data):
        self.folder, self.client = folder, MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        self.experiment_id = self.client.get_experiment_by_name(data).experiment_id
        folders = [meta.parent for meta in folder.glob("data/cache/*/meta.json")]
        (self.dataset,) = [found for found in map(open_dataset, folders) if found.name == data]

    def __call__(self, *arguments, code=0):
        driver = Driver(self.folder, "evaluate", *map(str, arguments))
        assert driver.wait() == code, driver.output()
        assert "Traceback" not in driver.output()
        return driver.output()

    def runs(self):
        return {run.info.run_name: run for run in self.client.search_runs([self.experiment_id])}

    def points(self):
        """Status, end, hash and all points of all runs."""
        found = {}
        for name, run in self.runs().items():
            histories = {m: self.client.get_metric_history(run.info.run_id, m) for m in run.data.metrics}
            points = {m: [(p.value, p.step, p.timestamp) for p in history] for m, history in histories.items()}
            found[name] = run.info.status, run.info.end_time, run.data.tags["config_hash"], points
        return found

    def table(self, name, path="corruptions"):
        run_id = self.runs()[name].info.run_id
        return pd.read_csv(self.client.download_artifacts(run_id, f"evaluate/{path}.csv"))


@pytest.fixture(scope="module")
def evaluated(tracked, tmp_path_factory):
    """The tracked runs of `linear` on digits, all points before, and the output of evaluate, with foreign images."""
    folder = tmp_path_factory.mktemp("evaluate") / "copy"
    shutil.copytree(tracked.folder, folder)
    assert Driver(folder, "relocate").wait() == 0
    lab = Lab(folder, "digits")
    greys = write_images(tmp_path_factory.mktemp("foreign") / "greys", (4, 4), classes=("light", "dark"))
    return lab, lab.points(), lab("linear", "--against", greys), greys


def test_both_seeds_are_tested_on_all_corruptions_and_tracked(evaluated):
    lab, _, output, _ = evaluated
    runs, rows = lab.runs(), lab.table("linear")
    assert "not the published CIFAR-10-C files" in output
    assert "not the published CIFAR-10-C files" in runs["linear"].data.tags["evaluate.corruptions"]
    assert len(rows) == 2 * (1 + len(COMPUTED) * 5)
    for seed in (0, 1):
        own, found = rows[rows["seed"] == seed], runs[f"linear-seed{seed}"].data.metrics
        corrupted = own[own["images"] != "test"]
        assert found["corruptions/acc_mean"] == pytest.approx(corrupted["acc"].mean())
        assert found["corruptions/nll_scaled"] == pytest.approx(corrupted["nll_scaled"].mean())
        assert found["corruptions/fog"] == pytest.approx(own[own["images"] == "fog"]["acc"].mean())
        assert own[own["images"] == "test"]["acc"].item() == pytest.approx(found["test/acc"])
        assert len(lab.table(f"linear-seed{seed}")) == len(own)
    accuracies = summarise([runs[f"linear-seed{seed}"].data.metrics["corruptions/acc_mean"] for seed in (0, 1)])
    found = runs["linear"].data.metrics
    assert [found[f"corruptions/{m}"] for m in ("n", "acc_mean", "acc_mean_ci_low", "acc_mean_ci_high")] == [
        *(2, accuracies.mean, accuracies.ci_low, accuracies.ci_high)
    ]
    shown = f"{100 * accuracies.mean:.1f} ± {100 * (accuracies.ci_high - accuracies.mean):.1f}"
    assert re.search(rf"^\| mean .*\| {re.escape(shown)} +\| [\d.]+ +\|$", output, re.MULTILINE)
    artifacts = [file.path for file in lab.client.list_artifacts(runs["linear"].info.run_id, "evaluate")]
    assert "evaluate/corruptions.png" in artifacts


def test_ensemble_is_the_mean_of_the_probabilities(evaluated, monkeypatch):
    lab, _, output, _ = evaluated
    monkeypatch.chdir(lab.folder)
    models = [cifar_lab.load(lab.runs()[f"linear-seed{seed}"].info.run_id) for seed in (0, 1)]
    images, labels = lab.dataset.images["test"], lab.dataset.labels["test"]
    mean = np.mean([model(images) for model in models], axis=0)
    scores = lab.table("linear", "corruptions-scores").set_index(["images", "score"])
    assert scores.loc["test", "acc_ensemble"]["mean"] == (mean.argmax(1) == labels).mean()
    assert scores.loc["test", "nll_ensemble"]["mean"] == pytest.approx(log_loss(labels, mean), rel=1e-5)
    fog = [np.mean([model(corrupt(images, "fog", strength)) for model in models], axis=0) for strength in range(1, 6)]
    accuracy = np.mean([(found.argmax(1) == labels).mean() for found in fog])
    assert re.search(rf"^\| fog .*\| {100 * accuracy:.1f} +\|$", output, re.MULTILINE)
    assert (
        lab.runs()["linear"].data.metrics["corruptions/acc_ensemble"]
        == scores.loc["corruptions", "acc_ensemble"]["mean"]
    )


def test_report_shows_what_was_tracked(evaluated):
    lab, _, output, _ = evaluated
    driver = Driver(lab.folder, "report", "linear", "--output", "evaluated.html")
    assert driver.wait() == 0, driver.output()
    page = (lab.folder / "evaluated.html").read_text()
    assert "not the published CIFAR-10-C files" in page
    rows = re.findall(
        r"^\| (?:test|corruptions) +\| (?:as trained|temperature scaled|ensemble) .*$", output, re.MULTILINE
    )
    assert len(rows) == 6
    for row in rows:
        images, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert f'<th scope="row">{images}</th><td data-column="probabilities">{cells[0]}</td>' in page
        assert all(f">{cell}</td>" in page for cell in cells)
    assert 'alt="Accuracy of linear by corruption and strength, mean over seeds"' in page


def test_numbers_are_those_of_the_models_on_the_corrupted_images(evaluated, monkeypatch):
    lab, _, output, _ = evaluated
    monkeypatch.chdir(lab.folder)
    run, rows, dataset = lab.runs()["linear-seed1"], lab.table("linear-seed1"), lab.dataset
    model = cifar_lab.load(run.info.run_id)
    predicted = model(corrupt(dataset.images["test"], "contrast", 5)).argmax(1)
    found = rows[(rows["images"] == "contrast") & (rows["strength"] == 5)]
    assert found["acc"].item() == (predicted == dataset.labels["test"]).mean()
    temperature = fit_temperature(*load_predictions(lab.client, run, "val"))  # float16
    assert run.data.metrics["calibration/temperature"] == pytest.approx(temperature, rel=0.01)
    scores = lab.table("linear", "corruptions-scores").set_index(["images", "score"])
    auroc = scores.loc["greys", "auroc"]
    half = auroc["ci_high"] - auroc["mean"]
    assert f"against greys (images of your own): {auroc['mean']:.4f} ± {half:.4f}\n" in output
    assert lab.runs()["linear"].data.metrics["ood/greys"] == auroc["mean"]
    after = scores.loc["test", "nll_scaled"]
    assert f"| {after['mean']:.4f} ± {after['ci_high'] - after['mean']:.4f} " in output


def told(output):
    return [line for line in output.splitlines() if "━" not in line]  # progress


def test_runs_stay_as_they_were_and_a_second_time_changes_nothing(evaluated, monkeypatch):
    lab, before, output, greys = evaluated
    first = lab.points()
    for name, (*described, points) in before.items():
        assert first[name][:3] == tuple(described)
        assert {metric: first[name][3][metric] for metric in points} == points
    assert first["cnn"] == before["cnn"]
    cached = next(lab.folder.glob("data/cache/corruptions/*/fog.npz"))
    whole = cached.read_bytes()
    cached.write_bytes(whole[:5000] + b"damaged" + whole[5007:])
    second = lab("linear", "--against", greys)
    assert told(second) == told(output)
    assert lab.points() == first
    monkeypatch.chdir(lab.folder)
    curves = cifar_lab.curves("linear")
    assert len(curves) == 4
    assert not [column for column in curves if re.match("corruptions|calibration|ood", column)]


def test_one_run_and_some_corruptions_give_metrics_but_no_tables(evaluated):
    lab, _, _, _ = evaluated
    run = lab.runs()["cnn-seed0"]
    output = lab(run.info.run_id[:12], "--corruptions", "fog", "snow")
    assert "cnn-seed0, n = 1; " in output
    assert "±" not in output
    runs = lab.runs()
    found = runs["cnn-seed0"].data.metrics
    assert {name for name in found if name.startswith("corruptions")} == {"corruptions/fog", "corruptions/snow"}
    assert not lab.client.list_artifacts(run.info.run_id, "evaluate")
    assert "corruptions/fog" not in runs["cnn"].data.metrics


def test_published_files_are_read(workplace, image_folder, tmp_path):
    """With the test images themselves as the "corrupted" ones, the accuracy is that of the run."""
    given = ("--seeds", "1", "--epochs", "1", "--data-dir", str(image_folder))
    driver = Driver(workplace, "experiment", str(EXPERIMENTS / "linear.toml"), *given, "--set", "data.val_size=0")
    assert driver.wait() == 0, driver.output()
    lab = Lab(workplace, "cifar10-png")
    assert lab.dataset.classes == CIFAR10.classes
    images, labels = lab.dataset.images["test"], lab.dataset.labels["test"]
    published, newer = tmp_path / "CIFAR-10-C", tmp_path / "CIFAR-10.1"
    for folder in (published, newer):
        folder.mkdir()
    for name in NAMES:
        strengths = [images] * 4 + [np.zeros_like(images)]
        np.save(published / f"{name}.npy", np.concatenate(strengths))
    np.save(published / "labels.npy", np.tile(labels, 5))
    np.save(newer / "cifar10.1_v6_data.npy", images)
    np.save(newer / "cifar10.1_v6_labels.npy", labels.astype(np.int32))

    output = lab("linear", "--data", published)
    assert "CIFAR-10-C, the published files in" in output
    assert "no temperature scaling: these runs have no validation images" in output
    lab("linear", "--data", newer)
    found = lab.runs()["linear-seed0"].data.metrics
    black = lab.table("linear", "cifar10-c").set_index(["images", "strength"])["acc"]["frost", 5]
    assert found["cifar10-c/frost"] == pytest.approx((4 * found["test/acc"] + black) / 5)
    assert found["cifar10-c/acc_mean"] == pytest.approx(found["cifar10-c/frost"])
    assert found["cifar10.1/acc_mean"] == pytest.approx(found["test/acc"])
    assert "corruptions/acc_mean" not in found

    np.save(published / "fog.npy", np.zeros((7, 32, 32, 3), np.uint8))
    for arguments, message in (
        ((published,), "fog.npy has shape (7, 32, 32, 3), uint8: expected (200, 32, 32, 3), uint8"),
        ((newer, "--corruptions", "fog"), "is CIFAR-10.1, which has no corruptions to choose from"),
    ):
        output = lab("linear", "--data", *arguments, code=2 if "fog" in arguments else 1)
        assert output.count("\n") == 1
        assert message in output
    (published / "fog.npy").unlink()
    assert "fog.npy is missing" in lab("linear", "--data", published, code=1)
    np.save(published / "fog.npy", np.concatenate([images] * 5))
    np.save(published / "labels.npy", np.arange(200) // 20)
    assert "the 200 labels are not 5 times the same ones" in lab("linear", "--data", published, code=1)


def test_mistakes_cost_one_line(evaluated, tmp_path):
    lab, _, _, _ = evaluated
    np.save(tmp_path / "labels.npy", np.zeros(5, np.int64))
    for arguments, code, message in (
        (("lineer",), 1, "lineer: no finished runs with that name"),
        (("abc",), 1, "no run has an id that begins with abc"),
        (("linear", "--corruptions", "smoke"), 2, "no corruption 'smoke'; use gaussian_noise, "),
        (("linear", "--corruptions", "frost"), 2, "frost is not computed here: it needs photographs of frost"),
        (("linear", "--data", "nowhere"), 1, "no cifar10.1_v6_data.npy (CIFAR-10.1) and no labels.npy (CIFAR-10-C)"),
        (("linear", "--data", tmp_path), 2, "has the ten classes of CIFAR-10, but these runs know scikit-learn digits"),
        (("linear", "--against", "digits"), 2, "--against digits: these are the images that the runs know"),
        (("linear", "--against", "nowhere"), 1, "nowhere does not exist"),
    ):
        output = lab(*arguments, code=code)
        assert output.count("\n") == 1, output
        assert message in output
