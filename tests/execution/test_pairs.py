"""`pairs` through the command line: one classifier for three digits, and one for each pair of them."""

import csv
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from conftest import EXPERIMENTS, Driver
from mlflow.tracking import MlflowClient

pytestmark = pytest.mark.slow

ARGUMENTS = ("pairs", str(EXPERIMENTS / "linear.toml"), "--data", "digits", "--seeds", "3", "--epochs", "3")
CLASSES = ("--set", "data.classes=['8', '1', '3']")


def test_pairs_are_trained_beside_one_model_of_all_classes_and_compared(unused):
    driver = Driver(unused, *ARGUMENTS, *CLASSES)
    assert driver.wait() == 0, driver.output()
    client = MlflowClient(f"sqlite:///{unused / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits-1-3-8")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.params["data.classes"] for run in runs} == {"('1', '3', '8')"}
    accuracies = {}
    for name in ("linear", "linear-pairs"):
        (parent,) = [run for run in runs if run.info.run_name == name]
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert {run.info.run_name for run in children} == {f"{name}-seed{seed}" for seed in range(3)}
        accuracies[name] = {run.data.tags["seed"]: run.data.metrics["test/acc"] for run in children}
    means = [100 * statistics.mean(accuracies[name].values()) for name in ("linear-pairs", "linear")]
    answer = driver.output().splitlines()[-1]
    found = re.search(r"linear-pairs ([\d.]+) ± .*, linear ([\d.]+) ± .*; difference ([+-][\d.]+) points.*p = ", answer)
    assert [float(text) for text in found.groups()] == pytest.approx([*means, means[0] - means[1]], abs=0.006)
    assert "n = 3 paired: n is too small for p < 0.05" in answer

    tables = []
    for run in [*children, parent]:
        path = Path(client.download_artifacts(run.info.run_id, "pairs/test.csv"))
        rows = list(csv.DictReader(path.read_text().splitlines()))
        assert [(row["first"], row["second"]) for row in rows] == [("1", "3"), ("1", "8"), ("3", "8")]
        tables.append([float(row["accuracy"]) for row in rows])
        assert "pairs/test.png" in [file.path for file in client.list_artifacts(run.info.run_id, "pairs")]
    np.testing.assert_allclose(np.mean(tables[:3], axis=0), tables[3], atol=1e-4)
    assert 0.5 < min(tables[3]) < max(tables[3]) <= 1
    hardest = re.search(r"hardest: (\d - \d) ([\d.]+) ±", driver.output())
    assert float(hardest.group(2)) == pytest.approx(100 * min(tables[3]), abs=0.01)
    assert hardest.group(1) == ["1 - 3", "1 - 8", "3 - 8"][int(np.argmin(tables[3]))]

    best = client.get_model_version_by_alias("digits-1-3-8", "champion").run_id
    for command, code, message in (
        (("reproduce", best), 0, "identical: every metric of every epoch, and the weights"),
        (("compare", "linear", "linear-pairs"), 0, "n is too small for p < 0.05"),
        ((*ARGUMENTS, *CLASSES, "--set", "model.one_vs_one=true"), 2, "pairs sets model.one_vs_one itself"),
        ((*ARGUMENTS, "--set", "data.classes=['1', 'x']"), 2, "scikit-learn digits has no class x; it has: 0, 1, 2"),
    ):
        driver = Driver(unused, *command)
        assert driver.wait() == code, driver.output()
        assert message in driver.output()
        assert "Traceback" not in driver.output()
