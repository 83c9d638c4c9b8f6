"""`curve` on digits through the command line, and the variants that it trains."""

import os
import re

import pytest
from conftest import EXPERIMENTS, Driver
from mlflow.tracking import MlflowClient
from PIL import Image

from cifar_lab.analysis.comparison import summarise
from cifar_lab.errors import UsageError
from cifar_lab.execution.variants import parse_variants

LINEAR, CNN = (str(EXPERIMENTS / f"{name}.toml") for name in ("linear", "cnn"))
RATE = "optim.learning_rate"
SHORT = ("--data", "digits", "--epochs", "2")
CURVE = ("curve", LINEAR, *SHORT, "--key", RATE, "--values", "0.1", "1e-2", "1e-3", "--seeds", "2")
NAMES = ("linear[optim.learning_rate=0.1]", "linear", "linear[optim.learning_rate=0.001]")


@pytest.mark.parametrize(
    ("file", "key", "values", "expected"),
    [
        (LINEAR, RATE, ["1e-2", "4"], [("0.01", 0.01), ("4", 4.0)]),
        (LINEAR, "data.flip", ["true", "false"], [("true", True), ("false", False)]),
        (LINEAR, "trainer.precision", ["fp32", '"bf16"'], [("fp32", "fp32"), ('"bf16"', "bf16")]),
        (CNN, "model.widths", ["[8,8, 8]", "[16, 24,32]"], [("[8,8,8]", (8, 8, 8)), ("[16,24,32]", (16, 24, 32))]),
    ],
)
def test_any_setting_can_be_varied_and_its_name_says_the_value(file, key, values, expected):
    variants = parse_variants({"x": file}, key, values, ["trainer.epochs=3"])
    assert [(variant.text, variant.value) for variant in variants] == expected
    assert [variant.name(key) for variant in variants] == [f"x[{key}={text}]" for text, _ in expected]
    for variant, (_, value) in zip(variants, expected, strict=True):
        assert variant.config.flat() == {**variant.plain.flat(), key: value}
        assert variant.config.trainer.epochs == 3
        (again,) = parse_variants({"x": f"{file}[{key}={variant.text}]"}, "optim.momentum", ["0.5"], [])
        assert again.config.flat()[key] == value  # the name can be used like that of an experiment


@pytest.mark.parametrize(
    ("key", "values", "given", "message"),
    [
        ("lr", ["1"], [], "--key lr: write section.key, such as optim.learning_rate"),
        ("optim.lr", ["1"], [], "linear.toml: unknown key optim.lr; known here: kind, learning_rate, "),
        ("model.widths", ["[1]"], [], "linear.toml: unknown key model.widths; known here: kind, one_vs_one"),
        (RATE, ["1", "x"], [], "linear.toml: optim.learning_rate = 'x': Input should be a valid number"),
        (RATE, ["0.1", "1e-1"], [], "--values has 0.1 twice"),
        ("trainer.epochs", ["1"], ["trainer.epochs=2"], "it can't be set to one value as well: trainer.epochs=2"),
    ],
)
def test_a_wrong_key_or_value_costs_one_line(key, values, given, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        parse_variants({"linear": LINEAR}, key, values, given)
    assert "\n" not in str(caught.value)


def runs_by_name(folder, kind):
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    runs = client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'")
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def succeed(folder, *arguments):
    driver = Driver(folder, *arguments)
    assert driver.wait() == 0, driver.output()
    return driver.output()


@pytest.mark.slow
def test_a_curve_is_interrupted_continued_and_repeated_and_shares_the_runs_of_the_experiment(unused):
    driver = Driver(unused, *CURVE, "--jobs", "1")
    driver.wait("epoch")
    os.kill(driver.process.pid, 2)
    assert driver.wait() == 130, driver.output()
    assert not (unused / "curve.png").exists()
    output = succeed(unused, *CURVE)
    runs, parents = runs_by_name(unused, "run"), runs_by_name(unused, "repeats")
    assert set(parents) == set(NAMES)
    assert set(runs) == {f"{name}-seed{seed}" for name in NAMES for seed in (0, 1)}
    rows = re.findall(r"│ linear +│ (\S+) +│ 2 │ (\S+) ± (\S+) +│ (\S+) ± (\S+) +│ [\d.]+ +│", output)
    assert [float(row[0]) for row in rows] == [0.1, 0.01, 0.001]
    for name, (value, *shown) in zip(NAMES, rows, strict=True):
        both = [runs[f"{name}-seed{seed}"] for seed in (0, 1)]
        assert {run.data.params[RATE] for run in both} == {value}
        expected = []
        for metric in ("val/acc", "test/acc"):
            summary = summarise([run.data.metrics[metric] for run in both])
            expected += [100 * summary.mean, 50 * (summary.ci_high - summary.ci_low)]
        assert [float(text) for text in shown] == pytest.approx(expected, abs=0.0051)
    assert Image.open(unused / "curve.png").width > 500

    again = succeed(unused, *CURVE, "--figure", "again.svg")
    assert again.count(": 0 of 2 runs to train") == 3
    for file, name in ((LINEAR, "linear"), (f"{LINEAR}[{RATE}=0.1]", NAMES[0])):
        assert f"{name}: 0 of 2 runs to train" in succeed(unused, "experiment", file, *SHORT, "--seeds", "2")
    assert {name: run.info.run_id for name, run in runs_by_name(unused, "run").items()} == {
        name: run.info.run_id for name, run in runs.items()
    }
    assert (unused / "again.svg").exists()
    compared = succeed(unused, "compare", "linear", NAMES[2])
    assert f"`linear` - `{NAMES[2]}`" in compared
    assert f"make compare EXPERIMENTS='{NAMES[0]} {NAMES[2]}'" in again


@pytest.mark.slow
def test_values_without_a_result_are_left_out_and_the_exit_code_says_so(unused):
    curve = ("curve", LINEAR, *SHORT, "--seeds", "1", "--key", RATE, "--set", "data.val_size=0")
    driver = Driver(unused, *curve, "--values", "0.01", "1e37")
    assert driver.wait() == 1, driver.output()
    assert re.search(r"│ 0\.01 +│ 1 │ - +│ \d\d\.\d\d +│", driver.output())
    assert re.search(r"│ 1e\+37 +│ 0 │ - +│ - +│ - +│", driver.output())
    assert "linear[optim.learning_rate=1e+37]-seed0 failed: train loss is" in driver.output()
    assert (unused / "curve.png").exists()
    driver = Driver(unused, *curve, "--values", "1e37")
    assert driver.wait() == 1, driver.output()
    assert "drawn" not in driver.output()


@pytest.mark.slow
def test_two_values_with_the_same_result_are_refused_before_anything_is_trained(unused):
    curve = ("curve", CNN, *SHORT, "--seeds", "1", "--key", "trainer.precision", "--accelerator", "cpu")
    driver = Driver(unused, *curve, "--values", "auto", "fp32", "bf16")
    assert driver.wait() == 2, driver.output()
    assert "two of the values of trainer.precision give the same settings, those of cnn" in driver.output()
    assert not (unused / "mlruns").exists()
