"""Comparisons and the best run, with hand-written runs."""

import numpy as np
import pytest
from conftest import EXPERIMENTS
from mlflow.entities import Metric, Param
from scipy.special import softmax

from cifar_lab.analysis.uncertainty import detectable, seeds_and_images
from cifar_lab.arguments import make_parser
from cifar_lab.commands import best
from cifar_lab.commands import compare as command
from cifar_lab.config import load_config
from cifar_lab.errors import UserError
from cifar_lab.tracking import store
from cifar_lab.tracking.artifacts import log_arrays
from cifar_lab.tracking.recovery import ENVIRONMENT


@pytest.fixture
def client(workplace):
    return store.connect(make=True)


def add_repeats(client, name, accuracies, config_hash=None, data="digits", split="s" * 12, settings=None, **tags):
    """Finished runs with these test accuracies by seed; val/acc is half of it, val/loss 1."""
    experiment_id = store.open_experiment(client, data)
    tags = {
        **dict.fromkeys(ENVIRONMENT, "same"),
        "experiment": name,
        "config_hash": config_hash or f"{name}-hash",
        "data_digest": f"{data}-digest",
        "split_digest": split,
        **tags,
    }
    parent = client.create_run(experiment_id, run_name=name, tags={**tags, "kind": "repeats"}).info.run_id
    settings = {"trainer.epochs": 2, **(settings or {})}
    client.log_batch(parent, params=[Param(key, str(value)) for key, value in settings.items()])
    return parent, [add_run(client, parent, seed, accuracy) for seed, accuracy in accuracies]


def add_run(client, parent, seed, accuracy):
    run = client.get_run(parent)
    tags = {**run.data.tags, "kind": "run", "seed": str(seed), "mlflow.parentRunId": parent}
    experiment_id, name = run.info.experiment_id, f"{run.info.run_name}-seed{seed}"
    run_id = client.create_run(experiment_id, run_name=name, tags=tags | {"mlflow.runName": name}).info.run_id
    values = {"test/acc": accuracy, "test/loss": 1 - accuracy, "val/acc": accuracy / 2, "val/loss": 1.0}
    client.log_batch(run_id, metrics=[Metric(key, value, 0, 2) for key, value in values.items()])
    client.set_terminated(run_id)
    return run_id


LOW = list(enumerate([0.40, 0.41, 0.42, 0.41, 0.40, 0.42]))
HIGH = list(enumerate([0.79, 0.80, 0.81, 0.81, 0.79, 0.80]))


def compare(workplace, *names, metric="test/acc", options=()):
    figure = str(workplace / "comparison.png")
    return command.run(make_parser().parse_args(["compare", *names, "--metric", metric, "--figure", figure, *options]))


def rows(capsys):
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]


def test_table_and_picture(client, workplace, capsys):
    add_repeats(client, "linear", LOW)
    add_repeats(client, "cnn", HIGH)
    assert compare(workplace, "linear", "cnn") == 0
    # std of 40, 41, 42, 41, 40, 42: 0.894; t for 5 degrees of freedom 2.5706; half an interval 0.9386
    linear, cnn, difference = rows(capsys)
    assert linear == ["`linear`", "6", "41.00", "0.89", "40.06 to 41.94", "-", "-"]
    assert cnn == ["`cnn`", "6", "80.00", "0.89", "79.06 to 80.94", "-", "-"]
    # differences 39, 39, 39, 40, 39, 38: mean 39, std 0.632, half an interval 0.664; p = 2 / 2**6
    assert difference[:5] == ["`linear` - `cnn`", "6 paired, r = 0.75", "-39.00", "-39.66 to -38.34", "-"]
    found_from = f"{0.6325 * detectable(6):.2f}"
    assert difference[5:] == ["0.00 (0.00 to 0.31)", "0.0312", found_from, "cnn is higher"]
    assert (workplace / "comparison.png").read_bytes().startswith(b"\x89PNG")
    again = compare(workplace, "linear", "cnn")
    assert (again, rows(capsys)[2]) == (0, difference)


