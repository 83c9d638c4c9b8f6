"""Results as CSV, Markdown and LaTeX, with hand-written runs."""

import csv
import re

import numpy as np
import pytest
from mlflow.entities import Metric
from test_compare import LOW, add_repeats, add_run

from cifar_lab.analysis.uncertainty import seeds_and_images
from cifar_lab.arguments import make_parser
from cifar_lab.commands import results as command
from cifar_lab.errors import UsageError, UserError
from cifar_lab.tracking import lifecycle, store
from cifar_lab.tracking.artifacts import log_arrays

HALF = [(0, 0.5), (1, 0.7)]  # half of the 95 % interval: 12.7062 * 0.1414 / sqrt(2) = 1.2706


@pytest.fixture
def client(workplace):
    return store.connect(make=True)


def export(*arguments):
    assert command.run(make_parser().parse_args(["results", *arguments])) == 0


def rows(file="results.csv"):
    with open(file) as text:
        return list(csv.DictReader(text))


def table(text, heading):
    """The cells of the markdown table below a heading."""
    lines = text.partition(f"## {heading}\n")[2].partition("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]


def test_csv_has_raw_numbers_and_what_they_were_measured_on(client, workplace, capsys):
    parent, ids = add_repeats(client, "linear", HALF, "a" * 12, settings={"trainer.epochs": 3})
    for run_id, seconds in zip(ids, (1.0, 2.0), strict=True):
        client.log_batch(run_id, [Metric("epoch_seconds", seconds, 0, epoch) for epoch in (1, 2, 3)])
    export()
    (row,) = rows()
    assert (row["experiment"], row["dataset"], row["n"], row["epochs"]) == ("linear", "digits", "2", "3")
    assert float(row["mean"]) == np.mean([0.5, 0.7])
    assert float(row["std"]) == np.std([0.5, 0.7], ddof=1)
    assert float(row["ci_low"]) == pytest.approx(0.6 - 1.2706205, abs=1e-6)
    assert float(row["ci_high"]) == pytest.approx(0.6 + 1.2706205, abs=1e-6)
    assert (row["images_ci_low"], row["images_ci_high"], row["ensemble"]) == ("", "", "")  # no predictions
    assert float(row["val"]) == 0.3
    assert float(row["seconds"]) == 4.5  # 3 and 6
    assert (row["config_hash"], row["data_digest"], row["split_digest"]) == ("a" * 12, "digits-diges", "s" * 12)
    assert capsys.readouterr().out == "1 experiment on 1 data set: results.csv, results.md, results.tex\n"
    assert lifecycle.COMPARED not in client.get_run(parent).data.tags  # an export is no comparison


def test_predictions_give_the_interval_over_images_and_the_ensemble(client, workplace):
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 200)
    scores = random.random((3, 200, 10)) + 0.3 * np.eye(10)[labels]
    probabilities = (scores / scores.sum(2, keepdims=True)).astype(np.float16)
    correct = probabilities.argmax(2) == labels
    parent, _ = add_repeats(client, "linear", [])
    for seed in range(3):
        run_id = add_run(client, parent, seed, correct[seed].mean())
        log_arrays(client, run_id, "predictions/test.npz", probabilities=probabilities[seed], labels=labels)
    export("linear")
    (row,) = rows()
    assert (float(row["images_ci_low"]), float(row["images_ci_high"])) == seeds_and_images(correct.astype(float))
    ensemble = (probabilities.astype(float).mean(0).argmax(1) == labels).mean()
    assert float(row["ensemble"]) == ensemble
    (_, cells) = table((workplace / "results.md").read_text(), "`digits`")
    assert cells[6] == f"{100 * ensemble:.2f}"


def test_data_sets_and_splits_are_groups_and_the_highest_comes_first(client, workplace, capsys):
    add_repeats(client, "linear", LOW)
    add_repeats(client, "cnn", HALF)
    add_repeats(client, "mlp", [(0, 0.9)], split="other")
    add_repeats(client, "linear", [(0, 0.99)], "b" * 12, data="cifar10")
    export()
    found = [(row["dataset"], row["split_digest"], row["experiment"]) for row in rows()]
    split = "s" * 12
    assert found == [
        ("cifar10", split, "linear"),
        ("digits", "other", "mlp"),
        ("digits", split, "cnn"),
        ("digits", split, "linear"),
    ]
    text = (workplace / "results.md").read_text()
    assert re.findall("^## .*$", text, re.MULTILINE) == ["## `cifar10`", "## `digits`", "## `digits`"]
    header, row = table(text, "`cifar10`")
    assert header[:6] == ["experiment", "n", "mean", "std", "95 %, seeds", "95 %, seeds and images"]
    assert header[6:] == ["ensemble", "validation", "epochs", "seconds per run", "config hash"]
    assert row == ["`linear`", "1", "99.00", "-", "-", "-", "-", "49.50", "2", "-", "b" * 12]
    last = text.rpartition("## `digits`")[2]
    assert f"Test accuracy in percent; images digits-diges, split {split}." in last
    assert re.findall("^[|] `(.*?)` *[|] [0-9] *[|] ([0-9.]+)", last, re.MULTILINE) == [
        ("cnn", "60.00"),
        ("linear", "41.00"),
    ]
    assert capsys.readouterr().out.startswith("4 experiments on 3 data sets or splits: ")
    assert (workplace / "results.tex").read_text().count("\\begin{table}") == 3


def test_latex_is_escaped_and_every_row_has_all_columns(client, workplace):
    parent, _ = add_repeats(client, "cnn[optim.momentum=0.5]", LOW, "c" * 12, data="50%_cats & dogs")
    client.update_run(parent, name=r"[100 % {a}_b#c$d & ~^<|>] \x")
    export(parent, "--output", "tables.v1")
    text = (workplace / "tables.v1.tex").read_text()
    assert r"{[}100 \% \{a\}\_b\#c\$d \& \textasciitilde{}\textasciicircum{}" in text
    assert (
        r"\textless{}\textbar{}\textgreater{}{]} \textbackslash{}x & 6 & 41.00 & 0.89 & 40.06 to 41.94 & -- &" in text
    )
    assert r"Test accuracy in percent on 50\%\_cats \& dogs (images \texttt{50\%\_cats \& d}" in text
    body = text.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
    lines = [line for line in body.splitlines() if "&" in line]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in lines] == [10, 10]
    assert r"\begin{tabular}{l" + "r" * 9 + "l}" in text
    assert all(line.endswith(r" \\") for line in lines)
    assert (r"`[100 % {a}_b#c$d & ~^<\|>] \x`") in (workplace / "tables.v1.md").read_text()
    assert rows("tables.v1.csv")[0]["experiment"] == r"[100 % {a}_b#c$d & ~^<|>] \x"


def test_wrong_names_and_no_results_cost_one_line(client, workplace, capsys):
    with pytest.raises(UserError, match="no run has finished; make experiment trains some"):
        export()
    add_repeats(client, "linear", LOW, "a" * 12)
    add_repeats(client, "cnn", [])
    for names, error, message in (
        (["lineer"], UserError, "lineer: no finished runs with that name"),
        (["cnn"], UserError, "cnn: no finished runs with that name"),
        (["linear", "a" * 12], UsageError, "two of linear, a{12} name the same runs"),
    ):
        with pytest.raises(error, match=message):
            export(*names)
    for output in ("results.csv", "x/results.tex", "", "."):
        with pytest.raises(SystemExit):
            export("--output", output)
        assert "has to be a path without an ending" in capsys.readouterr().err
    assert not list(workplace.glob("results*"))