def test_predictions_tell_about_other_images_and_an_ensemble(client, workplace, capsys):
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 500)
    answers, ensembles = [], []
    for name, skill in (("linear", 0.5), ("cnn", 0.8)):
        parent, _ = add_repeats(client, name, [])
        scores = [random.normal(size=(500, 10)) + 3 * skill * np.eye(10)[labels] for _ in range(6)]
        probabilities = np.stack([softmax(one, 1).astype(np.float16) for one in scores])
        answers.append(probabilities.argmax(2) == labels)
        ensembles.append((probabilities.astype(float).mean(0).argmax(1) == labels).mean())
        for seed in range(6):
            run_id = add_run(client, parent, seed, answers[-1][seed].mean())
            log_arrays(client, run_id, "predictions/test.npz", probabilities=probabilities[seed], labels=labels)
    compare(workplace, "linear", "cnn")
    *singles, difference = rows(capsys)
    for single, correct, ensemble in zip(singles, answers, ensembles, strict=True):
        low, high = seeds_and_images(correct.astype(float))
        assert single[5:] == [f"{100 * low:.2f} to {100 * high:.2f}", f"{100 * ensemble:.2f}"]
        assert ensemble > correct.mean() + 0.05
    low, high = seeds_and_images(answers[0].astype(float) - answers[1])
    assert difference[4] == f"{100 * low:+.2f} to {100 * high:+.2f}"


def test_a_plan_shows_what_more_seeds_would_find(client, workplace, capsys):
    add_repeats(client, "linear", LOW)
    add_repeats(client, "cnn", HIGH)
    compare(workplace, "linear", "cnn", options=["--plan"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = {line[1]: line[3] for line in lines if len(line) == 5 and line[1].isdigit()}
    assert found["4"] == "-"
    assert found["6"] == f"{0.6325 * detectable(6):.2f}"
    assert found["16"] == f"{0.6325 * detectable(16):.2f}"


def test_seeds_that_are_added_after_a_comparison_are_marked(client, workplace, capsys):
    parents = [add_repeats(client, name, values)[0] for name, values in (("linear", LOW), ("cnn", HIGH))]
    compare(workplace, "linear", "cnn", options=["--margin", "50"])
    assert rows(capsys)[2][-1] == "cnn is higher; equal within the margin"
    for parent in parents:
        add_run(client, parent, 6, 0.5)
    compare(workplace, "linear", "cnn")
    assert rows(capsys)[2][-1] == "cnn is higher (but seeds were added after a first comparison)"


def test_losses_are_compared_as_they_are(client, workplace, capsys):
    add_repeats(client, "linear", LOW)
    add_repeats(client, "cnn", HIGH)
    assert compare(workplace, "linear", "cnn", metric="test/loss") == 0
    assert [row[2] for row in rows(capsys)] == ["0.5900", "0.2000", "+0.3900"]


def test_repeats_are_named_by_hash_and_by_run_id_too(client, workplace, capsys):
    parent, _ = add_repeats(client, "linear", LOW, "a" * 12)
    add_repeats(client, "linear", HIGH, "b" * 12)
    assert compare(workplace, parent[:9], "b" * 12) == 0
    linear, other, _ = rows(capsys)
    assert linear[:2] == [f"`linear {'a' * 12}`", "6"]
    assert other[0] == f"`linear {'b' * 12}`"
    with pytest.raises(UserError, match=r"linear names 2 experiments; give the hash of one: a{12} \(digits, n = 6"):
        compare(workplace, "linear")


def test_a_name_means_the_experiment_file_as_it_is_now(client, workplace, capsys):
    (workplace / "experiments").symlink_to(EXPERIMENTS)
    settings = load_config("linear").flat()
    add_repeats(client, "linear", LOW, "a" * 12, settings={**settings, "data.val_size": 143})
    add_repeats(client, "linear", HIGH, "b" * 12, settings={**settings, "trainer.epochs": 1})
    assert compare(workplace, "linear") == 0
    assert rows(capsys)[0][2] == "41.00"


def test_a_variant_with_the_value_of_the_file_is_the_experiment(client, workplace, capsys):
    (workplace / "experiments").symlink_to(EXPERIMENTS)
    settings = load_config("linear").flat()
    add_repeats(client, "linear", LOW, settings={**settings, "data.val_size": 143})
    add_repeats(client, "linear[optim.momentum=0.5]", HIGH, settings={**settings, "optim.momentum": 0.5})
    assert compare(workplace, "linear[optim.momentum=0.9]", "linear[optim.momentum=0.5]") == 0
    first, second, _ = rows(capsys)
    assert (first[0], first[2], second[0], second[2]) == ("`linear`", "41.00", "`linear[optim.momentum=0.5]`", "80.00")
    with pytest.raises(UserError, match="no finished runs with that name"):
        compare(workplace, "linear[optim.momentum=0.1]")


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"data": "cifar10"}, "linear and cnn can't be compared: data digits digits-diges and cifar10 cifar10-dige"),
        ({"split": "other"}, "linear and cnn can't be compared: split ssssssssssss and other"),
    ],
)
def test_other_images_are_refused(client, workplace, tags, message):
    add_repeats(client, "linear", LOW)
    add_repeats(client, "cnn", HIGH, **tags)
    with pytest.raises(UserError, match=message):
        compare(workplace, "linear", "cnn")
    assert not (workplace / "comparison.png").exists()


def test_a_seed_that_finished_twice_is_reported_and_counted_once(client, workplace, capsys):
    add_repeats(client, "linear", [*LOW, (3, 0.99)])
    assert compare(workplace, "linear") == 0
    output = capsys.readouterr().out
    assert "linear: seed 3 finished 2 times; only the first counts" in output
    assert "| 6 | 41.00 | 0.89 |" in output


def test_runs_of_different_code_are_reported(client, workplace, capsys):
    _, ids = add_repeats(client, "linear", LOW)
    client.set_tag(ids[0], "code_digest", "other")
    compare(workplace, "linear")
    assert "the runs differ in code: 2 different values" in capsys.readouterr().out


def test_unknown_and_doubled_names_cost_one_line(client, workplace):
    add_repeats(client, "linear", LOW)
    for names, message in (
        (["lineer"], "lineer: no finished runs with that name, config hash or run id"),
        (["li'near"], "no finished runs with that name"),
        (["linear", "linear-hash"], "two of linear, linear-hash name the same runs"),
    ):
        with pytest.raises(UserError, match=message):
            compare(workplace, *names)


def test_best_run_is_named_with_the_reason_and_without_the_test_set(client, capsys):
    add_repeats(client, "linear", LOW)
    _, ids = add_repeats(client, "cnn", [(0, 0.80), (1, 0.78)])
    for run_id in ids:  # the test accuracies have the opposite order
        client.log_metric(run_id, "test/acc", 0.1, step=2, timestamp=1)
    assert best.run(make_parser().parse_args(["best"])) == 0
    output = capsys.readouterr().out
    assert f"digits, split ssssssssssss: cnn-seed0 ({ids[0]})\n" in output
    assert f"val/acc 40.00% is the highest of 8 finished runs; next is cnn-seed1 ({ids[1]}) with 39.00%" in output
    assert "test/acc 10.00%, not used to choose" in output


def test_ties_go_to_the_lower_loss_then_to_the_earlier_start(client, capsys):
    _, ids = add_repeats(client, "cnn", [(0, 0.8), (1, 0.8)])
    best.run(make_parser().parse_args(["best"]))
    assert f"as is that of cnn-seed1 ({ids[1]}); this one started earlier" in capsys.readouterr().out
    client.log_metric(ids[1], "val/loss", 0.5, step=2, timestamp=1)
    best.run(make_parser().parse_args(["best"]))
    output = capsys.readouterr().out
    assert f"as is that of cnn-seed0 ({ids[0]}); this one has the lower val/loss, 0.5000 against 1.0000" in output


def test_without_finished_runs_there_is_no_best(client):
    with pytest.raises(UserError, match="no run has finished; make experiment trains some"):
        best.run(make_parser().parse_args(["best"]))
